"""Both sampling engines on one tiny policy, for the tests that hold for either."""

import random
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import pytest
import torch

from grpo.batch import TrainedRollout, micro_batches
from grpo.config import SamplingConfig
from grpo.policy import Policy
from grpo.sampling.native import NativeSampler
from grpo.sampling.protocol import Completion, Request, Sampler
from grpo.sampling.vllm import VllmSampler
from grpo.seeds import key
from grpo.tasks.list_machine import tokenizer
from grpo.types import Rollout
from tests.conftest import SIZES, tiny_policy

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

needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None, reason="needs vLLM, in an environment of its own: scripts/test_vllm.sh"
)


def small_policy(*, seed: int = 0, **changes: object) -> Policy:
    """The policy that the engines of these tests are made for; `seed` decides its weights."""
    return tiny_policy("qwen3", seed=seed, architecture=ARCHITECTURE, **changes)


def native_engine(policy: Policy, *, stop: Sequence[str] = ()) -> NativeSampler:
    config = SamplingConfig(max_completion_tokens=LIMIT, max_rows=16, stop_strings=list(stop))
    return NativeSampler(policy, config, end_token_ids=(END,), tokenizer=tokenizer())


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
    )


@cache
def _kept_vllm_engine(with_stop: bool) -> VllmSampler:
    # Seconds to make, and vLLM lets go of its memory with the process alone.
    return vllm_engine(small_policy(), stop=STOP if with_stop else ())


def engine(name: str, policy: Policy, *, stop: bool = False) -> Sampler:
    """The engine of that name on `policy`'s weights; vLLM's is made once a process and handed the weights."""
    if name == "native":
        return native_engine(policy, stop=STOP if stop else ())
    kept = _kept_vllm_engine(stop)
    kept.load_weights(policy)
    return kept


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
