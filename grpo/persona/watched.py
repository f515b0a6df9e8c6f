"""Traits that are watched in training, as directions, and what a micro-batch's projections say of each rollout.

Beside a trait's direction stand NUM_RANDOM random ones at the same block, as a control: where they shift as far as the
trait does, the shift says nothing of the trait (random directions of the same norm predict traits as well in one
replication of arXiv 2507.21509)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from pydantic import ValidationError
from torch import Tensor

from grpo import seeds
from grpo.batch import MicroBatch
from grpo.config import FollowConfig, RunConfig, WatchConfig
from grpo.errors import ConfigError, DataError
from grpo.persona.asking import judge_of, spec_of
from grpo.persona.traits import Trait, load_trait
from grpo.persona.vectors import Over, PersonaVectors, load, random_like
from grpo.policy import Policy
from grpo.steering import Watched
from rewards import RewardSpec

NUM_RANDOM = 8
"""Random directions at a block: enough to see how far a direction shifts that means nothing."""


@dataclass(frozen=True, slots=True)
class WatchedTrait:
    """A direction that is watched, and who scores the trait itself.

    Drift is along `first`, the direction of the file, for as long as the run lasts; `direction` is the newest one."""

    name: str  # of its metrics
    block: int
    over: Over
    vectors: PersonaVectors  # the newest ones
    first: Tensor  # [D], unit
    definition: Trait | None  # None: nothing asks for it
    scorer: RewardSpec | None  # None: the trait is not measured
    penalty: float = 0.0  # reward for a whole vector

    @property
    def length(self) -> float:
        """‖v‖ of the newest vectors: how far a completion with the trait lies from one without, on average."""
        return float(self.vectors.vectors([self.block], over=self.over)[self.block].norm())

    @property
    def direction(self) -> Tensor:
        """Of the newest vectors, [D], unit."""
        return unit_direction(self.vectors, block=self.block, over=self.over)


def load_watched(
    config: RunConfig, *, policy: Policy, steered: Mapping[str, int] = MappingProxyType({})
) -> list[WatchedTrait]:
    """What the config says to watch. A trait of `steered` is watched at the first block that is, unless the config
    names another. Raises ConfigError for what does not go with the policy, or has one name twice,
    and DataError for a file that holds no vectors."""
    found = [
        _loaded(watched, config, policy=policy, steered=steered, place=f"persona.watch.{index}")
        for index, watched in enumerate(config.persona.watch)
    ]
    names = [trait.name for trait in found]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(
                f"persona.watch.{index}: {name} is watched already, and metrics have its name; set "
                f"persona.watch.{index}.name"
            )
    return found


def check_steered(config: RunConfig, watched: Sequence[WatchedTrait], *, steered: str, first_block: int) -> None:
    """Raises ConfigError where the trait that is steered, from `first_block` on, is to take vectors that are extracted
    again, or its coefficient is to follow what is measured, and nothing of the kind is watched."""
    traits = sorted({trait.vectors.origin.trait for trait in watched})
    if config.persona.reextract_steers and steered not in traits:
        raise ConfigError(
            f"persona.reextract_steers: {steered} is steered, and what is extracted again is what is watched: "
            f"{', '.join(traits)}; add its vectors to persona.watch, or set reextract_steers: false"
        )
    if config.steering is not None and config.steering.follow is not None:
        _check_followed(config.steering.follow, watched, steered=steered, first_block=first_block)


def _check_followed(follow: FollowConfig, watched: Sequence[WatchedTrait], *, steered: str, first_block: int) -> None:
    name = follow.trait or steered
    found = next((trait for trait in watched if trait.name == name), None)
    if found is None:
        raise ConfigError(
            f"steering.follow reads persona/{name}/..., and persona.watch has no trait of that name "
            f"({', '.join(trait.name for trait in watched) or 'nothing is watched'}); add it there"
        )
    if follow.kind != "projection" and found.scorer is None:
        raise ConfigError(
            f"steering.follow.kind = {follow.kind!r} follows the trait's score, and {name} is not measured; set "
            "measure: true in persona.watch, or kind: projection"
        )
    if follow.kind == "projection" and found.block > first_block:
        raise ConfigError(
            f"steering.follow.kind = 'projection' holds what {name} projects to without steering, and block "
            f"{found.block}, where it is watched, comes after block {first_block}, where steering begins; set "
            f"persona.watch's block to {first_block} or before"
        )


def unit_direction(of: PersonaVectors, *, block: int, over: Over) -> Tensor:
    """v̂ [D] of a block. Raises ConfigError for a vector of zeros, which points nowhere."""
    vector = of.vectors([block], over=over)[block].float()
    if not float(vector.norm()) > 0:
        raise ConfigError(f"the {over} vector of {of.origin.trait} at block {block} is zero; it has no direction")
    return vector / vector.norm()


class Directions:
    """All directions that are watched, and which columns of the projections [A, W] are a trait's."""

    def __init__(self, traits: Sequence[WatchedTrait], *, seed: int, device: torch.device | None = None) -> None:
        """Traits at one block have their random directions in common: `seed` and the block say which. They lie on
        `device`, or where the traits' do."""
        self._columns: dict[str, list[int]] = {}
        of_blocks: dict[int, Tensor] = {}
        at = 0
        for block in sorted({trait.block for trait in traits}):
            here = [trait for trait in traits if trait.block == block]
            random = _random_directions(here[0].direction, block=block, seed=seed)
            rows = [row for trait in here for row in (trait.direction, trait.first)]
            of_blocks[block] = torch.stack([*rows, *random]).to(device)  # [W_l, D]
            first_random = at + len(rows)
            for place, trait in enumerate(here):
                own = at + 2 * place
                self._columns[trait.name] = [own, own + 1, *range(first_random, first_random + NUM_RANDOM)]
            at = first_random + NUM_RANDOM
        self.watched = Watched(of_blocks) if of_blocks else None

    def columns(self, name: str) -> list[int]:
        """Of a trait: along its newest direction, along its first one, and along each random one."""
        return self._columns[name]


