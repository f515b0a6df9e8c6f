"""Decoders on trial at the start: the fastest one that is for a policy and computes what its model does decodes it."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from grpo.config import SamplingConfig
from grpo.errors import ConfigError
from grpo.model import base_of, max_positions
from grpo.policy import Policy
from grpo.sampling.decoder import Decoder, ModelDecoder
from grpo.sampling.fused import FusedDecoder, why_not_fused
from grpo.sampling.graphs import RecordedDecoder
from grpo.sampling.prefixes import SHARED_TOKENS
from grpo.sampling.protocol import Request
from grpo.sampling.rows import MIN_ROWS, Prefix, Rows

# Share of the logits' spread by which a decode may differ from a forward: above rounding (in bfloat16 0.03 at 28
# layers), below what a wrong mask or position does to a model with opinions.
DECODING_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}

CHECKED_TOKENS = (3, 12, SHARED_TOKENS + 9)
"""Prompts by which decoding is checked: two of one prefill, and one that is stored apart."""
MOST_CHECKED_TOKENS = 1024
RECORDED_DECODES = 4
"""By which a recording decoder is checked: one as ever, one recorded and two replayed."""


@torch.no_grad()
def check_decoding(policy: Policy) -> None:
    """Decode rows of unequal length from the cache, and compare with the forward that training scores by.

    Raises ConfigError where the logits differ or an architecture's own code fails: nothing is sampled wrongly."""
    name = type(base_of(policy.model)).__name__
    try:
        gap, spread = _decoding_gap(policy, ModelDecoder(policy))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the code of any architecture raises
        raise ConfigError(
            f"model: {name} cannot be decoded by the native sampler ({type(error).__name__}: {error}); take a model of "
            "another architecture"
        ) from error
    if not gap <= DECODING_TOLERANCE[policy.dtype] * spread:
        raise ConfigError(
            f"model: {name} is decoded wrongly by the native sampler (logits off by {gap:.2g}, where they spread by "
            f"{spread:.2g}); take a model of another architecture"
        )


@torch.no_grad()
def decoder_of(policy: Policy) -> tuple[Decoder, str]:
    """The fastest decoder that is for this policy and decodes what its model does, and why it is no faster one: empty
    where it is fused products, or a GPU's recorded decodes."""
    if policy.device.type == "cuda":
        if policy.in_lock_step:
            return ModelDecoder(policy), "its weights are gathered layer by layer, which is not recorded"
        ways = [
            ("a kernel that takes masks, in CUDA graphs", partial(_recorded, policy, on_gpu=True)),
            ("CUDA graphs", partial(_recorded, policy, on_gpu=False)),
        ]
        decoder, why_not = _first_right(policy, ways, num_decodes=RECORDED_DECODES)
        if isinstance(decoder, RecordedDecoder):
            decoder.is_on_trial = False
        return decoder, why_not
    why_not = why_not_fused(policy)
    if why_not:
        return ModelDecoder(policy), why_not
    return _first_right(policy, [("fused products", partial(FusedDecoder, policy))], num_decodes=1)


def _recorded(policy: Policy, *, on_gpu: bool) -> RecordedDecoder:
    return RecordedDecoder(ModelDecoder(policy, on_gpu=on_gpu), policy)


def _first_right(
    policy: Policy, ways: Iterable[tuple[str, Callable[[], Decoder]]], *, num_decodes: int
) -> tuple[Decoder, str]:
    """The first of these decoders that decodes what the policy's model does, else its own layers; and why not those
    before it."""
    reasons = []
    for what, make in ways:
        try:
            decoder = make()
            gap, spread = _decoding_gap(policy, decoder, num_decodes=num_decodes)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what another version of an architecture's code may lack, or a GPU may not do
            reasons.append(f"{what}: {type(error).__name__}: {error}")
            continue
        if gap <= DECODING_TOLERANCE[policy.dtype] * spread:
            return decoder, "; ".join(reasons)
        reasons.append(f"{what}: logits off by {gap:.2g}, where they spread by {spread:.2g}")
    return ModelDecoder(policy), "; ".join(reasons)


def _decoding_gap(policy: Policy, decoder: Decoder, *, num_decodes: int = 1) -> tuple[float, float]:
    """How far logits of rows of unequal length, decoded from the cache, are off the whole forward's, as a root of mean
    squares, and how far those spread. Between two decodes each row draws a token."""
    context = max_positions(policy.model)
    lengths = [length for length in CHECKED_TOKENS if context is None or length + num_decodes <= context + 1]
    prompts = [tuple((5 * i + 1) % policy.vocabulary for i in range(length)) for length in lengths]
    entered: list[tuple[int, ...]] = []
    rows = Rows(MIN_ROWS, config=SamplingConfig(max_completion_tokens=num_decodes), policy=policy, decoder=decoder)
    requests = [Request(prompt_ids=prompt, keys=(0,), temperature=1.0) for prompt in prompts]
    for batch in rows.prefill_batches(range(len(prompts)), requests, budget_tokens=MOST_CHECKED_TOKENS):
        cache = rows.prefill([prompts[place][:-1] for place in batch])
        for source, place in enumerate(batch):
            rows.enter([0], requests[place], prefix=Prefix(request=place, cache=cache, source=source))
            entered.append(prompts[place])
    found, expected = [], []
    for _ in range(num_decodes):
        logits = rows.logits()  # [R, V]
        found.append(logits[: len(prompts)].float())
        drawn = [(prompt, rows.token_ids(row)) for row, prompt in enumerate(entered)]
        expected.append(torch.cat([_last_logits(policy, *ids) for ids in drawn]).float())
        rows.draw(logits)
    of_forward = torch.stack(expected)  # [N, C, V]
    return float((torch.stack(found) - of_forward).square().mean().sqrt()), float(of_forward.std())


def _last_logits(policy: Policy, prompt: Sequence[int], drawn: Sequence[int]) -> Tensor:
    ids = torch.tensor([[*prompt, *drawn]], device=policy.device)  # [1, T]
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    chooses = chosen.clone()
    # As in decodes, which steer too if the policy is steered.
    chosen[:, len(prompt) :] = chooses[:, len(prompt) - 1 :] = True
    steer_at = policy.steered_at(chooses=chooses, chosen=chosen)
    return policy.head(policy.hidden(ids, steer_at=steer_at)[:, -1])  # [1, V]
