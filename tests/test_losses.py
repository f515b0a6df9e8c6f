"""The loss against TRL's own on random tensors, forward and gradient, and by hand where TRL defines none."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from trl.trainer.grpo_trainer import GRPOTrainer

from grpo.config import LossConfig
from grpo.losses import Denominators, LossTerms, policy_loss, rollout_mean, token_weights

LENGTHS = (7, 1, 12, 4, 9, 12)  # action tokens of six rollouts, two groups of three
GROUPS = (0, 0, 0, 1, 1, 1)
LIMIT_TOKENS = 16
AGGREGATION_OF = {"grpo": "sequence", "dapo": "token", "dr_grpo": "constant", "cispo": "token"}


class Case:
    """Padded random tensors [B, T] in float64 for TRL, and the same numbers flat [A] for us."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)  # [B, T]
        shape = self.mask.shape
        self.logprobs = -3 * torch.rand(shape, generator=generator, dtype=torch.float64)
        # Wide enough that every side of every bound is met.
        self.old = self.logprobs + 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64)
        self.sampler = self.old + 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64)
        self.advantages = torch.randn(len(LENGTHS), generator=generator, dtype=torch.float64)
        self.rollout_index = self.mask.nonzero()[:, 0]


def weights_of(case: Case, *, aggregation: str, limit_tokens: int = LIMIT_TOKENS) -> Tensor:
    own = case.mask.sum(dim=1)
    groups = torch.tensor(GROUPS)
    of_group = torch.stack([own[groups == group].sum() for group in GROUPS])
    denominators = Denominators(
        num_tokens=int(own.sum()), num_rollouts=len(own), num_groups=len(set(GROUPS)), limit_tokens=limit_tokens
    )
    return token_weights(own, of_group, denominators=denominators, aggregation=aggregation)[case.rollout_index]


def our_loss(case: Case, config: LossConfig) -> tuple[LossTerms, Tensor]:
    """Terms, and the gradient with respect to the log-probs [B, T]."""
    leaf = case.logprobs.clone().requires_grad_()
    terms = policy_loss(
        leaf[case.mask],
        old_logprobs=case.old[case.mask],
        sampler_logprobs=case.sampler[case.mask],
        advantages=case.advantages[case.rollout_index],
        rollout_index=case.rollout_index,
        weights=weights_of(case, aggregation=config.aggregation),
        config=config,
    )
    terms.loss.backward()
    assert leaf.grad is not None
    return terms, leaf.grad


def trl_loss(
    case: Case,
    *,
    loss_type: str,
    level: str = "token",
    low: float = 0.2,
    high: float = 0.28,
    delta: float | None = None,
    correction: Tensor | None = None,
) -> tuple[Tensor, Tensor, dict[str, list[float]]]:
    """TRL's loss, its gradient [B, T] and its metrics, from its own `_compute_loss` and nothing but what that reads."""
    leaf = case.logprobs.clone().requires_grad_()
    metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (leaf, torch.zeros_like(leaf), None),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        args=SimpleNamespace(delta=delta, steps_per_generation=1, report_to=[]),
        state=SimpleNamespace(global_step=0),
        model=SimpleNamespace(training=True),
        is_world_process_zero=lambda: False,
        aux_loss_enabled=False,
        beta=0.0,
        current_gradient_accumulation_steps=1,
        epsilon_low=low,
        epsilon_high=high,
        importance_sampling_level=level,
        loss_type=loss_type,
        max_completion_length=LIMIT_TOKENS,
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=correction is not None,
        vllm_importance_sampling_correction=True,
        _entropy_bonus_enabled=False,
        _metrics=metrics,
    )
    ids = torch.zeros(case.mask.shape, dtype=torch.long)
    inputs: dict[str, Any] = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones_like(ids[:, :1]),
        "completion_ids": ids,
        "completion_mask": case.mask.long(),
        "advantages": case.advantages,
        "old_per_token_logps": case.old,
        "num_items_in_batch": case.mask.sum(),
    }
    if correction is not None:
        inputs["importance_sampling_ratio"] = correction
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    assert leaf.grad is not None
    return loss, leaf.grad, metrics["train"]


