"""Hooks at the output of blocks: what they add, take out, read and leave alone."""

import pytest
import torch

from grpo.steering import Readings, Steering, Watched, captured, hooked
from tests.conftest import tiny_policy

IDS = torch.tensor([[5, 6, 7, 8]])
AT = torch.tensor([[False, True, True, False]])


def outputs(policy, **hooks) -> dict[int, torch.Tensor]:
    """Each block's own output, before and after what else is hooked there, by block."""
    found: dict[int, torch.Tensor] = {}
    with torch.no_grad(), hooked(policy.blocks, **hooks), captured(policy.blocks, found.__setitem__):
        policy.hidden(IDS)
    return found


def test_a_vector_is_added_at_the_marked_positions_of_its_block_alone():
    policy = tiny_policy("llama")
    vector = torch.arange(policy.hidden_size).float()
    plain = outputs(policy)
    moved = outputs(policy, steering=Steering({1: vector}, coefficient=2.0), at=AT)
    assert torch.equal(moved[0], plain[0])
    assert torch.allclose(moved[1] - plain[1], AT.unsqueeze(-1) * 2.0 * vector, atol=1e-5)


def test_ablation_leaves_nothing_along_the_direction_and_the_rest_as_it_was():
    policy = tiny_policy("qwen3")
    vector = torch.ones(policy.hidden_size) * 3
    unit = vector / vector.norm()
    plain, moved = (
        outputs(policy, steering=steering, at=torch.ones_like(AT))[1]
        for steering in (None, Steering({1: vector}, coefficient=1.0, kind="ablate"))
    )
    assert float((moved @ unit).abs().max()) < 1e-5
    assert torch.allclose(moved, plain - (plain @ unit).unsqueeze(-1) * unit, atol=1e-5)


def test_projections_are_of_the_output_before_anything_is_added():
    policy = tiny_policy("llama")
    direction = torch.nn.functional.normalize(torch.arange(policy.hidden_size).float(), dim=0)
    plain = outputs(policy)
    readings = Readings()
    watched = Watched({1: torch.stack([direction, -direction])})
    steering = Steering({1: direction}, coefficient=100.0)
    with torch.no_grad(), hooked(policy.blocks, steering=steering, at=AT, watched=watched, readings=readings):
        policy.hidden(IDS)
    found = readings.of_blocks[1]  # [B, T, 2]
    assert torch.allclose(found[..., 0], plain[1] @ direction, atol=1e-5)
    assert torch.allclose(found[..., 1], -found[..., 0])


def test_every_hook_is_gone_afterwards():
    policy = tiny_policy("llama")
    with hooked(policy.blocks, steering=Steering({0: torch.ones(policy.hidden_size)}, coefficient=1.0), at=AT):
        assert policy.blocks[0]._forward_hooks
    assert not any(block._forward_hooks for block in policy.blocks)


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("choosing", [False, True, True]),
        ("start", [False, True, False]),
        ("completion", [False, False, True]),
        ("all", [True, True, True]),
    ],
)
def test_positions_say_where_to_steer(positions, expected):
    steering = Steering({}, coefficient=1.0, positions=positions)
    chooses, chosen = torch.tensor([False, True, True]), torch.tensor([False, False, True])
    assert steering.where(chooses=chooses, chosen=chosen).tolist() == expected


def test_a_block_that_is_not_there_or_a_vector_of_another_width_is_refused():
    policy = tiny_policy("llama")
    with pytest.raises(ValueError, match="blocks 0 to 1"):
        policy.steer(Steering({2: torch.ones(policy.hidden_size)}, coefficient=1.0))
    with pytest.raises(ValueError, match="a watched trait, block 0: a vector of width 5"):
        policy.watch(Watched({0: torch.ones(1, 5)}))
