"""The sampling engines on one tiny policy, for the tests that hold for each of them."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.batch import TrainedRollout, micro_batches
from grpo.config import SamplingConfig
from grpo.distributed.world import World
from grpo.policy import Policy
from grpo.sampling.handover import adapter_rank
from grpo.sampling.native import NativeSampler
from grpo.sampling.protocol import Completion, Request, Sampler
from grpo.sampling.served import ServedSampler
from grpo.sampling.vllm import VllmSampler
from grpo.seeds import key
from grpo.tasks.list_machine import tokenizer
from grpo.types import Rollout
from tests.conftest import SIZES, tiny_policy
from tests.launch import launched
from tests.vllm_server import START_SECONDS, RealServer

END = 95
LIMIT = 24
STOP = ["7", "ab"]
ARCHITECTURE = SIZES | {"model_type": "qwen3", "head_dim": 32}
"""Heads of 32: vLLM's attention on a CPU has no smaller ones."""

LEARNING = {
    "sft": None,
    "curriculum": {"kind": "uniform", "max_refill_waves": 0},
    "reward.function": "coin",
    "train": {"steps": 25, "problems_per_step": 8, "group_size": 8, "tokens_per_micro_batch": 4096},
    "optim": {"learning_rate": 1e-2},
    "evaluation.every_steps": 0,
    "model.architecture": ARCHITECTURE,
}
"""Changes to a small run that has it learn in seconds: half of the rollouts are right at first, nearly all at last."""


class StoppedError(Exception):
    """What `Progress` ends a sampling by."""


class Progress:
    """What the engines here call between decodes; after `left` more calls it raises."""

    left: int | None = None

    def __call__(self) -> None:
        if self.left == 0:
            raise StoppedError
        self.left = None if self.left is None else self.left - 1


PROGRESS = Progress()

needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None, reason="needs vLLM, in an environment of its own: scripts/test_vllm.sh"
)


def small_policy(*, seed: int = 0, **changes: object) -> Policy:
    """The policy that the engines of these tests are made for; `seed` decides its weights."""
    return tiny_policy("qwen3", seed=seed, architecture=ARCHITECTURE, **changes)


def native_engine(policy: Policy, *, stop: Sequence[str] = ()) -> NativeSampler:
    config = SamplingConfig(max_completion_tokens=LIMIT, max_rows=16, stop_strings=list(stop))
    return NativeSampler(policy, config, end_token_ids=(END,), tokenizer=tokenizer(), on_progress=PROGRESS)


def vllm_engine(policy: Policy, *, stop: Sequence[str] = (), shares_process_group: bool = False) -> VllmSampler:
    own = {"eager": True, "seeds": "engine", "cache_gib": 0.1, "check_every_syncs": 1}
    fields = {"engine": "vllm", "vllm": own, "max_completion_tokens": LIMIT, "max_rows": 16}
    config = SamplingConfig.model_validate(fields | {"prefill_tokens": 256, "stop_strings": list(stop)})
    return VllmSampler(
        policy,
        config,
        end_token_ids=(END,),
        tokenizer=tokenizer(),
        context_tokens=256,
        shares_process_group=shares_process_group,
        on_progress=PROGRESS,
    )


def served_engine(
    policy: Policy, *urls: str, folder: Path, stop: Sequence[str] = (), world: World | None = None
) -> ServedSampler:
    """Of real servers, which see `folder`."""
    own = {"mode": "server", "urls": list(urls), "exchange_folder": str(folder), "seeds": "engine"}
    own |= {"timeout_seconds": 2 * START_SECONDS, "check_every_syncs": 1}
    fields = {"engine": "vllm", "vllm": own, "max_completion_tokens": LIMIT, "max_rows": 16}
    return ServedSampler(
        policy,
        SamplingConfig.model_validate(fields | {"stop_strings": list(stop)}),
        end_token_ids=(END,),
        context_tokens=256,
        world=world or World.alone(),
        on_progress=PROGRESS,
    )