def assert_same_as_trl(config: LossConfig, cases: Sequence[Case], **choices: Any) -> None:
    """Forward and gradient agree on every case, and some gradient is not zero."""
    largest = 0.0
    for case in cases:
        terms, gradient = our_loss(case, config)
        loss, expected, _ = trl_loss(case, **choices)
        # Weights are float32, everything else float64.
        assert_close(terms.loss, loss, rtol=2e-7, atol=1e-8)
        assert_close(gradient, expected, rtol=2e-7, atol=0)
        largest = max(largest, float(gradient.abs().max()))
    assert largest > 1e-3


GSPO_CLIPS = {"clip_low": 3e-4, "clip_high": 4e-4}
CASES = [Case(seed) for seed in range(4)]
CLIPS = [(0.2, 0.2, None), (0.2, 0.28, None), (0.05, 0.5, None), (0.2, 0.28, 2.0), (0.1, 0.1, 1.3)]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize(("low", "high", "delta"), CLIPS)
def test_clip_by_token_is_trls_loss_and_gradient(loss_type, low, high, delta):
    config = LossConfig(clip_low=low, clip_high=high, dual_clip=delta, aggregation=AGGREGATION_OF[loss_type])
    assert_same_as_trl(config, CASES, loss_type=loss_type, low=low, high=high, delta=delta)


@pytest.mark.parametrize(("low", "high", "delta"), [(3e-4, 4e-4, None), (0.03, 0.045, None), (0.03, 0.045, 1.3)])
def test_gspo_is_trls_loss_and_gradient(low, high, delta):
    config = LossConfig(ratio="sequence", clip_low=low, clip_high=high, dual_clip=delta, aggregation="sequence")
    assert_same_as_trl(config, CASES, loss_type="grpo", level="sequence", low=low, high=high, delta=delta)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("bound", [0.9, 1.28, 5.0])
def test_cispo_is_trls_loss_and_gradient(bound, level):
    config = LossConfig(surrogate="cispo", cispo_max_weight=bound, ratio=level, aggregation="token")
    assert_same_as_trl(config, CASES, loss_type="cispo", high=bound, level=level)


def test_swapping_cispos_bound_convention_would_be_seen():
    case = Case(0)
    absolute = our_loss(case, LossConfig(surrogate="cispo", cispo_max_weight=1.28, aggregation="token"))
    _, from_one, _ = trl_loss(case, loss_type="cispo", high=0.28)  # 0.28 read as a distance from 1, given as the bound
    assert float((absolute[1] - from_one).norm() / absolute[1].norm()) > 0.3


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "cispo"])
@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (0.0, 1.1)])
def test_truncated_and_icepop_corrections_are_trls_token_truncate_and_token_mask(loss_type, low, high):
    case = Case(1)
    surrogate = {"surrogate": "cispo", "cispo_max_weight": 0.28} if loss_type == "cispo" else {}
    ratio = (case.old - case.sampler).exp()
    theirs_by_name = {
        "truncated": ratio.clamp(min=low, max=high),
        "icepop": ratio.masked_fill((ratio < low) | (ratio > high), 0.0),
    }
    for name, correction in theirs_by_name.items():
        config = LossConfig(
            correction=name,
            correction_low=low,
            correction_high=high,
            aggregation=AGGREGATION_OF[loss_type],
            **surrogate,
        )
        assert_same_as_trl(config, [case], loss_type=loss_type, correction=correction)


@pytest.mark.parametrize("delta", [None, 2.0])
def test_clip_fractions_are_trls(delta):
    case = Case(2)
    terms, _ = our_loss(case, LossConfig(dual_clip=delta))
    *_, metrics = trl_loss(case, loss_type="dapo", delta=delta)
    assert float(terms.clipped_low.double().mean()) == pytest.approx(metrics["clip_ratio/low_mean"][0])
    assert float(terms.clipped_high.double().mean()) == pytest.approx(metrics["clip_ratio/high_mean"][0])
    assert terms.clipped_low.any()
    assert terms.clipped_high.any()


# --- by hand ------------------------------------------------------------------------------------------------------


