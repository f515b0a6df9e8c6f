"""`grpo check --time`: how long a step will take, from a few seconds of the run's own model on this machine.

It decodes as many rows as a run does, at two lengths, and takes the difference for the price of a token of every row;
then it trains on one micro-batch. What is left out is what a model of the config does not decide: rewards that are
slower than sampling, refills, evaluations, messages between ranks."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from grpo.check import longest_tokens
from grpo.config import RunConfig
from grpo.distributed.world import World
from grpo.model import load_model, load_tokenizer, max_positions
from grpo.optim import Optimizer
from grpo.policy import Policy
from grpo.probe import batch_of, device_of, loss_of
from grpo.recipe import stages_of
from grpo.sampling.engines import made_sampler
from grpo.sampling.protocol import Request
from grpo.tracking.live import duration
from grpo.types import Stage

SHORT_TOKENS, LONG_TOKENS = 8, 40
PROMPT_TOKENS = 64
SHARES = (1.0, 0.5, 0.25)
"""Mean lengths of completions, as shares of the limit, for which a step is told: nobody knows them beforehand."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What was measured: seconds to decode one token of each of `num_rows` rows, and to train on a token."""

    num_rows: int
    decode_seconds: float
    train_seconds_per_token: float
    update_seconds: float


def pace_lines(config: RunConfig, *, num_ranks: int) -> Iterator[str]:
    """What was measured, and from it the time of a step of each stage on `num_ranks` ranks like this machine's.

    Raises what a run would raise for its model."""
    device = device_of(config)
    pace = measured(config, device=device, num_ranks=num_ranks)
    yield (
        f"measured on {device}: {pace.num_rows} rows decode a token in {pace.decode_seconds * 1000:.1f} ms, training "
        f"takes {1 / pace.train_seconds_per_token:,.0f} tokens a second, an update {pace.update_seconds:.3f} s"
    )
    for number, stage in enumerate(stages_of(config), start=1):
        for share in SHARES:
            tokens = max(1, round(share * stage.max_completion_tokens))
            sampling, training = step_seconds(config, stage, pace, mean_tokens=tokens, num_ranks=num_ranks)
            yield (
                f"stage {number}, completions of {tokens:,} tokens in the mean: a step of "
                f"{stage.problems_per_step * stage.group_size:,} rollouts takes {_told(sampling + training)} "
                f"(sampling {_told(sampling)}, training {_told(training)}), {config.train.steps:,} of them "
                f"{duration(config.train.steps * (sampling + training))}"
            )
    yield "without refills, evaluations and messages between ranks; longer completions cost more a token than these did"


def step_seconds(
    config: RunConfig, stage: Stage, pace: Pace, *, mean_tokens: int, num_ranks: int
) -> tuple[float, float]:
    """Seconds of sampling and of training of a step whose completions have `mean_tokens` in the mean, on each rank.

    Rows that end are filled again, so that they are full but for the last ones."""
    train = config.train
    rollouts = stage.problems_per_step * stage.group_size / num_ranks
    sampling = max(1.0, rollouts / pace.num_rows) * mean_tokens * pace.decode_seconds
    updates = train.minibatches_per_step * train.epochs_per_step
    # Old log-probs of the policy take a forward pass where the step has a second update: a third of forward and
    # backward.
    passes = train.epochs_per_step + (1 / 3 if train.old_logprobs == "policy" and updates > 1 else 0.0)
    return sampling, passes * rollouts * mean_tokens * pace.train_seconds_per_token + updates * pace.update_seconds


def measured(config: RunConfig, *, device: torch.device, num_ranks: int) -> Pace:
    """Decode and train for some seconds. One process holds everything whole, as ddp does."""
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    tokenizer = load_tokenizer(config.model)
    policy = Policy(load_model(config.model, tokenizer=tokenizer, seed=config.run.seed, device=device))
    longest = longest_tokens(config, max_positions(policy.model))
    most = max(stage.problems_per_step * stage.group_size for stage in stages_of(config))
    num_rows = max(1, min(config.sampling.max_rows, most // num_ranks))
    # No token ends a completion: all of them have the length that was asked for.
    sampler = made_sampler(
        config.model_copy(update={"sampling": config.sampling.model_copy(update={"stop_strings": []})}),
        policy,
        end_token_ids=(),
        tokenizer=tokenizer,
        world=World.alone(device),
        say=lambda line: None,
        on_progress=lambda: None,
    )
    limit = min(LONG_TOKENS, config.sampling.max_completion_tokens, max(2, longest // 2))
    prompt = tuple(n % policy.vocabulary for n in range(max(1, min(PROMPT_TOKENS, longest - limit))))
    short = min(SHORT_TOKENS, limit - 1)
    seconds = {}
    for tokens in (short, short, limit):  # the first is to warm up
        asked = Request(prompt_ids=prompt, keys=tuple(range(num_rows)), temperature=1.0, limit_tokens=tokens)
        started = _now(device)
        for _ in sampler.sample([asked]):
            pass
        seconds[tokens] = _now(device) - started
    decode = max(seconds[limit] - seconds[short], 1e-9) / (limit - short)
    rows = max(1, min(config.train.tokens_per_micro_batch // longest, most))
    training, update = _training(policy, config, rows=rows, num_tokens=longest, device=device)
    return Pace(num_rows, decode, training / (rows * longest), update)


def _training(
    policy: Policy, config: RunConfig, *, rows: int, num_tokens: int, device: torch.device
) -> tuple[float, float]:
    """Seconds of a micro-batch, forward and backward, and of an update."""
    optimizer = Optimizer(policy.model, config.optim)
    batch = batch_of(policy, config, rows=rows, num_tokens=num_tokens)
    optimizer.backward(loss_of(policy, batch))
    optimizer.update(rate=config.optim.learning_rate)
    started = _now(device)
    optimizer.backward(loss_of(policy, batch))
    trained = _now(device)
    optimizer.update(rate=config.optim.learning_rate)
    return trained - started, _now(device) - trained


def _told(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
