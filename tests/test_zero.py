"""ZeRO on two real processes comes to what one rank comes to, and hands its state on to any other strategy."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo import checkpoint
from grpo.distributed import zero
from grpo.distributed.world import World
from grpo.distributed.zero import Zero
from grpo.errors import CheckpointError, ConfigError
from tests.launch import launched
from tests.workers.zero_worker import config_of, policy_of, same

OFFLOADED = {"offload_optimizer": True}
CHECKPOINTING = {"checkpointing": True}
IN_BFLOAT16 = {"dtype": "bfloat16"}
UPDATES: dict[str, dict[str, Any]] = {
    "zero1": {"strategy": "zero1"},
    "zero2-bfloat16-recomputed": {"strategy": "zero2", **IN_BFLOAT16, **CHECKPOINTING},
    "zero3-odd-recomputed": {"strategy": "zero3", "odd": True, **CHECKPOINTING},
    "zero3-lora": {"strategy": "zero3", "lora": True},
}
MORE_UPDATES: dict[str, dict[str, Any]] = {
    "zero1-bfloat16": {"strategy": "zero1", **IN_BFLOAT16},
    "zero1-lora-bfloat16": {"strategy": "zero1", "lora": True, **IN_BFLOAT16},
    "zero1-offloaded-bfloat16": {"strategy": "zero1", "distributed": OFFLOADED, **IN_BFLOAT16},
    "zero1-recomputed": {"strategy": "zero1", **CHECKPOINTING},
    "zero2": {"strategy": "zero2"},
    "zero2-unclipped": {"strategy": "zero2", "clip": 1e3},
    "zero2-tied": {"strategy": "zero2", "architecture": {"tie_word_embeddings": True}},
    "zero2-float16": {"strategy": "zero2", "dtype": "float16"},
    "zero2-offloaded": {"strategy": "zero2", "distributed": OFFLOADED},
    "zero3-tied": {"strategy": "zero3", "architecture": {"tie_word_embeddings": True}},
    "zero3-bfloat16-recomputed": {"strategy": "zero3", **IN_BFLOAT16, **CHECKPOINTING, "float32_head": True},
    "zero3-lora-bfloat16": {"strategy": "zero3", "lora": True, **IN_BFLOAT16},
    "zero3-offloaded": {"strategy": "zero3", "distributed": OFFLOADED | {"offload_parameters": True}},
    "zero3-float16": {"strategy": "zero3", "dtype": "float16"},
}
SAMPLING: dict[str, dict[str, Any]] = {
    "sampling-zero2": {"strategy": "zero2"},
    "sampling-zero3-gather": {"strategy": "zero3", "distributed": {"zero3_sampling": "gather"}},
    "sampling-zero3-layers": {"strategy": "zero3", "distributed": {"zero3_sampling": "layers"}},
}
STEERED: dict[str, dict[str, Any]] = {
    "steered-ddp": {"strategy": "ddp"},
    "steered-zero2": {"strategy": "zero2"},
    "steered-zero3-gather": {"strategy": "zero3", "distributed": {"zero3_sampling": "gather"}},
    "steered-zero3-layers": {"strategy": "zero3", "distributed": {"zero3_sampling": "layers"}, **CHECKPOINTING},
    "steered-zero3-lora": {"strategy": "zero3", "lora": True},
}
# Relative L2 of a weight's gradient, and of a weight after a step of at most the learning rate each way. Below
# float32 a backward pass with ZeRO-3's hooks adds a hidden state's gradients in another order than one without, and
# AdamW's first step goes by the sign of a gradient, so that sums of the ranks in another order move some weights of
# bfloat16 by one more of their last digits.
GRADIENT_BOUNDS = {"float32": 5e-6, "bfloat16": 1e-6, "float16": 2e-3}
WEIGHT_BOUNDS = {"float32": 5e-6, "bfloat16": 1e-3, "float16": 1e-3}
LORA_BOUND = {"float32": 5e-6, "bfloat16": 2e-2}


@pytest.fixture(autouse=True)
def variables_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given back after each test: an engine in this process sets them for good."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def measured(folder: Path, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (folder / "cases.json").write_text(json.dumps(cases))
    launched("tests/workers/zero_worker.py", folder / "out.json", folder / "cases.json", ranks=2)
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return found


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes measured: each launch takes seconds, so one does all cases."""
    cases = {name: {"kind": "updates", **case} for name, case in UPDATES.items()}
    cases |= {name: {"kind": "sampling", **case} for name, case in SAMPLING.items()}
    # Weights of which attention comes to something, so that a prompt that is steered too is seen.
    cases |= {
        name: {"kind": "steered", "architecture": {"initializer_range": 0.1}, **case} for name, case in STEERED.items()
    }
    return measured(tmp_path_factory.mktemp("quick"), cases)