def single_token(ratio: float, advantage: float, *, sampler_ratio: float = 1.0, **fields: Any) -> tuple[float, float]:
    """Loss and gradient of one token of weight 1 with log-prob 0; `sampler_ratio` is π_old/π_sampler."""
    logprob = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-math.log(ratio)], dtype=torch.float64)
    terms = policy_loss(
        logprob,
        old_logprobs=old,
        sampler_logprobs=old - math.log(sampler_ratio),
        advantages=torch.tensor([advantage], dtype=torch.float64),
        rollout_index=torch.zeros(1, dtype=torch.long),
        weights=torch.ones(1),
        config=LossConfig(**fields),
    )
    terms.loss.backward()
    assert logprob.grad is not None
    return float(terms.loss.detach()), float(logprob.grad)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # on policy the gradient is −A
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.56, 0.0),  # 1.28 · 2: clipped above, nothing more to gain
        (0.5, 2.0, -1.0, -1.0),  # a good token that became rarer is never clipped
        (1.5, -2.0, 3.0, 3.0),  # nor a bad one that became commoner
        (0.5, -2.0, 1.6, 0.0),  # 0.8 · 2: clipped below
    ],
)
def test_the_clip_by_hand(ratio, advantage, loss, gradient):
    assert single_token(ratio, advantage) == pytest.approx((loss, gradient))


@pytest.mark.parametrize(("ratio", "loss", "gradient"), [(2.5, 5.0, 5.0), (4.0, 6.0, 0.0)])
def test_the_dual_bound_caps_a_bad_tokens_loss_at_c_times_its_advantage(ratio, loss, gradient):
    assert single_token(ratio, -2.0, dual_clip=3.0) == pytest.approx((loss, gradient))
    assert single_token(ratio, 2.0, dual_clip=3.0) == pytest.approx((-2.56, 0.0))


@pytest.mark.parametrize(("ratio", "gradient"), [(0.5, -1.0), (3.0, -6.0), (7.0, -10.0)])
def test_cispo_keeps_the_gradient_of_a_clipped_token_at_the_bound(ratio, gradient):
    assert single_token(ratio, 2.0, surrogate="cispo")[1] == pytest.approx(gradient)


@pytest.mark.parametrize(
    ("sampler_ratio", "icepop", "truncated"),
    [
        (0.5, 0.5, 0.5),
        (0.49, 0.0, 0.49),
        (0.01, 0.0, 0.01),
        (1.0, 1.0, 1.0),
        (2.0, 2.0, 2.0),
        (2.01, 0.0, 2.0),
        (0.8, 0.8, 0.8),
    ],
)
def test_icepop_is_the_ratio_within_its_bounds_and_zero_outside_where_truncation_stays_at_the_upper_one(
    sampler_ratio, icepop, truncated
):
    # Exactly at a bound the logarithm's rounding decides, so step inside by less than the tolerance.
    inside = sampler_ratio + {0.5: 1e-9, 2.0: -1e-9}.get(sampler_ratio, 0.0)
    for name, weight in (("icepop", icepop), ("truncated", truncated)):
        found = single_token(1.1, 2.0, sampler_ratio=inside, correction=name)
        assert found == pytest.approx((-2.2 * weight, -2.2 * weight))


@pytest.mark.parametrize(("sampler_ratio", "weight"), [(0.01, 0.3), (0.31, 0.31), (1.0, 1.0), (5.0, 2.0)])
def test_truncation_raises_a_weight_to_a_lower_bound_only_where_one_is_set(sampler_ratio, weight):
    found = single_token(1.1, 2.0, sampler_ratio=sampler_ratio, correction="truncated", correction_low=0.3)
    assert found == pytest.approx((-2.2 * weight, -2.2 * weight))


def test_the_sequence_ratio_is_the_geometric_mean_of_the_rollouts_own_tokens():
    log_ratio = torch.tensor([2.0, 8.0, 9.0]).log()  # √(2·8) = 4; 9 stands alone
    terms = policy_loss(
        log_ratio,
        old_logprobs=torch.zeros(3),
        sampler_logprobs=torch.zeros(3),
        advantages=torch.ones(3),
        rollout_index=torch.tensor([0, 0, 1]),
        weights=torch.ones(3),
        config=LossConfig(ratio="sequence", **GSPO_CLIPS),
    )
    assert_close(terms.ratio, torch.tensor([4.0, 4.0, 9.0]))


