"""Corrections for a sampler that draws from another distribution than the trainer's: expected gradients by enumeration.

One token is drawn of six. Both distributions are written down, so that what a correction leaves of the mismatch is a
sum of six terms."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from grpo.config import LossConfig
from grpo.losses import LossTerms, policy_loss

POLICY = torch.tensor([0.40, 0.25, 0.20, 0.10, 0.04, 0.01], dtype=torch.float64)  # [V], before the update, as trained
SAMPLER = torch.tensor([0.35, 0.15, 0.30, 0.15, 0.01, 0.04], dtype=torch.float64)  # [V], what the tokens are drawn from
RATIOS = (8 / 7, 5 / 3, 2 / 3, 2 / 3, 4.0, 0.25)  # policy over sampler
ADVANTAGES = torch.tensor([1.0, -0.5, 0.25, -2.0, 3.0, -1.5], dtype=torch.float64)  # [V], of a rollout of each token

surrogates = pytest.mark.parametrize("surrogate", ["clip", "cispo"])


def expected_gradient(*, surrogate: str, **correction: object) -> tuple[Tensor, LossTerms]:
    """Gradient of the loss with respect to the logits [V], in expectation over what the sampler draws."""
    logits = POLICY.log().requires_grad_()
    terms = policy_loss(
        logits.log_softmax(dim=0),
        old_logprobs=POLICY.log(),
        sampler_logprobs=SAMPLER.log(),
        advantages=ADVANTAGES,
        rollout_index=torch.arange(len(POLICY)),
        weights=SAMPLER,  # each token as often as it is drawn
        config=LossConfig.model_validate({"surrogate": surrogate} | correction),
    )
    terms.loss.backward()
    assert logits.grad is not None
    return logits.grad, terms


def of_token(token: int) -> Tensor:
    """Gradient of −advantage · log π of one token with respect to the logits [V]."""
    one_hot = torch.zeros_like(POLICY)
    one_hot[token] = 1.0
    return -ADVANTAGES[token] * (one_hot - POLICY)


def exact() -> Tensor:
    """Gradient of −Σ π·A, [V]: what a sampler without a mismatch has in expectation."""
    return -POLICY * (ADVANTAGES - (POLICY * ADVANTAGES).sum())


def test_the_mismatch_is_the_one_that_is_written_down():
    assert (POLICY / SAMPLER).tolist() == pytest.approx(RATIOS)
    assert float(POLICY.sum()) == float(SAMPLER.sum()) == pytest.approx(1.0)
    # Σ π·A = 0.4 − 0.125 + 0.05 − 0.2 + 0.12 − 0.015 = 0.23; the first entry is −0.4 · (1 − 0.23).
    assert exact().tolist() == pytest.approx([-0.308, 0.1825, -0.004, 0.223, -0.1108, 0.0173])


@surrogates
def test_truncated_weights_give_the_exact_gradient_where_the_cap_does_not_bind(surrogate):
    gradient, terms = expected_gradient(surrogate=surrogate, correction="truncated", correction_high=4.5)
    assert_close(gradient, exact(), rtol=1e-12, atol=1e-15)
    assert terms.correction.tolist() == pytest.approx(RATIOS)


@surrogates
def test_truncated_weights_are_off_by_what_the_cap_cuts_from_the_one_token_above_it(surrogate):
    gradient, terms = expected_gradient(surrogate=surrogate, correction="truncated")
    assert terms.correction.tolist() == pytest.approx([*RATIOS[:4], 2.0, RATIOS[5]])
    # The fifth token counts 2 · 0.01 and not 0.04.
    assert_close(gradient - exact(), (0.02 - 0.04) * of_token(4), rtol=1e-12, atol=1e-15)
    assert float((gradient - exact())[4]) == pytest.approx(0.02 * 3.0 * 0.96)


@surrogates
def test_without_a_correction_the_gradient_is_off_by_the_difference_of_the_distributions(surrogate):
    gradient, terms = expected_gradient(surrogate=surrogate, correction="none")
    off = sum((SAMPLER[token] - POLICY[token]) * of_token(token) for token in range(len(POLICY)))
    assert isinstance(off, Tensor)
    assert_close(gradient - exact(), off, rtol=1e-12, atol=1e-15)
    # Σ sampler·A = 0.35 − 0.075 + 0.075 − 0.3 + 0.03 − 0.06 = 0.02, so that entry v is −(sampler·A − 0.02 · π).
    assert gradient.tolist() == pytest.approx([-0.342, 0.08, -0.071, 0.302, -0.0292, 0.0602])
    assert terms.correction.tolist() == [1.0] * 6


@surrogates
@pytest.mark.parametrize(
    ("low", "high", "masked"),
    [(0.5, 2.0, {4, 5}), (0.2, 2.0, {4}), (0.5, 5.0, {5}), (0.7, 1.5, {1, 2, 3, 4, 5}), (0.2, 5.0, set())],
)
def test_icepop_masks_exactly_the_tokens_outside_its_bounds_and_loses_their_part(surrogate, low, high, masked):
    bounds = {"correction_low": low, "correction_high": high}
    gradient, terms = expected_gradient(surrogate=surrogate, correction="icepop", **bounds)
    assert set((terms.correction == 0).nonzero().flatten().tolist()) == masked
    kept = [token for token in range(len(POLICY)) if token not in masked]
    assert terms.correction[kept].tolist() == pytest.approx([RATIOS[token] for token in kept])
    lost = sum((POLICY[token] * of_token(token) for token in masked), torch.zeros_like(POLICY))
    assert_close(gradient, exact() - lost, rtol=1e-12, atol=1e-15)


def test_icepops_own_bounds_are_a_half_and_two():
    _, terms = expected_gradient(surrogate="clip", correction="icepop")
    assert (terms.correction == 0).tolist() == [False] * 4 + [True] * 2
