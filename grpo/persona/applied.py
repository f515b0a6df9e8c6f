"""A config's vectors, read and checked against the policy that they are to steer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from grpo.config import AppliedVectors
from grpo.errors import ConfigError, DataError
from grpo.fingerprints import PolicyPrint
from grpo.persona.vectors import Origin, PersonaVectors, load, random_like
from grpo.policy import Policy
from grpo.seeds import torch_seed
from grpo.steering import Steering


@dataclass(frozen=True, slots=True)
class Applied:
    """Vectors that fit a policy, with how a section of the config, `field`, applies them."""

    config: AppliedVectors
    vectors: Mapping[int, Tensor]  # [D] by block, on the policy's device
    origin: Origin
    field: str

    def at(self, coefficient: float) -> Steering:
        """The steering at this coefficient."""
        config = self.config
        return Steering(self.vectors, coefficient=coefficient, kind=config.kind, positions=config.positions)

    def renewed(self, newest: PersonaVectors) -> "Applied":
        """The same blocks steered by vectors that were extracted from a later policy. Random controls stay."""
        if self.config.random_control:
            return self
        found = newest.vectors(sorted(self.vectors), over=self.config.over, increments=self.config.increments)
        vectors = {block: vector.to(self.vectors[block].device) for block, vector in found.items()}
        return replace(self, vectors=vectors, origin=newest.origin)

    def check_start(self, policy: PolicyPrint) -> str:
        """A sentence on whether the vectors are of the policy of this fingerprint, which training starts from.

        Raises ConfigError where they are of another one, unless the config allows that."""
        origin, trait = self.origin, self.origin.trait
        control = "random directions of the same norms stand in for " if self.config.random_control else ""
        if origin.policy == policy.content:
            return f"{self.field}: {control}the vectors of {trait}, which are of the policy that this starts from"
        kind = "the same shape" if origin.family == policy.family else "another family"
        found = f"{origin.policy[:12]} of {kind}, and the policy that this starts from is {policy.content[:12]}"
        if not self.config.allow_other_model:
            raise ConfigError(
                f"{self.field}.vectors = {self.config.vectors!r}: extracted from the weights {found}; extract them "
                f"again (`grpo persona extract`), or set {self.field}.allow_other_model: true to carry them over"
            )
        return f"{self.field}: {control}the vectors of {trait}, carried over from the weights {found}"


def applied_to(policy: Policy, config: AppliedVectors, *, seed: int, field: str) -> Applied:
    """The vectors of `config`, which is the section `field`. `seed` draws the random controls.

    Raises ConfigError where the file cannot be read or is of a model of another shape, where a block is not there, or
    where steering it would change nothing. The policy is to be whole."""
    try:
        found = load(Path(config.vectors))
        check_shape(found.origin, policy, name=f"vectors = {config.vectors!r}")
        blocks = [found.default_block] if config.blocks is None else config.blocks
        vectors = found.vectors(blocks, over=config.over, increments=config.increments)
    except (ConfigError, DataError) as error:
        raise ConfigError(f"{field}: {error}") from error
    if config.random_control:
        vectors = {
            block: random_like(vector, seed=torch_seed(seed, "steering control", block))
            for block, vector in vectors.items()
        }
    vectors = {block: vector.to(policy.device) for block, vector in vectors.items()}
    for block, vector in vectors.items():
        check_moves(policy, Steering({block: vector}, coefficient=1.0, kind=config.kind), name=field)
    return Applied(config, vectors, origin=found.origin, field=field)


def check_shape(origin: Origin, policy: Policy, *, name: str) -> None:
    """Raises ConfigError where vectors are of a model with another number or width of blocks than the policy's."""
    own = (len(policy.blocks), policy.hidden_size)
    if own != (origin.num_blocks, origin.hidden_size):
        raise ConfigError(
            f"{name}: the vectors of {origin.trait} are of a {origin.model_type} with {origin.num_blocks} blocks of "
            f"width {origin.hidden_size}, and the policy has {own[0]} of width {own[1]}; extract them from the policy"
        )


@torch.no_grad()
def check_moves(policy: Policy, steering: Steering, *, name: str) -> None:
    """Raises ConfigError where steering leaves the policy's hidden states as they are: a hook that is never called, a
    vector of zeros, or one that is lost in rounding. Training would go on, unsteered."""
    ids = torch.arange(4, device=policy.device).unsqueeze(0) % policy.vocabulary  # [1, 4]
    plain = policy.hidden(ids)
    with switched(policy.steer, steering):
        steered = policy.hidden(ids, steer_at=torch.ones_like(ids, dtype=torch.bool))
    if torch.equal(plain, steered):
        norms = ", ".join(f"{float(vector.norm()):.3g}" for vector in steering.vectors.values())
        raise ConfigError(
            f"{name}: steering block {', '.join(map(str, steering.vectors))} changes no hidden state (its vector's "
            f"norm is {norms}); name another block or take other vectors"
        )


@contextmanager
def switched(steer: Callable[[Steering | None], None], steering: Steering | None) -> Iterator[None]:
    """Have `steer` put `steering` in place for what is inside, and nothing afterwards, whatever happens."""
    if steering is None:
        yield
        return
    steer(steering)
    try:
        yield
    finally:
        steer(None)
