"""A trait's vectors as one safetensors file, with all that says what they are of; and what is made of them to steer.

`v_l` is the mean of the residual stream at the output of block l over completions that show the trait, less the mean
over those that do not: unnormalised, so that a coefficient is in units of the difference itself (arXiv 2507.21509)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from grpo.errors import ConfigError, DataError

Over = Literal["response", "prompt", "last_prompt"]
"""What a vector is a difference of means over: the completion's tokens, the prompt's, or the last prompt token."""
OVERS: tuple[Over, ...] = ("response", "prompt", "last_prompt")
OF_BLOCKS = ("separation", "random_separation", "agreement", "hidden_norm")
FORMAT = "1"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a file's vectors were extracted from."""

    trait: str
    description: str
    policy: str  # content of the weights, as `grpo.fingerprints.policy_print` has it
    family: str  # of their names, shapes and types
    model_type: str
    num_blocks: int
    hidden_size: int
    checkpoint: str  # what the policy is called in its run: start, last, step_000100, ...
    num_instructions: int  # contrastive pairs of instructions
    num_questions: int
    rollouts_per_question: int  # under each instruction
    num_positive: int  # completions whose mean is taken, with the trait
    num_negative: int
    num_drawn: int  # completions that were drawn for it
    dropped: Mapping[str, int]  # pairs of completions that were not kept, by reason
    threshold: float
    coherence_threshold: float
    temperature: float
    seed: int
    separation: tuple[float, ...]  # [L], of response averages along the vector of the other half of the questions
    random_separation: tuple[float, ...]  # [L], the same along random directions: the mean of its size
    agreement: tuple[float, ...]  # [L], cosine of the vectors of the two halves of the questions
    hidden_norm: tuple[float, ...]  # [L], mean norm of the response averages: what a coefficient moves
    definition: Mapping[str, Any]  # the trait's file, so that its questions and scorer are at hand
    num_tokens: int  # of the completions that were drawn


@dataclass(frozen=True, slots=True)
class PersonaVectors:
    """A trait's vectors at every block: [L, D] float32, by what they are averaged over."""

    origin: Origin
    of: Mapping[Over, Tensor]
    recommended_block: int | None = None  # by a sweep
    recommended_coefficient: float | None = None

    @property
    def default_block(self) -> int:
        """The recommended block, or the one at 0.55 of the depth, which is typical (arXiv 2507.21509)."""
        if self.recommended_block is not None:
            return self.recommended_block
        return min(self.origin.num_blocks - 1, round(0.55 * self.origin.num_blocks))

    def vectors(self, blocks: Sequence[int], *, over: Over = "response", increments: bool = False) -> dict[int, Tensor]:
        """v_l [D] of each block; with `increments` v_l less that of the block before it in `blocks`, so that what all
        of them add up to is the last one's (the multi-layer variant of arXiv 2507.21509).

        Raises ConfigError for a block that the file has not, or that is named twice."""
        known = self.origin.num_blocks
        for block in blocks:
            if not 0 <= block < known:
                raise ConfigError(f"block {block}: the vectors of {self.origin.trait} are of blocks 0 to {known - 1}")
        ordered = sorted(set(blocks))
        if len(ordered) < len(blocks):
            raise ConfigError(f"blocks = {list(blocks)}: name each once")
        table = self.of[over]
        before = [None, *ordered[:-1]] if increments else [None] * len(ordered)
        return {
            block: table[block] - (0 if earlier is None else table[earlier])
            for block, earlier in zip(ordered, before, strict=True)
        }


def random_like(vector: Tensor, *, seed: int) -> Tensor:
    """A random direction of the same norm, [D]: the control that every effect of `vector` is to be held against."""
    noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return noise * (vector.float().norm().cpu() / noise.norm())


def save(vectors: PersonaVectors, path: Path) -> None:
    """Write the file, whole or not at all."""
    about = {
        "origin": asdict(vectors.origin),
        "recommended_block": vectors.recommended_block,
        "recommended_coefficient": vectors.recommended_coefficient,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    tensors: dict[str, Tensor] = {over: table.float().contiguous().cpu() for over, table in vectors.of.items()}
    save_file(tensors, unfinished, metadata={"format": FORMAT, "persona": json.dumps(about)})
    unfinished.replace(path)


def load(path: Path) -> PersonaVectors:
    """Read a file that `save` wrote. Raises DataError, which says what is wrong with another."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; make it with `grpo persona extract`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file ({error})") from error
    if metadata.get("format") != FORMAT or "persona" not in metadata:
        raise DataError(f"{path}: holds no persona vectors of format {FORMAT}; make it with `grpo persona extract`")
    about: dict[str, Any] = json.loads(metadata["persona"])
    unlike = {field.name for field in fields(Origin)} ^ set(about["origin"])
    if unlike:
        raise DataError(f"{path}: was written by another version ({min(unlike)}); extract the vectors again")
    for name in OF_BLOCKS:
        about["origin"][name] = tuple(about["origin"][name])
    origin = Origin(**about.pop("origin"))
    shape = (origin.num_blocks, origin.hidden_size)
    missing = [over for over in OVERS if over not in tensors or tuple(tensors[over].shape) != shape]
    if missing:
        raise DataError(f"{path}: {missing[0]} is missing, or not of shape {shape}; extract the vectors again")
    return PersonaVectors(origin=origin, of={over: tensors[over] for over in OVERS}, **about)
