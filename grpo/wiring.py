"""From a config to a `Run` that is ready to go: the one place where every part is made and handed to the others.

Whatever can be found wrong without sampling a token is found here, before anything expensive starts."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo import checkpoint, practice
from grpo.chat import Chat
from grpo.config import RewardConfig, RunConfig
from grpo.data import ProblemSets, load_problem_sets, load_problems, trace_text, without
from grpo.distributed.replicated import Replicated
from grpo.distributed.strategy import Strategy
from grpo.distributed.world import World
from grpo.errors import ConfigError, DataError, Interrupted
from grpo.evaluation_sets import load_sets, num_practised
from grpo.final_evaluation import check_names
from grpo.folder import Phase, RunFolder, Start, contents_of, write_text
from grpo.model import end_token_ids, initial_model, load_model, load_tokenizer, max_positions
from grpo.persona.applied import Applied, applied_to
from grpo.persona.steerer import Steerer, Unsteered
from grpo.persona.watched import WatchedTrait, check_steered, load_watched
from grpo.policy import Policy
from grpo.profiling import check_store_folder
from grpo.rollout import GaveUp, Rollouts, check_prompts
from grpo.sampling.engines import made_sampler
from grpo.sampling.protocol import Sampler
from grpo.starts import Run
from grpo.tracking.console import Console
from grpo.tracking.tracker import SilentTracker, Tracker
from grpo.types import Problem
from rewards import Pool, RewardSpec


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows that the config names, as problems."""

    sets: ProblemSets
    traces: list[Problem]
    evaluation: dict[str, list[Problem]]  # of evaluation.sets, by name
    problem_ids: dict[str, list[str]]  # of each source


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is made of a config before anything is written."""

    policy: Policy
    chat: Chat
    strategy: Strategy
    sampler: Sampler
    initial_weights: Callable[[], Mapping[str, Tensor]]
    steerer: Steerer | Unsteered
    sft_steering: Applied | None
    watched: Sequence[WatchedTrait]
    fitting: dict[str, list[Problem]]  # problems of train, validation and heldout whose prompts fit
    evaluation: dict[str, list[Problem]]  # those of evaluation.sets, by name


@contextmanager
def opened(
    config: RunConfig,
    *,
    world: World,
    start: Start,
    phases: tuple[Phase, ...],
    console: Console,
    should_stop: Callable[[], bool],
    must_stop: Callable[[], bool],
) -> Iterator[Run]:
    """A run with its folder locked and its workers started; both end with the context. Raises RunErrors by name.

    Without phases it is for what is done beside them: nothing is tracked.
    `should_stop` and `must_stop` say whether this process was asked to end, and whether it has to at once."""
    world.progress("start")
    if not world.is_main:
        console.be_quiet()
    rows = _rows(config, console)
    if world.is_main:
        RunFolder.check(config, problem_ids=rows.problem_ids, start=start, phases=phases)
        if phases not in ((), ("eval",)):  # which looks for what is there
            check_names(config, RunFolder.followed(config, rank=0), is_fresh=start == "fresh")
        if config.profile.folder is not None:
            check_store_folder(Path(config.profile.folder))
    own = {"config": config.model_dump(mode="json"), "rows": rows.problem_ids, "content": contents_of(config)}
    _check_alike(world, own)
    parts = _parts(config, rows, phases=phases, world=world, console=console, must_stop=must_stop)
    with ExitStack() as stack:
        folder = stack.enter_context(_folder(config, world, problem_ids=rows.problem_ids, start=start, phases=phases))
        console.log_to(folder.log)
        if world.watchdog is not None:
            world.watchdog.log_to(folder.log)
        pool = stack.enter_context(_pool(config.reward))
        tracks = world.is_main and phases != ()
        tracker = Tracker(folder, config, say=console.say) if tracks else SilentTracker()
        stack.callback(tracker.close)
        if world.is_main and "train" in phases and config.tracking.rollout_files:
            write_text(folder.vocabulary, json.dumps(parts.chat.token_texts()))  # for readers of rollouts' token ids
        try:
            yield _run(
                config,
                rows,
                parts,
                world=world,
                folder=folder,
                pool=pool,
                tracker=tracker,
                console=console,
                should_stop=lambda: world.any(should_stop()),
            )
        except GaveUp:
            raise Interrupted("stopped in the middle of sampling, which begins again: add --resume") from None


@contextmanager
def looked_at(config: RunConfig, path: Path, *, world: World, console: Console) -> Iterator[Run]:
    """The run in the folder `path` as it stands, whoever goes on with it: nothing in there is locked or written.

    Its workers end with the context. Raises RunFolderError where the folder is not of `config` and its problems."""
    folder = RunFolder(path)
    rows = _rows(config, console)
    folder.check_belongs(config, problem_ids=rows.problem_ids)
    parts = _parts(config, rows, phases=("train",), world=world, console=console, must_stop=lambda: False)
    with _pool(config.reward) as pool:
        yield _run(
            config,
            rows,
            parts,
            world=world,
            folder=folder,
            pool=pool,
            tracker=SilentTracker(),
            console=console,
            should_stop=lambda: False,
        )


def _rows(config: RunConfig, console: Console) -> _Rows:
    reward = practice.reward_spec(config.reward)
    sets = load_problem_sets(config.data, reward=reward, seed=config.run.seed)
    _check_column(config.evaluation.by_column, sets.heldout)
    traces = load_traces(config, sets, reward=reward, console=console) if config.sft is not None else []
    evaluation = _evaluation_sets(config, (*sets.train, *traces), console)
    return _Rows(sets=sets, traces=traces, evaluation=evaluation, problem_ids=_problem_ids(sets, traces, evaluation))


def _evaluation_sets(config: RunConfig, practised: Sequence[Problem], console: Console) -> dict[str, list[Problem]]:
    """The problems of evaluation.sets, after a word on each set: what was left out, and what is practised as well."""
    dropped: dict[str, dict[str, int]] = {}
    loaded = load_sets(config, dropped=dropped)
    for name, problems in loaded.items():
        left_out = "".join(f"; {count} dropped: {why}" for why, count in dropped[name].items())
        both = num_practised(problems, practised)
        warning = f"; {both} of them ask what is practised too, and say little about anything else" if both else ""
        console.say(f"{len(problems)} problems of evaluation.sets.{name}{left_out}{warning}")
    return loaded


def _parts(
    config: RunConfig,
    rows: _Rows,
    *,
    phases: tuple[Phase, ...],
    world: World,
    console: Console,
    must_stop: Callable[[], bool],
) -> _Parts:
    sets = rows.sets
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    world.progress("start, loading the model")
    tokenizer = load_tokenizer(config.model)
    model = load_model(config.model, tokenizer=tokenizer, seed=config.run.seed, device=world.device)
    world.progress("start")
    try:
        policy = Policy(model)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    steerer, sft_steering = _steering(config, policy, phases=phases)
    chat = Chat(tokenizer, config.chat, end_token_ids=end_token_ids(model, tokenizer))
    fitting = {
        name: _fitting(config, problems, chat, policy, console, name=name)
        for name, problems in (
            ("train", sets.train),
            ("validation", sets.validation),
            ("heldout", sets.heldout),
        )
    }
    evaluation = {
        name: _fitting(config, problems, chat, policy, console, name=f"evaluation.sets.{name}")
        for name, problems in rows.evaluation.items()
    }
    console.say(
        f"{len(fitting['train'])} problems to practise, {len(fitting['validation'])} for validation, "
        f"{len(fitting['heldout'])} held out" + "".join(f"; {n} dropped: {why}" for why, n in sets.dropped.items())
    )
    _check_alike(world, {"weights": {name: _digest(weight) for name, weight in model.named_parameters()}})
    strategy = _strategy(policy, world, config)
    if world.size > 1:
        console.say(strategy.describe())

    def on_progress() -> None:
        world.progress()
        if must_stop():
            raise GaveUp

    # An engine with a copy of its own takes the weights one at a time.
    source = strategy.sampling_policy if config.sampling.engine == "native" else strategy.handed_over
    with source() as sampled:
        sampler = made_sampler(
            config,
            sampled,
            end_token_ids=chat.end_token_ids,
            tokenizer=tokenizer,
            world=world,
            say=console.say,
            on_progress=on_progress,
        )
    console.say(
        "training: without padding, and a group's prompt is computed once"
        if policy.packs
        else f"training: padded, each rollout with its own prompt ({policy.why_not_packed})"
    )
    return _Parts(
        policy=policy,
        chat=chat,
        strategy=strategy,
        sampler=sampler,
        initial_weights=lambda: _initial_weights(config, tokenizer),
        steerer=steerer,
        sft_steering=sft_steering,
        watched=_watched(config, policy, steerer) if "train" in phases else [],
        fitting=fitting,
        evaluation=evaluation,
    )


def _steering(
    config: RunConfig, policy: Policy, *, phases: tuple[Phase, ...]
) -> tuple[Steerer | Unsteered, Applied | None]:
    """What steers the loop and the cold start. Other phases come before the vectors are there: they read no file."""
    seed, in_train = config.run.seed, config.steering
    is_read = "train" in phases or ("eval" in phases and config.evaluation.steered)
    in_sft = None if config.sft is None else config.sft.steering
    return (
        Unsteered() if in_train is None or not is_read else Steerer.of(in_train, policy, seed=seed),
        None if in_sft is None or "sft" not in phases else applied_to(policy, in_sft, seed=seed, field="sft.steering"),
    )


def _run(
    config: RunConfig,
    rows: _Rows,
    parts: _Parts,
    *,
    world: World,
    folder: RunFolder,
    pool: Pool,
    tracker: Tracker,
    console: Console,
    should_stop: Callable[[], bool],
) -> Run:
    rollouts = Rollouts(
        parts.sampler,
        parts.chat,
        pool,
        world=world,
        strategy=parts.strategy,
        seed=config.run.seed,
        success_threshold=config.reward.success_threshold,
        deterministic=config.distributed.deterministic,
        on_progress=console.sampling_progress,
    )
    return Run(
        config=config,
        world=world,
        folder=folder,
        policy=parts.policy,
        strategy=parts.strategy,
        initial_weights=parts.initial_weights,
        chat=parts.chat,
        rollouts=rollouts,
        pool=pool,
        watched=parts.watched,
        train=parts.fitting["train"],
        validation=parts.fitting["validation"],
        sets={"heldout": parts.fitting["heldout"], **parts.evaluation},
        traces=rows.traces,
        tracker=tracker,
        console=console,
        should_stop=should_stop,
        steerer=parts.steerer,
        sft_steering=parts.sft_steering,
    )


def _watched(config: RunConfig, policy: Policy, steerer: Steerer | Unsteered) -> list[WatchedTrait]:
    """What the loop watches. Raises ConfigError where what steers does not find there what it needs."""
    if not isinstance(steerer, Steerer):
        return load_watched(config, policy=policy)
    watched = load_watched(config, policy=policy, steered={steerer.trait: steerer.first_block})
    check_steered(config, watched, steered=steerer.trait, first_block=steerer.first_block)
    return watched


@contextmanager
def _folder(
    config: RunConfig,
    world: World,
    *,
    problem_ids: Mapping[str, Sequence[str]],
    start: Start,
    phases: tuple[Phase, ...],
) -> Iterator[RunFolder]:
    """The run's folder, opened by the main rank; the others see it once it is."""
    if world.is_main:
        with RunFolder.opened(config, problem_ids=problem_ids, start=start, phases=phases) as folder:
            world.broadcast(None)
            yield folder
        return
    world.broadcast(None)
    yield RunFolder.followed(config, rank=world.rank)


