"""Which pairs of completions a vector is made of. Knows no model.

A pair is one completion under the positive instruction and one under the negative one, of the same question, pair of
instructions and attempt. It is kept where the trait's score is at or above the threshold in the first and below it in
the second, and both are coherent (arXiv 2507.21509 and its authors' code)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from grpo.persona.asking import coherence_of
from grpo.types import Group

NO_VERDICT = "no verdict"
NOT_SHOWN = "trait not shown under the positive instruction"
NOT_HELD_BACK = "trait shown under the negative instruction"
INCOHERENT = "incoherent"


class Unit(NamedTuple):
    """A question under one pair of instructions."""

    question: str  # the id of its problem
    instructions: int  # the place of the pair in the trait's list


@dataclass(frozen=True, slots=True)
class Scored:
    """A completion under an instruction, in token ids, with its verdicts; None where the scorer gave none."""

    question: str
    instructions: int
    shows: bool  # under the positive instruction
    attempt: int
    token_ids: tuple[int, ...]  # prompt, then completion
    num_prompt: int
    trait: float | None
    coherence: float
    asked: str  # for people to read, like what follows
    completion: str
    detail: str

    def as_row(self) -> dict[str, Any]:
        """As JSON can hold it; `Scored(**row)` is the same but for lists in the place of tuples."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Scored":
        """What `as_row` gave."""
        return cls(**{**row, "token_ids": tuple(row["token_ids"])})


class Pair(NamedTuple):
    """A kept pair."""

    positive: Scored
    negative: Scored


@dataclass(frozen=True, slots=True)
class Kept:
    """Pairs that were kept, in order, and how many were not, by the first reason that holds."""

    pairs: tuple[Pair, ...]
    dropped: Mapping[str, int]


def scored_of(group: Group, unit: Unit, *, shows: bool) -> list[Scored]:
    """A group that was drawn under an instruction."""
    return [
        Scored(
            question=unit.question,
            instructions=unit.instructions,
            shows=shows,
            attempt=rollout.attempt,
            token_ids=rollout.token_ids,
            num_prompt=rollout.action_mask.index(True),
            trait=reward.value,
            coherence=coherence_of(reward),
            asked=group.problem.prompt,
            completion=completion,
            detail=reward.detail,
        )
        for rollout, completion, reward in zip(group.rollouts, group.completions, group.rewards, strict=True)
    ]


def kept_pairs(scored: Iterable[Scored], *, threshold: float, coherence_threshold: float) -> Kept:
    """The filter. Completions without a counterpart are in no pair."""
    by_place: dict[tuple[str, int, int], dict[bool, Scored]] = {}
    for completion in scored:
        place = (completion.question, completion.instructions, completion.attempt)
        by_place.setdefault(place, {})[completion.shows] = completion
    kept, dropped = [], Counter[str]()
    for sides in by_place.values():
        if len(sides) < 2:
            continue
        pair = Pair(positive=sides[True], negative=sides[False])
        reason = _fault(pair, threshold=threshold, coherence_threshold=coherence_threshold)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(pair)
    return Kept(pairs=tuple(kept), dropped=dict(dropped))


def halves(units: Sequence[Unit]) -> tuple[list[Unit], list[Unit]]:
    """The units of every other question, and the rest; of every other pair of instructions where all ask one thing.

    What a vector of the first half tells about the second is no echo of its own noise."""
    questions = list(dict.fromkeys(unit.question for unit in units))
    first = set(questions[::2])
    if len(questions) > 1:
        return [u for u in units if u.question in first], [u for u in units if u.question not in first]
    return list(units[::2]), list(units[1::2])


def _fault(pair: Pair, *, threshold: float, coherence_threshold: float) -> str:
    shown, held_back = pair.positive.trait, pair.negative.trait
    if shown is None or held_back is None:
        return NO_VERDICT
    if shown < threshold:
        return NOT_SHOWN
    if held_back >= threshold:
        return NOT_HELD_BACK
    if min(pair.positive.coherence, pair.negative.coherence) < coherence_threshold:
        return INCOHERENT
    return ""
