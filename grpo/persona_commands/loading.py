"""A file of vectors for the policy of a run: found, checked against the policy, and, of another model, how far it
carries."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from grpo.errors import ConfigError, DataError
from grpo.persona.traits import Trait
from grpo.persona.vectors import Over, PersonaVectors, load, random_like
from grpo.persona_commands.measure import Measured, Meter
from grpo.starts import Run, print_of
from grpo.steering import Steering


@dataclass(frozen=True, slots=True)
class Transfer:
    """How far vectors of one model carry to another one."""

    source: str  # a word for the policy that they are of
    own_file: str | None  # the policy's own vectors of the trait, where there are any
    cosines: tuple[float, ...]  # [L], of response averages, with its own; none without a file
    block: int
    coefficient: float
    plain: Measured
    steered: Measured
    random: Measured  # under a random direction of the same norm

    def as_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What it says, for people to read."""
        cosines = ", ".join(f"{cosine:.2f}" for cosine in self.cosines)
        own = f"cosine with {self.own_file}, by block: {cosines}" if self.own_file else "the policy has no own vectors"
        return [
            f"the vectors are of another model ({self.source}); {own}",
            f"steered by them at block {self.block}, coefficient {self.coefficient:g}: trait rate "
            f"{self.steered.rate.value:.2f}, by a random direction {self.random.rate.value:.2f}, unsteered "
            f"{self.plain.rate.value:.2f}",
        ]


def find_vectors(run: Run, name: str) -> tuple[Path, PersonaVectors]:
    """The file that --vectors names: a path, or the name of a file in the run's folder. The same on every rank.

    Raises DataError where there is none or it is none."""
    own = run.folder.path / "persona" / f"{name}.safetensors"
    path = own if not name.endswith(".safetensors") and own.is_file() else Path(name)
    found: tuple[PersonaVectors | None, str] = (None, "")
    if run.world.is_main:
        try:
            found = (load(path), "")
        except DataError as error:
            found = (None, f"--vectors: {error}")
    vectors, fault = run.world.broadcast(found)
    if vectors is None:
        raise DataError(fault)
    return path, vectors


def check_model(run: Run, vectors: PersonaVectors, *, allow_other: bool) -> bool:
    """Whether the vectors are of the policy as it stands. Raises ConfigError where they cannot be used, or may not."""
    origin, policy = vectors.origin, run.policy
    own = print_of(run).content
    if (origin.num_blocks, origin.hidden_size) != (len(policy.blocks), policy.hidden_size):
        raise ConfigError(
            f"the vectors of {origin.trait} are of a model with {origin.num_blocks} blocks of width "
            f"{origin.hidden_size}; this one has {len(policy.blocks)} of {policy.hidden_size}: extract its own with "
            "`grpo persona extract`"
        )
    if origin.policy == own:
        return True
    if not allow_other:
        raise ConfigError(
            f"the vectors of {origin.trait} are of another policy ({origin.checkpoint}, {origin.policy[:8]}) than this "
            f"one ({own[:8]}); name its --checkpoint, extract this one's own with `grpo persona extract`, or add "
            "--allow-other-model, which measures how far they carry"
        )
    return False


def transfer(run: Run, vectors: PersonaVectors) -> Transfer:
    """Measure how far the vectors carry: against the policy's own, where there are any, and by their effect."""
    own_path, own = _own_vectors(run, vectors.origin.trait)
    block, coefficient = vectors.default_block, vectors.recommended_coefficient or 1.0
    meter = Meter(run, trait_of(vectors), num_problems=0)
    steered = {"own": vectors.of["response"][block]}
    steered["random"] = random_like(steered["own"], seed=0)
    found = {
        name: meter.measure(Steering({block: vector}, coefficient=coefficient)) for name, vector in steered.items()
    }
    cosines = (
        ()
        if own is None
        else tuple(torch.cosine_similarity(own.of["response"], vectors.of["response"], dim=-1).tolist())
    )
    return Transfer(
        source=f"{vectors.origin.checkpoint}, {vectors.origin.policy[:8]}",
        own_file=own_path,
        cosines=cosines,
        block=block,
        coefficient=coefficient,
        plain=meter.measure(None),
        steered=found["own"],
        random=found["random"],
    )


def trait_of(vectors: PersonaVectors) -> Trait:
    """The trait as it was when the vectors were extracted."""
    return Trait.model_validate(vectors.origin.definition)


def check_block(vectors: PersonaVectors, block: int | None, *, over: Over) -> tuple[int, torch.Tensor]:
    """The block, or the default one, and its vector [D]. Raises ConfigError for one that is not there or is nothing."""
    chosen = vectors.default_block if block is None else block
    vector = vectors.vectors([chosen], over=over)[chosen]
    norm = float(vector.norm())
    if not (math.isfinite(norm) and norm > 0):
        raise ConfigError(f"block {chosen}: the {over} vector of {vectors.origin.trait} has the norm {norm}")
    return chosen, vector


def _own_vectors(run: Run, trait: str) -> tuple[str | None, PersonaVectors | None]:
    """The newest file of the trait's vectors, in the run's folder, that is of the policy as it stands."""
    own = print_of(run).content
    found: tuple[str | None, PersonaVectors | None] = (None, None)
    if run.world.is_main:
        for path in sorted((run.folder.path / "persona").glob("*.safetensors"), key=lambda path: path.stat().st_mtime):
            try:
                held = load(path)
            except DataError as error:
                run.console.say(str(error))
                continue
            if (held.origin.trait, held.origin.policy) == (trait, own):
                found = (str(path), held)
    return run.world.broadcast(found)
