"""From problems to scored groups: one request a problem, and each completion judged while others are still drawn."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from grpo import seeds
from grpo.chat import Chat
from grpo.errors import DataError, RewardError
from grpo.policy import Policy
from grpo.sampling.protocol import Completion, Request, Sampler
from grpo.types import Group, Problem, Rollout
from rewards import Pool, Reward, Status


@dataclass(frozen=True, slots=True)
class Attempts:
    """Rollouts `first_attempt` to `first_attempt + num_rollouts - 1` of a problem.

    An attempt's number is part of its noise key."""

    problem: Problem
    first_attempt: int
    num_rollouts: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """Groups in the order of the attempts asked for, and where the time went."""

    groups: tuple[Group, ...]
    sampling_seconds: float
    reward_seconds: float  # waited for verdicts after the last token was drawn
    num_tokens: int


class Rollouts:
    """Samples and scores. It decides nothing: problems, group sizes and the temperature are handed in."""

    def __init__(self, sampler: Sampler, chat: Chat, pool: Pool, *, seed: int, success_threshold: float) -> None:
        self._sampler, self._chat, self._pool = sampler, chat, pool
        self._seed = seed
        self._success_threshold = success_threshold

    def load_weights(self, policy: Policy) -> None:
        """Sample from this policy's weights as they stand. To be called wherever they have changed."""
        self._sampler.load_weights(policy)

    def run(self, attempts: Sequence[Attempts], *, temperature: float, phase: str, step: int) -> Sampled:
        """A group for each of `attempts`. `phase` and `step` are part of every noise key.

        Verifier failures are in the groups as rewards without a value; they are the caller's to judge."""
        started = time.perf_counter()
        requests = [
            Request(
                prompt_ids=self._chat.prompt_ids(wanted.problem),
                keys=tuple(self._key(wanted, index, phase=phase, step=step) for index in range(wanted.num_rollouts)),
                temperature=temperature,
            )
            for wanted in attempts
        ]
        drawn: dict[tuple[int, int], tuple[Rollout, str, Future[Reward]]] = {}
        for completion in self._sampler.sample(requests):
            wanted = attempts[completion.request]
            rollout = _rollout(requests[completion.request], completion, wanted=wanted, step=step)
            text = self._chat.text(completion.token_ids)
            view = wanted.problem.for_verifier(finished=rollout.finished)
            verdict = self._pool.submit(wanted.problem.reward, text, view)
            drawn[completion.request, completion.index] = (rollout, text, verdict)
        sampled = time.perf_counter()
        groups = tuple(self._group(wanted, number, drawn) for number, wanted in enumerate(attempts))
        return Sampled(
            groups=groups,
            sampling_seconds=sampled - started,
            reward_seconds=time.perf_counter() - sampled,
            num_tokens=sum(rollout.num_actions for group in groups for rollout in group.rollouts),
        )

    def _key(self, wanted: Attempts, index: int, *, phase: str, step: int) -> int:
        return seeds.key(self._seed, phase, step, wanted.problem.id, wanted.first_attempt + index)

    def _group(
        self, wanted: Attempts, number: int, drawn: dict[tuple[int, int], tuple[Rollout, str, Future[Reward]]]
    ) -> Group:
        members = [drawn[number, index] for index in range(wanted.num_rollouts)]
        return Group(
            problem=wanted.problem,
            rollouts=tuple(rollout for rollout, _, _ in members),
            completions=tuple(text for _, text, _ in members),
            rewards=tuple(verdict.result() for _, _, verdict in members),
            success_threshold=self._success_threshold,
        )


def lost_verdicts(groups: Iterable[Group]) -> Counter[str]:
    """What verifiers that failed or ran out of time said, and how often. One that abstains has not lost anything."""
    rewards = (reward for group in groups for reward in group.rewards)
    return Counter(reward.detail for reward in rewards if reward.status in (Status.ERROR, Status.TIMEOUT))


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
    )
