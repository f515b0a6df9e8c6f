"""What flows through a step, from a row of data to numbers on a dashboard. Everything but `StepStats` is frozen.

Shape letters, used in every comment of the package: P problems, G rollouts per problem, B rollouts, T tokens of a
padded sequence, A action tokens (those that the policy chose), V vocabulary, L layers, D hidden size."""

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain, pairwise
from typing import Any

from curricula import Outcome
from rewards import Reward, RewardSpec


class StopReason(StrEnum):
    """Why a rollout ended."""

    END_TOKEN = "end_token"
    STOP_STRING = "stop_string"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A row of data that can be practised: what is asked, what is right, and who judges it."""

    id: str  # a hash of messages and answer, so the same row has the same id in every file and run
    messages: tuple[Message, ...]
    answer: str
    reward: RewardSpec
    meta: Mapping[str, Any] = field(default_factory=dict)
    prompt_suffix: str = ""  # what the source added to the end of the last user message

    @property
    def prompt(self) -> str:
        """The text of the last message: what a verifier or a reader takes for the question."""
        return self.messages[-1].content

    @property
    def question(self) -> str:
        """What makes two problems the same one: the user's turns, a line each, without the source's suffix.

        White space is evened out; system turns and the answer do not count. Where no turn is the user's, all do."""
        turns = [message.content for message in self.messages if message.role == "user"]
        turns = turns or [message.content for message in self.messages]
        turns[-1] = turns[-1].removesuffix(self.prompt_suffix)
        return "\n".join(" ".join(turn.split()) for turn in turns)

    def for_verifier(self, *, finished: bool, num_tokens: int) -> dict[str, Any]:
        """The mapping that rewards see: `finished` is False when the token limit cut the completion of `num_tokens`."""
        messages = [{"role": message.role, "content": message.content} for message in self.messages]
        return {
            "answer": self.answer,
            **self.meta,  # whose answer, where it has one, is the row's own: a number, a list
            "id": self.id,
            "prompt": self.prompt,
            "messages": messages,
            "finished": finished,
            "num_tokens": num_tokens,
        }


@dataclass(frozen=True, slots=True)
class KeptSets:
    """For each of several tokens the ids that top-k, top-p and min-p left to draw it from, at four bytes an id.

    Token t's are ids[offsets[t] : offsets[t + 1]]; where there are none, the whole vocabulary was left."""

    ids: "array[int]"  # int32, the sets one after another
    offsets: "array[int]"  # int64, one more than there are tokens

    @classmethod
    def of(cls, sets: Iterable[Sequence[int]]) -> "KeptSets":
        """From one set of ids for each token."""
        ids, offsets = array("i"), array("q", [0])
        for kept in sets:
            ids.extend(kept)
            offsets.append(len(ids))
        return cls(ids=ids, offsets=offsets)

    @classmethod
    def joined(cls, parts: Iterable["KeptSets"]) -> "KeptSets":
        """The tokens of several, one after another."""
        return cls.of(chain.from_iterable(parts))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[Sequence[int]]:
        return (self.ids[start:stop] for start, stop in pairwise(self.offsets))

    def part(self, start: int, stop: int) -> "KeptSets":
        """Those of tokens `start` to `stop`, or to the last; none where `start` is past it."""
        offsets = self.offsets[min(start, len(self)) : stop + 1]
        first = offsets[0]
        return KeptSets(ids=self.ids[first : offsets[-1]], offsets=array("q", [offset - first for offset in offsets]))


@dataclass(frozen=True, slots=True)
class Rollout:
    """One attempt at one problem, in token ids. Never re-tokenised after sampling."""

    problem_id: str
    attempt: int
    token_ids: tuple[int, ...]  # prompt, then completion
    action_mask: tuple[bool, ...]  # True: the policy chose this token; False: prompt or tool output
    logprobs: tuple[float, ...]  # nats, the sampler's own, under the distribution it drew from; 0.0 off the mask
    kept: KeptSets | None  # of each token that the policy chose, in order; None: nothing was left out
    stop_reason: StopReason
    temperature: float
    policy_step: int
    grid_logprobs: tuple[float, ...] | None = None  # nats, of the whole completion at the temperatures asked for

    @property
    def num_actions(self) -> int:
        """Tokens that the policy chose."""
        return sum(self.action_mask)

    @property
    def finished(self) -> bool:
        """False when the token limit cut the completion."""
        return self.stop_reason is not StopReason.LIMIT