def of_rollouts(batch: MicroBatch, projections: Tensor) -> Tensor:
    """What each of the B rollouts projects to, [B, 2, W] on the CPU: the mean over its completion's tokens, and its
    last prompt token; from the projections [A, W] of the positions that choose.

    The last token of a completion is read by no forward, since nothing follows it: it is in no mean, and a completion
    of one token has NaN for one."""
    lengths = torch.bincount(batch.rollout_index, minlength=len(batch.rollouts))  # [B]
    drawn = batch.is_action[batch.predicts_action].to(projections)  # [A], 1 where the position's own token was drawn
    # A rollout's tokens are side by side, and a sum by segments is the same one however often it is made.
    of_segments = torch.segment_reduce(
        torch.cat([projections * drawn.unsqueeze(-1), drawn.unsqueeze(-1)], dim=-1),
        "sum",
        lengths=lengths,
        axis=0,
        unsafe=True,
    )  # [B, W + 1]
    means = of_segments[:, :-1] / of_segments[:, -1:]  # [B, W]
    at_prompt = projections[lengths.cumsum(0) - lengths]  # [B, W]
    return torch.stack([means, at_prompt], dim=1).cpu()


def _loaded(
    watched: WatchConfig, config: RunConfig, *, policy: Policy, steered: Mapping[str, int], place: str
) -> WatchedTrait:
    of = load(Path(watched.vectors))
    origin = of.origin
    if (origin.num_blocks, origin.hidden_size) != (len(policy.blocks), policy.hidden_size):
        raise ConfigError(
            f"{place}.vectors = {watched.vectors!r}: vectors of {origin.num_blocks} blocks and width "
            f"{origin.hidden_size}; the model has {len(policy.blocks)} and {policy.hidden_size}; extract them from it"
        )
    default_block = steered.get(origin.trait, of.default_block)
    block = default_block if watched.block is None else watched.block
    try:
        direction = unit_direction(of, block=block, over=watched.over)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    scorer, definition = None, None
    if watched.measure or config.persona.reextract_every_steps is not None:
        definition = _definition(watched, of, place=place)
        judged = definition.model_copy(update={"coherence": None})
        scorer = spec_of(judge_of(judged, config)) if watched.measure else None
    return WatchedTrait(
        name=watched.name or origin.trait,
        block=block,
        over=watched.over,
        vectors=of,
        first=direction,
        definition=definition,
        scorer=scorer,
        penalty=watched.penalty,
    )


def _definition(watched: WatchConfig, of: PersonaVectors, *, place: str) -> Trait:
    """The trait of the config's file, or as it was when the vectors were extracted."""
    if watched.trait is None:
        try:
            return Trait.model_validate(of.origin.definition)
        except ValidationError as error:
            raise DataError(
                f"{place}.vectors = {watched.vectors!r}: the file holds no whole definition of {of.origin.trait} "
                f"({error.errors()[0]['msg']}); name the trait's file as {place}.trait, or extract the vectors again"
            ) from error
    trait = load_trait(watched.trait)
    if trait.name != of.origin.trait:
        raise ConfigError(
            f"{place}: the vectors are of the trait {of.origin.trait}, and {watched.trait} is {trait.name}; name the "
            "trait that they are of, or leave trait out"
        )
    return trait


def _random_directions(like: Tensor, *, block: int, seed: int) -> list[Tensor]:
    """NUM_RANDOM unit vectors [D]."""
    keys = [seeds.torch_seed(seed, "watched directions", block, number) for number in range(NUM_RANDOM)]
    return [random_like(like, seed=key) for key in keys]