@pytest.fixture(scope="module")
def thorough(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cases = {name: {"kind": "updates", **case} for name, case in MORE_UPDATES.items()}
    return measured(tmp_path_factory.mktemp("thorough"), cases)


EVERY = [
    *(pytest.param("quick", name, case, id=name, marks=pytest.mark.slow) for name, case in UPDATES.items()),
    *(pytest.param("thorough", name, case, id=name, marks=pytest.mark.slow) for name, case in MORE_UPDATES.items()),
]
of_every_case = pytest.mark.parametrize(("launch", "name", "case"), EVERY)


def bound(case: dict[str, Any], bounds: dict[str, float]) -> float:
    dtype = case.get("dtype", "float32")
    return LORA_BOUND[dtype] if case.get("lora") else bounds[dtype]


@of_every_case
def test_the_gradient_is_the_sum_over_micro_batches_and_ranks(request, launch, name, case):
    gaps = request.getfixturevalue(launch)[name]["gradient_gaps"]
    # Of the first update alone where rounding is coarse: later ones are of weights that already differ by it.
    compared = gaps if case.get("dtype", "float32") == "float32" else gaps[:1]
    assert len(gaps) == 3
    assert max(compared) <= bound(case, GRADIENT_BOUNDS)


@of_every_case
def test_the_norm_is_that_of_the_whole_gradient_before_clipping(request, launch, name, case):
    found = request.getfixturevalue(launch)[name]
    coarse = case.get("lora") and case.get("dtype") is not None
    assert found["norm_gaps"][0] <= (1e-3 if coarse else 1e-6)
    assert min(found["norms"][:2]) > 5 * 0.05  # far above what it is clipped to


@of_every_case
def test_weights_step_as_one_ranks_adamw_steps_them(request, launch, name, case):
    gaps = request.getfixturevalue(launch)[name]["weight_gaps"]
    # AdamW's first step is by the sign of the gradient, so that a rounded one near zero moves a weight of an adapter
    # the other way: there the gradient is what tells.
    if not (case.get("lora") and case.get("dtype") is not None and case["strategy"] == "zero3"):
        assert max(gaps) <= bound(case, WEIGHT_BOUNDS)


@of_every_case
def test_a_loss_that_is_not_finite_on_one_rank_changes_nothing_on_any(request, launch, name, case):
    found = request.getfixturevalue(launch)[name]
    assert not found["skipped_norm_is_finite"]
    assert found["skipping_changed_nothing"]
    assert all(math.isfinite(norm) for norm in found["norms_of_first"]), "the update after it begins at zero"


@of_every_case
def test_a_state_that_was_saved_is_loaded_and_goes_on_bit_for_bit(request, launch, name, case):
    found = request.getfixturevalue(launch)[name]
    assert found["loaded_is_what_was_saved"]
    assert found["norms_of_first"] == found["norms_of_second"]
    assert found["resume_is_exact"]


@of_every_case
def test_ddp_on_one_rank_goes_on_from_the_checkpoint_and_the_other_way_round(request, launch, name, case):
    found = request.getfixturevalue(launch)[name]
    assert found["ddp_goes_on"] <= bound(case, WEIGHT_BOUNDS)
    assert found["ddp_is_loaded"]


@of_every_case
def test_loaded_weights_begin_with_moments_of_zero(request, launch, name, case):
    assert request.getfixturevalue(launch)[name]["loading_weights_begins_anew"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in MORE_UPDATES.items() if case.get("dtype") == "float16"])