@dataclass(frozen=True, slots=True)
class Stage:
    """The sizes of a step in one stage of the curriculum."""

    problems_per_step: int
    group_size: int
    max_completion_tokens: int
    learning_rate: float  # before warm-up and schedule
    failures_per_group: int | None = None  # failures of a group that are trained on; None: all
    temperature: float | None = None  # from the stage's first step on; None leaves it to the schedule


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one problem with what each was worth.

    `completions` are the texts that the verifier saw. A rollout whose reward has no value stays here to be counted
    and read, and leaves every statistic: pass rate, baseline and loss."""

    problem: Problem
    rollouts: tuple[Rollout, ...]
    completions: tuple[str, ...]
    rewards: tuple[Reward, ...]
    success_threshold: float

    @property
    def values(self) -> tuple[float, ...]:
        """The rewards that have a value, in order."""
        return tuple(reward.value for reward in self.rewards if reward.value is not None)

    @property
    def correct(self) -> tuple[bool | None, ...]:
        """Per rollout: did it reach the success threshold; None where the verifier gave no value."""
        return tuple(None if r.value is None else r.value >= self.success_threshold for r in self.rewards)

    @property
    def outcome(self) -> Outcome:
        """What the curriculum sees."""
        valued = [correct for correct in self.correct if correct is not None]
        return Outcome(problem_id=self.problem.id, num_rollouts=len(valued), num_correct=sum(valued))

    @property
    def pass_rate(self) -> float:
        """Share of valued rollouts that are correct; NaN when none has a value."""
        outcome = self.outcome
        return outcome.num_correct / outcome.num_rollouts if outcome.num_rollouts else math.nan

    @property
    def num_tokens(self) -> int:
        """Tokens that the policy chose, in all of the rollouts."""
        return sum(rollout.num_actions for rollout in self.rollouts)

    @property
    def degenerate(self) -> bool:
        """True when the group teaches nothing: fewer than two values, or max == min (not a small float std)."""
        return len(self.values) < 2 or max(self.values) == min(self.values)


class StepStats:
    """Metrics as (sum, count), so that a mean over micro-batches and ranks is exact; totals and maxima beside."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}
        self._counts: dict[str, float] = {}
        self._maxima: dict[str, float] = {}

    def add(self, name: str, *, total: float, count: float) -> None:
        """Add `total` over `count` things to the mean of `name`."""
        entry = self._sums.setdefault(name, [0.0, 0.0])
        entry[0] += float(total)
        entry[1] += float(count)

    def add_values(self, name: str, values: Sequence[float]) -> None:
        """Add each of `values` to the mean of `name`."""
        self.add(name, total=sum(values), count=len(values))

    def add_count(self, name: str, number: float) -> None:
        """Add to a plain total: tokens, events."""
        self._counts[name] = self._counts.get(name, 0.0) + float(number)

    def add_max(self, name: str, value: float) -> None:
        """Let `name` be the largest value it was given."""
        largest = self._maxima.get(name, -math.inf)
        # NaN, which no comparison finds, is above everything: a guard has to see it.
        self._maxima[name] = largest if math.isnan(largest) or float(value) <= largest else float(value)

    def merge(self, other: "StepStats") -> None:
        """Add all that another rank or part of the step has counted."""
        for name, (total, count) in other._sums.items():
            self.add(name, total=total, count=count)
        for name, number in other._counts.items():
            self.add_count(name, number)
        for name, value in other._maxima.items():
            self.add_max(name, value)

    def reduce(self) -> dict[str, float]:
        """Means, totals and maxima by name; a mean over nothing is left out."""
        means = {name: total / count for name, (total, count) in self._sums.items() if count}
        return {**means, **self._counts, **self._maxima}