@cache
def _kept_vllm_engine(with_stop: bool, lora_rank: int | None) -> VllmSampler:
    # Seconds to make, and vLLM lets go of its memory with the process alone.
    adapters = {} if lora_rank is None else {"lora": {"rank": lora_rank}}
    return vllm_engine(small_policy(**adapters), stop=STOP if with_stop else ())


Maker = Callable[..., Sampler]
"""Makes a sampler of a policy's weights; `stop=True` has it stop at the strings of STOP."""


def made_native(policy: Policy, *, stop: bool = False) -> Sampler:
    return native_engine(policy, stop=STOP if stop else ())


def made_vllm(policy: Policy, *, stop: bool = False) -> Sampler:
    """vLLM's engine in this process, which is made once and handed the weights."""
    kept = _kept_vllm_engine(stop, adapter_rank(policy.model))
    kept.load_weights(policy)
    return kept


@contextmanager
def made_by_servers(folder: Path) -> Iterator[Maker]:
    """By real servers that start at first need, one for policies with adapters and one for those without."""
    started: dict[bool, RealServer] = {}

    def made(policy: Policy, *, stop: bool = False) -> Sampler:
        is_adapted = adapter_rank(policy.model) is not None
        if is_adapted not in started:
            options = ("--enable-lora", "--max-lora-rank", "8") if is_adapted else ()
            # Under adapters a server's own weights stay: they are the run's. Else they are replaced.
            own = small_policy() if is_adapted else small_policy(seed=5)
            started[is_adapted] = RealServer(own, folder / f"adapted_{is_adapted}", *options)
            started[is_adapted].start()
            started[is_adapted].wait()
        stops = STOP if stop else ()
        return served_engine(policy, started[is_adapted].url, folder=folder / "exchange", stop=stops)

    try:
        yield made
    finally:
        for server in started.values():
            server.kill()


def requests_of(number: int, *, rollouts: int, temperature: float = 1.0) -> list[Request]:
    rng = random.Random(number)
    return [
        Request(
            prompt_ids=tuple(rng.randrange(95) for _ in range(rng.randrange(1, 40))),
            keys=tuple(key(0, "test", index, attempt) for attempt in range(rollouts)),
            temperature=temperature,
        )
        for index in range(number)
    ]


def largest_gap(policy: Policy, requests: Sequence[Request], completions: Sequence[Completion]) -> float:
    """Largest difference between the sampler's log-probs and those that training computes, nats."""
    rollouts = [_rollout(requests[c.request], c) for c in completions]
    trained = [TrainedRollout(rollout=r, advantage=1.0, group_tokens=r.num_actions, group_rollouts=1) for r in rollouts]
    batches = micro_batches(
        [trained], tokens_per_micro_batch=400, limit_tokens=LIMIT, aggregation="token", device=torch.device("cpu")
    )
    with torch.no_grad():
        return max(float((policy(batch)[1] - batch.sampler_logprobs).abs().max()) for batch in batches)


def _rollout(request: Request, completion: Completion) -> Rollout:
    num_prompt, num_drawn = len(request.prompt_ids), len(completion.token_ids)
    return Rollout(
        problem_id=str(completion.request),
        attempt=completion.index,
        token_ids=request.prompt_ids + completion.token_ids,
        action_mask=(False,) * num_prompt + (True,) * num_drawn,
        logprobs=(0.0,) * num_prompt + completion.logprobs,
        kept=completion.kept,
        stop_reason=completion.stop_reason,
        temperature=request.temperature,
        policy_step=0,
    )


def found_by_ranks(*arguments: str | Path) -> list[dict[str, Any]]:
    """What each of two ranks of tests/workers/vllm_worker.py saw."""
    said = launched("tests/workers/vllm_worker.py", *arguments, ranks=2, limit_seconds=2 * START_SECONDS)
    found = next(line for line in said.splitlines() if line.startswith("found "))
    of_ranks: list[dict[str, Any]] = json.loads(found.removeprefix("found "))
    return of_ranks
