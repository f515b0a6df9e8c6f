"""Whether this device computes a row alike whatever is computed beside it, asked of the policy itself at the start.

Where it does, a rollout's tokens are the same on one process and on many. Noise never differs; only the logits can."""

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo.config import SamplingConfig
from grpo.model import max_positions
from grpo.policy import Policy
from grpo.sampling.decoder import Decoder
from grpo.sampling.prefixes import SHARED_TOKENS
from grpo.sampling.protocol import Request
from grpo.sampling.rows import LEAST_WIDTH_TOKENS, MIN_ROWS, Prefix, Rows

NUM_STEPS = 3
MOST_ROWS = 64  # of a layout that is looked at; more would take long where the model is large
COMPARED_TOKENS = (2, 9, 15, SHARED_TOKENS + 6)
"""Prompts whose logits are compared: shorter than a vector register, a little longer, a whole prefill, a shared one."""
NEIGHBOUR_TOKENS = (5, 14, LEAST_WIDTH_TOKENS + 9, SHARED_TOKENS + 9)
"""Prompts beside them: of the same padded length; one that makes attention wider, a shared one."""


@torch.no_grad()
def layout_gap(policy: Policy, config: SamplingConfig, *, decoder: Decoder) -> float:
    """Largest difference between the logits of a few rows decoded in other company; 0.0 where all bits are equal.

    The company: other rows and neighbours, another width, a prefill alone or with others. Of the first decode that
    differs, since what follows may have drawn another token."""
    alone = _decoded(policy, config, decoder, num_rows=MIN_ROWS, is_crowded=False)
    # Three rows more, since two threads cut eight rows and eleven differently; then as many as sampling would have.
    counts = dict.fromkeys((MIN_ROWS + 3, max(MIN_ROWS, min(config.max_rows, MOST_ROWS))))
    for crowded in (_decoded(policy, config, decoder, num_rows=count, is_crowded=True) for count in counts):
        for one, other in zip(alone, crowded, strict=True):
            if not torch.equal(one, other):
                return float((one - other).abs().max())
    return 0.0


def verdict(gap: float) -> str:
    """A sentence on a `layout_gap`."""
    if gap == 0:
        return "sampling: batch-invariant on this device: a rollout's tokens do not depend on its neighbours"
    return (
        f"sampling: not batch-invariant here (logits off by up to {gap:.1g}): tokens can differ between numbers of "
        "ranks where two are tied to rounding"
    )


def _decoded(
    policy: Policy, config: SamplingConfig, decoder: Decoder, *, num_rows: int, is_crowded: bool
) -> list[Tensor]:
    """Logits [C, V] of each decode of the C compared prompts, float32, and last their log-probs [C, NUM_STEPS]."""
    config = config.model_copy(update={"max_completion_tokens": NUM_STEPS})
    neighbours = [_request(length, policy) for length in NEIGHBOUR_TOKENS] if is_crowded else []
    compared = [_request(length, policy) for length in COMPARED_TOKENS]
    requests = [*neighbours, *compared]
    rows = Rows(num_rows, config=config, policy=policy, decoder=decoder)
    together = rows.prefill_batches(range(len(requests)), requests, budget_tokens=config.prefill_tokens)
    batches = list(together) if is_crowded else [[place] for place in range(len(requests))]
    prefixes: dict[int, Prefix] = {}
    for batch in batches:
        cache = rows.prefill([requests[place].prompt_ids[:-1] for place in batch])
        prefixes |= {place: Prefix(request=place, cache=cache, source=source) for source, place in enumerate(batch)}
    for place in range(len(neighbours)):
        # Neighbours first, so that the compared rows are the last ones: no row stays where it was.
        share = range(place, num_rows - len(compared), len(neighbours))
        rows.enter([0] * len(share), requests[place], prefix=prefixes[place])
    for place in range(len(neighbours), len(requests)):
        rows.enter([0], requests[place], prefix=prefixes[place])
    first = num_rows - len(compared) if is_crowded else 0
    own = slice(first, first + len(compared))
    found = []
    for _ in range(NUM_STEPS):
        logits = rows.logits()  # [R, V]
        found.append(logits[own].float())
        rows.draw(logits)
    return [*found, rows.logprobs[own]]


def _request(length: int, policy: Policy) -> Request:
    context = max_positions(policy.model)
    length = length if context is None else max(1, min(length, context - NUM_STEPS))
    ids: Sequence[int] = [(7 * place + length) % policy.vocabulary for place in range(length)]
    return Request(prompt_ids=tuple(ids), keys=(length,), temperature=1.0)
