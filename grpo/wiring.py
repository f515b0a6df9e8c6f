"""From a config to a `Run` that is ready to go: the one place where every part is made and handed to the others.

Whatever can be found wrong without sampling a token is found here, before anything expensive starts."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from grpo import checkpoint, practice
from grpo.chat import Chat
from grpo.config import RewardConfig, RunConfig
from grpo.data import ProblemSets, load_problem_sets, load_problems, trace_text, without
from grpo.errors import ConfigError, DataError
from grpo.folder import Phase, RunFolder, Start
from grpo.model import end_token_ids, load_model, load_tokenizer, max_positions
from grpo.policy import Policy
from grpo.recipe import Run
from grpo.rollout import Rollouts, check_prompts
from grpo.sampling.native import NativeSampler
from grpo.tracking.console import Console
from grpo.tracking.tracker import Tracker
from grpo.types import Problem
from rewards import Pool, RewardSpec


@contextmanager
def opened(
    config: RunConfig,
    *,
    start: Start,
    phases: tuple[Phase, ...],
    console: Console,
    should_stop: Callable[[], bool],
) -> Iterator[Run]:
    """A run with its folder locked and its workers started; both end with the context. Raises RunErrors by name."""
    _one_process()
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    reward = practice.reward_spec(config.reward)
    device = _device(config.run.device)
    sets = load_problem_sets(config.data, reward=reward, seed=config.run.seed)
    _check_column(config.evaluation.by_column, sets.heldout)
    traces = load_traces(config, sets, reward=reward, console=console) if config.sft is not None else []
    problem_ids = _problem_ids(sets, traces)
    RunFolder.check(config, problem_ids=problem_ids, start=start, phases=phases)
    tokenizer = load_tokenizer(config.model)
    model = load_model(config.model, tokenizer=tokenizer, seed=config.run.seed, device=device)
    try:
        policy = Policy(model)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    chat = Chat(tokenizer, config.chat, end_token_ids=end_token_ids(model, tokenizer))
    fitting = {
        name: _fitting(config, problems, chat, policy, console, name=name)
        for name, problems in (("train", sets.train), ("validation", sets.validation), ("heldout", sets.heldout))
    }
    console.say(
        f"{len(fitting['train'])} problems to practise, {len(fitting['validation'])} for validation, "
        f"{len(fitting['heldout'])} held out" + "".join(f"; {n} dropped: {why}" for why, n in sets.dropped.items())
    )
    sampler = NativeSampler(policy, config.sampling, end_token_ids=chat.end_token_ids, tokenizer=tokenizer)
    with ExitStack() as stack:
        folder = stack.enter_context(RunFolder.opened(config, problem_ids=problem_ids, start=start, phases=phases))
        console.log_to(folder.log)
        pool = stack.enter_context(_pool(config.reward))
        tracker = Tracker(folder, config, fresh=start == "fresh", say=console.say)
        stack.callback(tracker.close)
        rollouts = Rollouts(
            sampler, chat, pool, seed=config.run.seed, success_threshold=config.reward.success_threshold
        )
        yield Run(
            config=config,
            folder=folder,
            policy=policy,
            # On the CPU, where a copy of the model is cheap: it is read once or twice in a run.
            initial_weights={
                name: tensor.to("cpu", copy=True) for name, tensor in checkpoint.weights_of(model).items()
            },
            chat=chat,
            rollouts=rollouts,
            train=fitting["train"],
            validation=fitting["validation"],
            heldout=fitting["heldout"],
            traces=traces,
            tracker=tracker,
            console=console,
            should_stop=should_stop,
        )


def _pool(config: RewardConfig) -> Pool:
    return Pool(workers=config.workers, timeout_seconds=config.timeout_seconds, memory_limit_mb=config.memory_limit_mb)


def load_traces(config: RunConfig, sets: ProblemSets, *, reward: RewardSpec, console: Console) -> list[Problem]:
    """Rows of the cold start, without those whose question is held out or validated on; says what was left out."""
    sft = config.sft
    assert sft is not None
    dropped: dict[str, int] = {}
    traces = load_problems(
        sft.traces,
        field="sft.traces",
        reward=reward,
        seed=config.run.seed,
        dropped=dropped,
        # Several traces of one problem are several things to learn from.
        key=lambda problem: (problem.id, trace_text(problem, sft.completion)),
    )
    unseen = without(traces, (*sets.heldout, *sets.validation))
    if not unseen:
        raise DataError("sft.traces: every trace asks a held-out or validation problem; name another source")
    dropped["in the held-out or validation set"] = len(traces) - len(unseen)
    left_out = "".join(f"; {count} dropped: {why}" for why, count in dropped.items() if count)
    console.say(f"{len(unseen)} traces to learn from{left_out}")
    return unseen


def _problem_ids(sets: ProblemSets, traces: Sequence[Problem]) -> dict[str, list[str]]:
    sources = {
        "data.train": sets.train,
        "data.validation": sets.validation,
        "data.heldout": sets.heldout,
        "sft.traces": traces,
    }
    return {source: [problem.id for problem in problems] for source, problems in sources.items()}


def _fitting(
    config: RunConfig, problems: tuple[Problem, ...], chat: Chat, policy: Policy, console: Console, *, name: str
) -> list[Problem]:
    fitting, too_long = check_prompts(
        problems,
        chat,
        limit_tokens=config.data.max_prompt_tokens,
        context_tokens=max_positions(policy.model),
        completion_tokens=config.sampling.max_completion_tokens,
        drop=config.data.overlong_prompts == "drop",
    )
    if not fitting:
        raise ConfigError(
            f"data.max_prompt_tokens = {config.data.max_prompt_tokens}: every prompt of the {name} set is too long; "
            "raise it, or lower sampling.max_completion_tokens"
        )
    if too_long:
        console.say(f"{too_long} {name} prompts are too long and left out")
    return fitting


def _check_column(column: str | None, heldout: tuple[Problem, ...]) -> None:
    known = sorted({name for problem in heldout for name in problem.meta})
    if column is not None and column not in known:
        raise ConfigError(
            f"evaluation.by_column = {column!r}: the held-out rows have no such column; they have {', '.join(known)}"
        )


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device = 'cuda', but torch finds no GPU; install a CUDA build of torch, or set auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _one_process() -> None:
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1":
        raise ConfigError(f"WORLD_SIZE = {world}: this version trains in one process; start it without a launcher")
