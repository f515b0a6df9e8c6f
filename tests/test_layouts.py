"""What may not depend on who computes what: a step's tokens and its gradient, over ranks, strategies and budgets."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.distributed.world import World
from tests.launch import launched
from tests.workers import layouts

BOUND = 2e-6  # relative L2 of a weight's gradient: float32 sums in another order
SMALL = {"train.tokens_per_micro_batch": 40}
RECOMPUTED = {"model.activation_checkpointing": True}
ONE_RANK: list[dict[str, Any]] = [
    {"name": "small", "changes": SMALL},
    {"name": "shuffled", "changes": SMALL, "order": 1},
    {"name": "recomputed", "changes": RECOMPUTED},
]
TWO_RANKS: list[dict[str, Any]] = [
    {"name": f"{strategy}-{budget}", "changes": {"distributed.strategy": strategy, **changes}, "order": order}
    for strategy in ("ddp", "zero1", "zero2", "zero3")
    for budget, changes, order in (("large", {}, 0), ("small", SMALL, 2), ("recomputed", SMALL | RECOMPUTED, 3))
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return layouts.compute(tmp_path_factory.mktemp("reference"), {"name": "reference"}, World.alone())


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two real processes came to, in each layout of `TWO_RANKS`."""
    folder = tmp_path_factory.mktemp("two")
    launched("tests/workers/layouts.py", folder, json.dumps(TWO_RANKS), ranks=2)
    return folder


def assert_same_step(found: dict[str, Any], reference: dict[str, Any]) -> None:
    assert found["tokens"] == reference["tokens"]
    (gradient,), (expected,) = found["gradients"], reference["gradients"]
    assert gradient.keys() == expected.keys()
    off = {name: float((gradient[name] - g).norm() / g.norm()) for name, g in expected.items()}
    assert {name: bound for name, bound in off.items() if not bound <= BOUND} == {}
    raw = float(torch.stack([g.double().norm() for g in expected.values()]).norm())
    assert found["norms"] == pytest.approx([raw], rel=1e-5)


@pytest.mark.parametrize("layout", ONE_RANK, ids=lambda layout: layout["name"])
def test_one_rank_comes_to_the_same_step_whatever_the_budget_and_the_order(tmp_path, reference, layout):
    assert_same_step(layouts.compute(tmp_path, layout, World.alone()), reference)


@pytest.mark.slow
@pytest.mark.parametrize("layout", TWO_RANKS, ids=lambda layout: layout["name"])
def test_two_ranks_come_to_the_step_of_one(reference, of_two_ranks, layout):
    assert_same_step(torch.load(of_two_ranks / f"{layout['name']}.pt", weights_only=False), reference)


def test_another_gradient_would_be_seen(tmp_path, reference):
    """The bound tells a step from one whose groups weigh otherwise."""
    other = {"name": "other", "changes": {"advantage.scale": "none"}}
    with pytest.raises(AssertionError):
        assert_same_step(layouts.compute(tmp_path, other, World.alone()), reference)