def test_a_rollouts_mean_does_not_see_rows_without_tokens():
    assert rollout_mean(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2])).tolist() == [2.0, 2.0, 5.0]


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        # Group one has rollouts of 2 and 6 tokens, group two of 4 and 4; the limit is 10.
        ("token", [1 / 16, 1 / 16, 1 / 16, 1 / 16]),
        ("sequence", [1 / 8, 1 / 24, 1 / 16, 1 / 16]),  # 1/(4·|o|)
        ("group", [1 / 16, 1 / 16, 1 / 16, 1 / 16]),  # 1/(2·8): both groups have 8 tokens
        ("constant", [1 / 40, 1 / 40, 1 / 40, 1 / 40]),
    ],
)
def test_weights_of_a_token_by_hand(aggregation, expected):
    denominators = Denominators(num_tokens=16, num_rollouts=4, num_groups=2, limit_tokens=10)
    own, of_group = torch.tensor([2, 6, 4, 4]), torch.tensor([8, 8, 8, 8])
    weights = token_weights(own, of_group, denominators=denominators, aggregation=aggregation)
    assert weights.tolist() == pytest.approx(expected)


def test_by_group_each_group_counts_the_same_and_by_token_the_longer_one_more():
    # A group of 1 + 3 tokens and one of 12 + 4: token losses 1 in the first group, 2 in the second.
    own, of_group = torch.tensor([1, 3, 12, 4]), torch.tensor([4, 4, 16, 16])
    losses = torch.tensor([1.0, 1.0, 2.0, 2.0])
    denominators = Denominators(num_tokens=20, num_rollouts=4, num_groups=2, limit_tokens=12)
    found = {
        name: float((token_weights(own, of_group, denominators=denominators, aggregation=name) * own * losses).sum())
        for name in ("token", "sequence", "group", "constant")
    }
    # (4 + 2·16)/20; (1 + 1 + 2 + 2)/4; (1 + 2)/2; (4 + 32)/(4·12)
    assert found == pytest.approx({"token": 1.8, "sequence": 1.5, "group": 1.5, "constant": 0.75})


def test_an_unknown_aggregation_is_refused():
    denominators = Denominators(num_tokens=1, num_rollouts=1, num_groups=1, limit_tokens=1)
    with pytest.raises(ValueError, match="'mean' is not one of"):
        token_weights(torch.ones(1), torch.ones(1), denominators=denominators, aggregation="mean")


@pytest.mark.parametrize(
    ("ratio", "surrogate", "correction", "aggregation"),
    list(
        itertools.product(
            ["token", "sequence"],
            ["clip", "cispo"],
            ["none", "truncated", "icepop"],
            ["token", "sequence", "group", "constant"],
        )
    ),
)
def test_without_advantages_nothing_is_learned_so_there_is_no_kl_term(ratio, surrogate, correction, aggregation):
    case = Case(3)
    case.advantages.zero_()
    clips = GSPO_CLIPS if (ratio, surrogate) == ("sequence", "clip") else {}
    config = LossConfig(ratio=ratio, surrogate=surrogate, correction=correction, aggregation=aggregation, **clips)
    terms, gradient = our_loss(case, config)
    assert float(terms.loss.detach()) == 0
    assert not gradient.any()


def test_local_denominators_would_be_seen():
    """The mean of two micro-batches' own token means is not the update's token mean."""
    case = Case(4)
    _, whole = our_loss(case, LossConfig(aggregation="token"))
    local = torch.zeros_like(whole)
    for rows in (slice(0, 2), slice(2, 6)):
        part = Case(4)
        part.mask[torch.arange(6) < rows.start] = False
        part.mask[torch.arange(6) >= rows.stop] = False
        part.rollout_index = part.mask.nonzero()[:, 0]
        local += our_loss(part, LossConfig(aggregation="token"))[1] / 2
    assert float((local - whole).norm() / whole.norm()) > 0.3