def _check_alike(world: World, own: Mapping[str, Mapping[str, object]]) -> None:
    """Raises ConfigError on every rank where one has another config, other rows or other weights than the main one.

    Ranks that differ would go on, each with a policy and problems of its own, and nothing would tell."""
    hashes = {
        f"{what}: {name}": hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
        for what, parts in own.items()
        for name, value in parts.items()
    }
    of_ranks = world.gather(hashes)
    for rank, found in enumerate(of_ranks):
        differing = sorted(n for n in found.keys() | of_ranks[0].keys() if found.get(n) != of_ranks[0].get(n))
        if differing:
            raise ConfigError(
                f"rank {rank} has not what rank 0 has ({_listed(differing)}); give every node the same YAML file, "
                "overrides, rows, files and model"
            )


def _listed(names: Sequence[str], *, most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _digest(weight: Tensor) -> list[float]:
    """A few numbers of a weight, enough to tell models apart at no cost."""
    numbers: list[float] = weight.detach().flatten()[:16].float().tolist()
    return numbers


def _strategy(policy: Policy, world: World, config: RunConfig) -> Strategy:
    if config.distributed.strategy == "ddp":
        return Replicated(policy, world, config.optim)
    from grpo.distributed.zero import Zero

    return Zero(policy, world, config)


def _initial_weights(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Tensor]:
    """Made again where they are asked for, which is once or twice in a run: held, they would take a model's memory."""
    return checkpoint.weights_of(initial_model(config.model, tokenizer=tokenizer, seed=config.run.seed))


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


def _problem_ids(
    sets: ProblemSets, traces: Sequence[Problem], evaluation: Mapping[str, Sequence[Problem]]
) -> dict[str, list[str]]:
    sources = {
        "data.train": sets.train,
        "data.validation": sets.validation,
        "data.heldout": sets.heldout,
        "sft.traces": traces,
        **{f"evaluation.sets.{name}": problems for name, problems in evaluation.items()},
    }
    return {source: [problem.id for problem in problems] for source, problems in sources.items()}


def _fitting(
    config: RunConfig, problems: Sequence[Problem], chat: Chat, policy: Policy, console: Console, *, name: str
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
