"""A reward in the form that TRL's GRPOTrainer calls, and a reward function of TRL's in the form of this package.

Only here do columns arrive as keywords, as TRL dictates; TRL itself is not imported."""

from __future__ import annotations

import atexit
import inspect
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from rewards.build import build_spec, longest_seconds
from rewards.guard import guard
from rewards.pool import Pool
from rewards.spec import RewardSpec
from rewards.types import Reward, Verifier

OF_THE_TRAINER = frozenset({"trainer_state", "log_extra", "log_metric", "environments"})
"""Keywords that TRL adds to the columns of the data set."""

PROMPTS = frozenset({"prompt", "messages"})
"""What of a problem is handed over as TRL's prompts."""
POOL_SECONDS, POOL_MEMORY_MB = 5.0, 4096
"""Limits of the pool that `as_trl` opens; a reward with a limit of its own gets a second more than that."""

TrlFunction = Callable[..., list[float | None]]


def as_trl(reward: str | RewardSpec | Verifier, *, pool: Pool | None = None) -> TrlFunction:
    """The reward as `reward_funcs` of TRL's GRPOTrainer takes it: a list of values, None where there is no verdict.

    The verifier sees each row's columns, `prompt` (the last message's text), `messages` where the data are
    conversational, `calls` where messages of the policy hold `tool_calls`, and `num_tokens`; TRL does not tell whether
    a completion ended by itself, so `finished` is missing. A name or a spec is judged in `pool`, or in a pool of two
    workers that is opened with the first call and closed when Python ends; a verifier is called in this process.

    Lost verdicts are logged as `<name>/errors`, parts as `<name>/<part>`, and the first of each cause as a warning.
    TRL leaves a rollout out of its group when none of its `reward_funcs` has a value, and counts a missing one among
    others as 0: put several into one `compose`. Raises ValueError for a reward that cannot be built, and for a pool
    that would kill it before its own limit."""
    judge, title = _judge(reward, pool=pool)
    warned: set[str] = set()

    def function(
        prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any] = (), **columns: Any
    ) -> list[float | None]:
        log_metric = columns.get("log_metric")
        rows = {name: values for name, values in columns.items() if name not in OF_THE_TRAINER}
        calls = []
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            problem = {name: values[index] for name, values in rows.items()} | _asked(prompt)
            if calls_made := _calls(completion):
                problem["calls"] = calls_made
            if completion_ids:
                problem["num_tokens"] = len(completion_ids[index])
            calls.append((_text(completion), problem))
        rewards = judge(calls)
        for verdict in rewards:
            if verdict.value is None and verdict.detail not in warned and len(warned) < 20:
                warned.add(verdict.detail)
                warnings.warn(f"{title}: {verdict.status}: {verdict.detail}", stacklevel=2)
        if log_metric is not None:
            for name, value in _metrics(rewards).items():
                log_metric(f"{title}/{name}", value)
        return [verdict.value for verdict in rewards]

    function.__name__ = title  # what TRL calls the reward on its dashboards
    return function


def from_trl(function: Callable[..., Any], *, conversational: bool) -> Verifier:
    """A reward function written for TRL, async ones too, as a verifier; it sees one completion at a time.

    `conversational` says which form it expects: lists of messages, as TRL's own rewards do, or plain texts. The
    problem's entries become the columns; `completion_ids` are as many zeros as there are `num_tokens`, whatever is
    logged is dropped, and there is no `trainer_state`. Wrap it in a file and name that file as the reward:
    `solved = from_trl(accuracy_reward, conversational=True)`."""

    def judge(completion: str, problem: Mapping[str, Any]) -> Any:
        prompt, answer = problem.get("prompt", ""), completion
        if conversational:
            prompt = problem.get("messages") or [{"role": "user", "content": prompt}]
            answer = [{"role": "assistant", "content": completion}]  # type: ignore[assignment]  # TRL's other form
        columns: dict[str, Any] = {name: [value] for name, value in problem.items() if name not in PROMPTS}
        columns |= {"log_extra": _log_nothing, "log_metric": _log_nothing}
        if "num_tokens" in problem:
            columns["completion_ids"] = [[0] * problem["num_tokens"]]
        values = function(prompts=[prompt], completions=[answer], **columns)
        if inspect.iscoroutine(values):
            import asyncio  # a tenth of a second that few need

            values = asyncio.run(values)
        (value,) = values
        return value

    return guard(judge, title=getattr(function, "__name__", type(function).__name__))


def _log_nothing(name: str, values: Any) -> None:
    """What a function of TRL's logs where no trainer of TRL's listens."""


def _judge(
    reward: str | RewardSpec | Verifier, *, pool: Pool | None
) -> tuple[Callable[[list[tuple[str, dict[str, Any]]]], list[Reward]], str]:
    """What judges a batch, and the reward's title."""
    if not isinstance(reward, (str, RewardSpec)):
        title = getattr(reward, "__name__", type(reward).__name__)
        verifier = guard(reward, title=title)
        return lambda calls: [verifier(completion, problem) for completion, problem in calls], title
    spec = RewardSpec(reward) if isinstance(reward, str) else reward
    build_spec(spec)
    seconds = longest_seconds(spec)
    if pool is not None and pool.workers and seconds >= pool.timeout_seconds:
        raise ValueError(
            f"{spec.title} may take {seconds:g} s by its own options, and the pool kills a call after "
            f"{pool.timeout_seconds:g} s; give the pool a timeout_seconds above {seconds:g}, or lower the options"
        )
    own: dict[int, Pool] = {}  # by process: a fork must not use its parent's

    def judge(calls: list[tuple[str, dict[str, Any]]]) -> list[Reward]:
        judging = pool or own.get(os.getpid())
        if judging is None:
            limit_seconds = max(POOL_SECONDS, seconds + 1.0)
            judging = Pool(workers=2, timeout_seconds=limit_seconds, memory_limit_mb=POOL_MEMORY_MB)
            own[os.getpid()] = judging
            atexit.register(judging.close)
        return judging.score_all([(spec, completion, problem) for completion, problem in calls])

    return judge, spec.name or str(spec.function)


def _asked(prompt: Any) -> dict[str, Any]:
    """What the verifier sees of TRL's prompt: its text, and the messages where it is made of them."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    return {"prompt": _content(prompt[-1]), "messages": prompt}


def _text(completion: Any) -> str:
    """The text to judge: the completion itself, or the last message of the policy's in it."""
    if isinstance(completion, str):
        return completion
    own = [message for message in completion if message["role"] == "assistant"]
    return _content(own[-1]) if own else ""


def _calls(completion: Any) -> list[Any]:
    """The calls that the policy made in its messages, as TRL parses them off the text."""
    messages = [] if isinstance(completion, str) else completion
    return [call for message in messages if message["role"] == "assistant" for call in message.get("tool_calls") or []]


def _content(message: Mapping[str, Any]) -> str:
    """A message's text, whose content is a text, blocks of which some are texts, or nothing."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content)


def _metrics(rewards: Sequence[Reward]) -> dict[str, float]:
    parts: dict[str, list[float]] = defaultdict(list)
    for reward in rewards:
        for name, part in reward.parts.items():
            parts[name].append(part)
    lost = fmean(reward.value is None for reward in rewards)
    return {"errors": lost, **{name: fmean(values) for name, values in parts.items()}}
