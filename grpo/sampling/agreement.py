"""Whether an engine that holds a copy of the policy computes what the policy computes, asked of both at the start."""

import torch

from grpo.errors import ConfigError
from grpo.logprobs import tempered
from grpo.model import max_positions
from grpo.policy import Policy
from grpo.sampling.protocol import Completion, Request, Sampler

PROMPTS_TOKENS = (1, 3, 18)
"""Prompts that are asked, of which one is longer than a block of vLLM's cache."""
NUM_DRAWS = 2  # of each
TEMPERATURE = 0.8  # not 1, so that leaving it out is seen
AGREEMENT_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Mean gap of log-probs above which the engine is not of this policy: above rounding, whatever the size of the logits
of a trained model, below what a weight of another name or a missing bias does."""


@torch.no_grad()
def check_agreement(sampler: Sampler, policy: Policy, *, engine: str) -> float:
    """Draw a few tokens and score them by `policy`'s own forward; returns the largest gap of a log-prob, nats.

    Raises ConfigError where they are apart, or where the engine fails at its first tokens."""
    longest = max_positions(policy.model)
    lengths = [length for length in PROMPTS_TOKENS if longest is None or length < longest]
    requests = [
        Request(
            prompt_ids=tuple((5 * place + length) % policy.vocabulary for place in range(length)),
            keys=tuple(range(NUM_DRAWS)),
            temperature=TEMPERATURE,
            limit_tokens=1,
        )
        for length in lengths
    ]
    try:
        completions = list(sampler.sample(requests))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what an engine's kernels raise for a shape that they do not know
        raise ConfigError(
            f"sampling.engine: {engine} fails at this model's first token ({error}); take another model, or set "
            "sampling.engine: native"
        ) from error
    gaps = [abs(completion.logprobs[0] - _own(policy, requests, completion)) for completion in completions]
    if not sum(gaps) / len(gaps) <= AGREEMENT_NATS[policy.dtype]:
        raise ConfigError(
            f"sampling.engine: {engine} has other log-probs than the policy (off by {max(gaps):.2g} nats at most): "
            "it does not hold this model as it is. Set sampling.engine: native"
        )
    return max(gaps)


def _own(policy: Policy, requests: list[Request], completion: Completion) -> float:
    request = requests[completion.request]
    ids = torch.tensor([request.prompt_ids], device=policy.device)  # [1, T]
    logits = policy.head(policy.hidden(ids)[:, -1])  # [1, V]
    temperature = torch.tensor([request.temperature], device=policy.device)
    return float(tempered(logits, temperature=temperature).log_softmax(dim=-1)[0, completion.token_ids[0]])
