"""The groups of a step: the curriculum's problems, sampled or taken from the profile's stock, and refilled.

Owns the order in which these are asked; which problems, how many and when to stop is the curriculum's to say."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curricula import Curriculum, next_wave
from grpo.distributed.world import World
from grpo.rollout import Attempts, Rollouts, is_too_much_lost
from grpo.stock import Stock
from grpo.tracking.metrics import group_metrics
from grpo.types import Group, Problem, Stage, StepStats


@dataclass(frozen=True, slots=True)
class Collected:
    """Groups of a step in the order in which the curriculum gave their problems, refill waves included.

    `reused` says of each group whether it was the profile's. Such a group is trained on, and no statistic of the step
    counts it: it was chosen by its outcome, and says nothing of the policy as it stands. `kept` are the groups that are
    trained on: the first problems_per_step that teach something, by their place in `groups`. `num_missing` of them
    could not be found within the refills that are allowed."""

    groups: tuple[Group, ...]
    reused: tuple[bool, ...]
    kept_places: tuple[int, ...]
    num_missing: int
    num_waves: int
    sampling_seconds: float
    reward_seconds: float
    sampled_tokens: int
    refill_tokens: int  # of those, what waves after the first drew

    @property
    def kept(self) -> tuple[Group, ...]:
        """The groups that are trained on."""
        return tuple(self.groups[place] for place in self.kept_places)

    @property
    def drawn(self) -> tuple[Group, ...]:
        """The groups that the policy drew in this step."""
        return tuple(group for group, reused in zip(self.groups, self.reused, strict=True) if not reused)

    @property
    def reused_ids(self) -> set[str]:
        """Problems whose group of the profile is trained on."""
        return {self.groups[place].problem.id for place in self.kept_places if self.reused[place]}

    def _kept_tokens(self, *, reused: bool) -> int:
        return sum(self.groups[place].num_tokens for place in self.kept_places if self.reused[place] == reused)

    def count(self, stats: StepStats) -> None:
        """Add what the step's groups say to its metrics."""
        drawn, num_dropped = self.drawn, len(self.groups) - len(self.kept_places)
        if drawn:
            group_metrics(stats, drawn)
        stats.add("group/dropped_fraction", total=num_dropped, count=len(self.groups))
        stats.add_count("group/missing", self.num_missing)
        stats.add_count("group/reused", sum(self.reused[place] for place in self.kept_places))
        stats.add_count("time/sampling", self.sampling_seconds)
        stats.add_count("time/reward", self.reward_seconds)
        stats.add_count("sampling/waves", self.num_waves)
        stats.add_count("sampling/tokens", self.sampled_tokens)
        stats.add_count("tokens/refill", self.refill_tokens)
        stats.add_count("tokens/reused", self._kept_tokens(reused=True))
        stats.add_count("tokens/kept", self._kept_tokens(reused=False))


class Collector:
    """Collects groups step by step. It changes the curriculum and the stock, whose states are those of step ends."""

    def __init__(
        self,
        rollouts: Rollouts,
        curriculum: Curriculum,
        stock: Stock,
        *,
        problems: Mapping[str, Problem],
        stages: Sequence[Stage],
        max_refill_waves: int,
        reuse_steps: int,
        success_threshold: float,
        max_error_fraction: float,
        world: World,
    ) -> None:
        """Groups of `stock` are taken in the first `reuse_steps` steps."""
        self._rollouts, self._curriculum, self._stock = rollouts, curriculum, stock
        self._problems, self._stages = problems, stages
        self._max_waves = max_refill_waves + 1
        self._reuse_steps = reuse_steps
        self._success_threshold = success_threshold
        self._max_error_fraction = max_error_fraction
        self._world = world

    @property
    def stage(self) -> Stage:
        """The sizes of the stage that the curriculum is in."""
        return self._stages[self._curriculum.stage]

    def collect(self, *, step: int, temperature: float, grid: tuple[float, ...] = ()) -> Collected:
        """The groups of step `step`, counted from 0, with log-probs at the temperatures of `grid` too.

        Raises GaveUp where the sampler does."""
        wanted = self.stage.problems_per_step
        groups: list[Group] = []
        reused: list[bool] = []
        given: Counter[str] = Counter()
        waves, sampled_tokens, refill_tokens = 0, 0, 0
        sampling_seconds, reward_seconds = 0.0, 0.0
        while asked := next_wave(
            self._curriculum,
            num_wanted=wanted,
            tried=[(group.problem.id, not group.degenerate) for group in groups],
            waves_done=waves,
            max_waves=self._max_waves,
        ):
            stocked = self._stocked(asked) if step < self._reuse_steps else {}
            attempts = self._attempts(asked, stocked, given)
            drawn: list[Group] = []
            if attempts:
                sampled = self._rollouts.run(
                    attempts,
                    temperature=temperature,
                    phase="train",
                    step=step,
                    limit_tokens=self.stage.max_completion_tokens,
                    grid=grid,
                )
                drawn = list(sampled.groups)
                sampled_tokens += sampled.num_tokens
                refill_tokens += sampled.num_tokens if waves else 0
                sampling_seconds += sampled.sampling_seconds
                reward_seconds += sampled.reward_seconds
            # What the profile drew it was told of by the labels, which rest on the same rollouts.
            self._curriculum.observe([group.outcome for group in drawn])
            groups += [stocked.get(place) or drawn.pop(0) for place in range(len(asked))]
            reused += [place in stocked for place in range(len(asked))]
            waves += 1
            if is_too_much_lost(groups, max_error_fraction=self._max_error_fraction):
                break  # a broken reward leaves no group with variance, and a refill would not mend it
        varied = tuple(place for place, group in enumerate(groups) if not group.degenerate)[:wanted]
        return Collected(
            groups=tuple(groups),
            reused=tuple(reused),
            kept_places=varied,
            num_missing=wanted - len(varied),
            num_waves=waves,
            sampling_seconds=sampling_seconds,
            reward_seconds=reward_seconds,
            sampled_tokens=sampled_tokens,
            refill_tokens=refill_tokens,
        )

    def _attempts(self, asked: Sequence[str], stocked: Mapping[int, Group], given: Counter[str]) -> list[Attempts]:
        """What is to be drawn of the problems asked for; `given` counts how often the step was given each."""
        attempts = []
        for place, problem_id in enumerate(asked):
            # A small pool gives a problem again within a step; its attempts have numbers and noise of their own.
            first = given[problem_id] * self.stage.group_size
            given[problem_id] += 1
            if place not in stocked:
                num_rollouts = self._curriculum.group_size(problem_id, of_stage=self.stage.group_size)
                attempts.append(Attempts(self._problems[problem_id], first, num_rollouts))
        return attempts

    def _stocked(self, asked: Sequence[str]) -> dict[int, Group]:
        """Groups of the stock for the problems asked for, by place. The main rank reads; the others are told."""
        found: dict[int, Group] = {}
        if self._world.is_main:
            for place, problem_id in enumerate(asked):
                group = self._stock.take(self._problems[problem_id], success_threshold=self._success_threshold)
                if group is not None:
                    found[place] = group
        return self._world.broadcast(found)
