"""From problems to scored groups: one request a problem, and each completion judged while others are still drawn."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from grpo import seeds
from grpo.chat import Chat
from grpo.distributed.plan import shares
from grpo.distributed.strategy import Strategy
from grpo.distributed.world import World
from grpo.errors import DataError, RewardError
from grpo.sampling.current import Current
from grpo.sampling.protocol import Completion, Request, Sampler
from grpo.steering import Steering
from grpo.types import Group, Problem, Rollout
from rewards import Pool, Reward, Status

UNLEARNED = ("train", "reprofile", "persona extract", "persona sweep", "persona screen")
"""Phases of which no length is learned in passing: training would depend on what was looked at beside it."""
_Members = tuple[tuple[Rollout, ...], tuple[str, ...], tuple[Reward, ...]]
"""Rollouts, completions and rewards of a group, in order."""


class GaveUp(Exception):
    """Sampling was ended in the middle, because the run has to end; what was drawn is lost and can be drawn again."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """Rollouts `first_attempt` to `first_attempt + num_rollouts - 1` of a problem.

    An attempt's number is part of its noise key."""

    problem: Problem
    first_attempt: int
    num_rollouts: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole completion of a problem that was not drawn here."""

    problem: Problem
    completion: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """Groups in the order of the attempts asked for, the same on every rank, and where the time went on the slowest."""

    groups: tuple[Group, ...]
    sampling_seconds: float
    reward_seconds: float  # waited for verdicts after the last token was drawn
    num_tokens: int


@dataclass(frozen=True, slots=True)
class _Share:
    """What one rank drew, by place among the attempts asked for: all of a group but its problem, which all know."""

    members: dict[int, _Members]
    sampling_seconds: float
    reward_seconds: float
    gave_up: bool


class ExpectedLengths:
    """How long a problem's completions are, in tokens, from those that were seen: what a plan's costs are made of."""

    def __init__(self) -> None:
        self._of: dict[str, float] = {}
        self._sum = 0.0

    def forget(self) -> None:
        """Know nothing, so that a plan rests on nothing that a resume would not know."""
        self.load_state_dict({"of": {}, "sum": 0.0})

    def observe(self, groups: Iterable[Group]) -> None:
        """Groups that were drawn: the mean length of each problem's newest completions counts."""
        self.expect({group.problem.id: group.num_tokens / len(group.rollouts) for group in groups})

    def expect(self, lengths: Mapping[str, float]) -> None:
        """Mean lengths, by problem, that are known from elsewhere."""
        for problem_id, length in lengths.items():
            self._sum += length - self._of.get(problem_id, 0.0)
            self._of[problem_id] = length

    def of(self, problem_id: str) -> float:
        """Expected tokens of a completion: the problem's own, or the mean of all that are known, or 1."""
        return self._of.get(problem_id, self._sum / len(self._of) if self._of else 1.0)

    def state_dict(self) -> dict[str, Any]:
        """What is known; the same on every rank."""
        return {"of": dict(self._of), "sum": self._sum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._of, self._sum = dict(state["of"]), state["sum"]


class Rollouts:
    """Samples and scores on every rank. It decides nothing but who draws what: problems, group sizes and the
    temperature are handed in, the same on every rank."""

    def __init__(
        self,
        sampler: Sampler,
        chat: Chat,
        pool: Pool,
        *,
        world: World,
        strategy: Strategy,
        seed: int,
        success_threshold: float,
        deterministic: bool = True,
        on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    ) -> None:
        """Without `deterministic`, a rank that is done takes groups that others have not begun.

        `on_progress` hears of each completion that this rank has drawn: the phase, how many so far (0 at first), and of
        how many, were they shared out evenly."""
        self._sampler, self._chat, self._pool = sampler, chat, pool
        self._world = world
        self._seed = seed
        self._success_threshold = success_threshold
        self._deterministic = deterministic
        self._on_progress = on_progress
        self._current = Current(sampler, strategy)
        self._num_runs = 0
        self.lengths = ExpectedLengths()

    def load_weights(self) -> None:
        """Sample from the policy's weights as they stand. To be called wherever they have changed."""
        self._current.load()

    def steer(self, steering: Steering | None) -> None:
        """Steer what is drawn, or nothing, from the next run on. Raises ValueError as `Policy.steer` does."""
        self._sampler.steer(steering)

    def run(
        self,
        attempts: Sequence[Attempts],
        *,
        temperature: float,
        phase: str,
        step: int,
        limit_tokens: int | None = None,
        grid: tuple[float, ...] = (),
        on_group: Callable[[Group], None] | None = None,
    ) -> Sampled:
        """A group for each of `attempts`. `phase` and `step` are part of every noise key.

        A completion has at most `limit_tokens`; None leaves it to the sampler. Each rollout carries its log-prob at the
        temperatures of `grid`, where there are any. What is learned of lengths in the phase train is the trainer's to
        keep, at the step's end. Verifier failures are in the groups as rewards without a value; they are the caller's
        to judge. `on_group` is called with each group on the rank that drew it, as soon as its last verdict is in,
        while others are still drawn.
        Raises GaveUp on every rank where the sampler did on one."""
        self._world.progress(f"sampling ({phase})")
        with self._current.drawing():
            own = self._share(
                attempts,
                temperature=temperature,
                phase=phase,
                step=step,
                limit_tokens=limit_tokens,
                grid=grid,
                on_group=on_group,
            )
        shares = self._world.gather(own)
        if any(share.gave_up for share in shares):
            raise GaveUp
        members = {place: of_place for share in shares for place, of_place in share.members.items()}
        groups = tuple(self._group(wanted, members[place]) for place, wanted in enumerate(attempts))
        if phase not in UNLEARNED:
            self.lengths.observe(groups)
        return Sampled(
            groups=groups,
            sampling_seconds=max(share.sampling_seconds for share in shares),
            reward_seconds=max(share.reward_seconds for share in shares),
            num_tokens=sum(group.num_tokens for group in groups),
        )

    def judge(self, answers: Sequence[Answer]) -> list[Reward]:
        """Verdicts on completions that came from elsewhere, in order, the same on every rank; each rank judges some."""
        rank, size = self._world.rank, self._world.size
        waiting = [
            self._pool.submit(
                answer.problem.reward,
                answer.completion,
                answer.problem.for_verifier(finished=True, num_tokens=answer.num_tokens),
            )
            for answer in answers[rank::size]
        ]
        own = []
        for verdict in waiting:
            own.append(verdict.result())
            self._world.progress()
        of_ranks = self._world.gather(own)
        return [of_ranks[place % size][place // size] for place in range(len(answers))]

    def _share(
        self,
        attempts: Sequence[Attempts],
        *,
        temperature: float,
        phase: str,
        step: int,
        limit_tokens: int | None,
        grid: tuple[float, ...],
        on_group: Callable[[Group], None] | None,
    ) -> _Share:
        """Draw and judge this rank's part of `attempts`."""
        started = time.perf_counter()
        taken: list[int] = []  # places in `attempts`, in the order in which the sampler pulls them
        requests: list[Request] = []

        def pulled() -> Iterator[Request]:
            for place in self._places(attempts):
                wanted = attempts[place]
                keys = (self._key(wanted, index, phase=phase, step=step) for index in range(wanted.num_rollouts))
                request = Request(
                    prompt_ids=self._chat.prompt_ids(wanted.problem),
                    keys=tuple(keys),
                    temperature=temperature,
                    grid=grid,
                    limit_tokens=limit_tokens,
                )
                taken.append(place)
                requests.append(request)
                yield request

        drawn: dict[tuple[int, int], tuple[Rollout, str, Future[Reward]]] = {}
        members: dict[int, _Members] = {}
        num_drawn = Counter[int]()
        unjudged: list[int] = []  # requests of which every completion is drawn

        def judge(number: int) -> None:
            place = taken[number]
            members[place] = self._judged(attempts[place], number, drawn)
            if on_group is not None:
                on_group(self._group(attempts[place], members[place]))

        def judge_what_is_in() -> None:
            for number in list(unjudged):
                if all(drawn[number, index][2].done() for index in range(num_drawn[number])):
                    unjudged.remove(number)
                    judge(number)

        gave_up = False
        total = max(1, sum(wanted.num_rollouts for wanted in attempts) // self._world.size)
        self._on_progress(phase, 0, total)
        try:
            for completion in self._sampler.sample(list(pulled()) if self._deterministic else pulled()):
                wanted = attempts[taken[completion.request]]
                rollout = _rollout(requests[completion.request], completion, wanted=wanted, step=step)
                text = self._chat.text(completion.token_ids)
                view = wanted.problem.for_verifier(finished=rollout.finished, num_tokens=rollout.num_actions)
                verdict = self._pool.submit(wanted.problem.reward, text, view)
                drawn[completion.request, completion.index] = (rollout, text, verdict)
                num_drawn[completion.request] += 1
                self._on_progress(phase, len(drawn), max(total, len(drawn)))
                if num_drawn[completion.request] == wanted.num_rollouts:
                    unjudged.append(completion.request)
                if on_group is not None:
                    judge_what_is_in()
        except GaveUp:
            gave_up = True
        sampled = time.perf_counter()
        for number in [] if gave_up else unjudged:
            judge(number)
        return _Share(
            members=members,
            sampling_seconds=sampled - started,
            reward_seconds=time.perf_counter() - sampled,
            gave_up=gave_up,
        )

    def _places(self, attempts: Sequence[Attempts]) -> Iterator[int]:
        """The places in `attempts` that this rank draws: by a plan, or as they are free."""
        if self._world.size == 1:
            yield from range(len(attempts))
            return
        costs = [
            wanted.num_rollouts * self.lengths.of(wanted.problem.id) + len(self._chat.prompt_ids(wanted.problem))
            for wanted in attempts
        ]
        if self._deterministic:
            yield from shares(costs, num_ranks=self._world.size)[self._world.rank]
            return
        self._num_runs += 1
        costliest_first = sorted(range(len(costs)), key=lambda place: -costs[place])
        while (turn := self._world.next_turn(f"rollouts {self._num_runs}")) < len(costs):
            yield costliest_first[turn]

    def _key(self, wanted: Attempts, index: int, *, phase: str, step: int) -> int:
        return seeds.key(self._seed, phase, step, wanted.problem.id, wanted.first_attempt + index)

    def _judged(
        self, wanted: Attempts, number: int, drawn: dict[tuple[int, int], tuple[Rollout, str, Future[Reward]]]
    ) -> _Members:
        members = [drawn[number, index] for index in range(wanted.num_rollouts)]
        rewards = []
        for _, _, verdict in members:
            rewards.append(verdict.result())
            self._world.progress()
        return tuple(rollout for rollout, _, _ in members), tuple(text for _, text, _ in members), tuple(rewards)

    def _group(self, wanted: Attempts, members: _Members) -> Group:
        rollouts, completions, rewards = members
        return Group(
            problem=wanted.problem,
            rollouts=rollouts,
            completions=completions,
            rewards=rewards,
            success_threshold=self._success_threshold,
        )


def lost_verdicts(groups: Iterable[Group]) -> Counter[str]:
    """What verifiers that failed or ran out of time said, and how often. One that abstains has not lost anything."""
    return lost(reward for group in groups for reward in group.rewards)


def lost(rewards: Iterable[Reward]) -> Counter[str]:
    """What those of the verdicts said that failed or ran out of time, and how often."""
    return Counter(reward.detail for reward in rewards if reward.status in (Status.ERROR, Status.TIMEOUT))


def is_too_much_lost(groups: Sequence[Group], *, max_error_fraction: float) -> bool:
    """Whether more than the allowed share of the groups' verdicts is lost."""
    return lost_verdicts(groups).total() > max_error_fraction * sum(len(group.rewards) for group in groups)


def check_lost(lost: Counter[str], *, num_verdicts: int, max_error_fraction: float, place: str) -> None:
    """Raises RewardError when more than the allowed share of `num_verdicts` is lost."""
    if lost.total() > max_error_fraction * num_verdicts:
        ((detail, count),) = lost.most_common(1)
        raise RewardError(
            f"{place}: {lost.total()} of {num_verdicts} verdicts were lost, more than reward.max_error_fraction = "
            f"{max_error_fraction}; {count} times: {detail}\n"
            "Try the reward with `grpo score`, mend it and add --resume, or raise the limit"
        )


def check_prompts(
    problems: Sequence[Problem],
    chat: Chat,
    *,
    limit_tokens: int,
    context_tokens: int | None,
    completion_tokens: int,
    drop: bool,
) -> tuple[list[Problem], int]:
    """Problems whose prompts fit, and how many do not. Raises DataError for one that does not, unless `drop`."""
    room = limit_tokens if context_tokens is None else min(limit_tokens, context_tokens - completion_tokens)
    if room < 1:
        raise DataError(
            f"sampling.max_completion_tokens = {completion_tokens} leaves no room for a prompt in the model's context "
            f"of {context_tokens} tokens; lower it"
        )
    fitting = []
    for problem in problems:
        length = len(chat.prompt_ids(problem))
        if length <= room:
            fitting.append(problem)
        elif not drop:
            raise DataError(
                f"problem {problem.id} ({problem.prompt[:60]!r}...): its prompt has {length} tokens, but only {room} "
                f"fit (data.max_prompt_tokens = {limit_tokens}, and the model's context of {context_tokens} less "
                f"sampling.max_completion_tokens = {completion_tokens}); raise the first, lower the last, or set "
                "data.overlong_prompts=drop"
            )
    return fitting, len(problems) - len(fitting)


def _rollout(request: Request, completion: Completion, *, wanted: Attempts, step: int) -> Rollout:
    num_prompt = len(request.prompt_ids)
    num_drawn = len(completion.token_ids)
    return Rollout(
        problem_id=wanted.problem.id,
        attempt=wanted.first_attempt + completion.index,
        token_ids=request.prompt_ids + completion.token_ids,
        action_mask=(False,) * num_prompt + (True,) * num_drawn,
        logprobs=(0.0,) * num_prompt + completion.logprobs,
        kept=completion.kept,
        stop_reason=completion.stop_reason,
        temperature=request.temperature,
        policy_step=step,
        grid_logprobs=completion.grid_logprobs,
    )