def test_an_overflow_in_float16_halves_the_runs_own_loss_scale(thorough, name):
    assert thorough[name]["lowered_scale"]
    assert thorough[name]["scale_after_skipping"] == 512.0


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLING)
def test_each_rank_samples_from_the_weights_as_they_stand_as_many_requests_as_it_likes(quick, name):
    """Before and after an update, and steered: the tokens and log-probs of a plain policy with the same weights."""
    found = quick[name]
    assert found["same"] == [[True] * 3] * 2
    assert max(gap for of_rank in found["gaps"] for gap in of_rank) < 1e-5
    assert found["steering_changes_tokens"] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", STEERED)
def test_steered_ranks_score_what_they_sampled_to_rounding_and_under_another_mask_are_far_off(quick, name):
    gaps = quick[name]["gaps"]
    assert len(gaps) == 20
    for scoring, gap in gaps.items():
        sampled, _, scored = scoring.partition(" scored as ")
        assert gap < 1 if sampled == scored else gap > 100, (scoring, gap)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLING)
def test_what_is_sampled_from_is_one_object_for_good(quick, name):
    assert quick[name]["objects"] == 1


@pytest.mark.slow
def test_gathered_weights_are_let_go_between_sampling_phases(quick):
    assert quick["sampling-zero3-gather"]["weights_held_between"] == 0


@pytest.mark.parametrize(
    ("free_bytes", "says"),
    [(10**9, "gathered for each sampling phase"), (100_000, "layer by layer")],
)
def test_auto_gathers_where_the_weights_fit_and_says_so(monkeypatch, free_bytes, says):
    monkeypatch.setattr(Zero, "_free_bytes", lambda self: free_bytes)
    config = config_of({}, strategy="zero3")
    strategy = Zero(policy_of(config), World.alone(), config)
    assert says in strategy.describe()
    assert "GiB" in strategy.describe()


@pytest.mark.parametrize("lora", [False, True])
def test_another_trainer_gets_whole_weights_of_its_own_and_hands_them_back(lora):
    config = config_of({"lora": lora}, strategy="zero3")
    strategy = Zero(policy_of(config), World.alone(), config)
    before = checkpoint.weights_of(policy_of(config).model)
    whole = strategy.whole_policy()
    assert same(checkpoint.weights_of(whole.model), before)
    with torch.no_grad():
        for parameter in whole.parameters():
            if parameter.requires_grad:
                parameter += 1
    assert same(strategy.weights(), before)
    strategy.load_weights(checkpoint.weights_of(whole.model))
    assert same(strategy.weights(), {name: weight + 1 for name, weight in before.items()})


def test_weights_of_another_model_are_refused_by_name():
    config = config_of({}, strategy="zero3")
    strategy = Zero(policy_of(config), World.alone(), config)
    weights = strategy.weights()
    name = next(iter(weights))
    with pytest.raises(CheckpointError, match=f"weights: {name} differs"):
        strategy.load_weights({n: w for n, w in weights.items() if n != name})
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[1\]"):
        strategy.load_weights(weights | {name: torch.zeros(1)})
    with pytest.raises(CheckpointError, match=f"moments: {name} differs"):
        strategy.load_state_dict({"masters": {}, "moments": {n: {} for n in weights if n != name}})


def test_a_missing_deepspeed_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr(zero.importlib.util, "find_spec", lambda name: None)
    config = config_of({}, strategy="zero2")
    with pytest.raises(ConfigError, match=r"'zero2' needs DeepSpeed.*pip install 'grpo-trainer\[deepspeed\]'"):
        Zero(policy_of(config), World.alone(), config)
