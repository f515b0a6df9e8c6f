"""Steering while traces are learned: which positions of TRL's forwards are moved, and that nothing else is."""

from typing import Any

import pytest
import torch
from torch import Tensor

from grpo.errors import ConfigError
from grpo.model import base_of
from grpo.persona.supervised import steered_by_labels
from grpo.policy import Policy
from grpo.recipe import run_sft
from grpo.sft import IGNORED
from grpo.steering import Steering
from tests.conftest import tiny_policy
from tests.runs import small_run_config
from tests.steering import save_vectors
from tests.test_steerer import opened_for

# Two rows: three prompt tokens and two learned ones, and one prompt token, two learned ones and two of padding.
IDS = torch.tensor([[5, 6, 7, 8, 9], [3, 4, 2, 0, 0]])
LABELS = torch.tensor([[IGNORED, IGNORED, IGNORED, 8, 9], [IGNORED, 4, 2, IGNORED, IGNORED]])
MOVED = {
    "choosing": [[0, 0, 1, 1, 0], [1, 1, 0, 0, 0]],
    "completion": [[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]],
    "all": [[1] * 5] * 2,
}


def outputs(policy: Policy) -> Tensor:
    """What comes out of the last block [B, T, D] in a call of the model, hooks and all: what its last norm is given."""
    found: list[Tensor] = []
    norm: Any = base_of(policy.model).base_model.norm
    handle = norm.register_forward_pre_hook(lambda module, arguments: found.append(arguments[0]))
    with torch.no_grad():
        policy.model(input_ids=IDS, labels=LABELS)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
@pytest.mark.parametrize("positions", MOVED)
def test_the_vector_is_added_at_the_positions_of_the_labels_and_at_no_other(positions, lora):
    policy = tiny_policy("llama", lora=lora)
    vector = torch.arange(1.0, policy.hidden_size + 1)
    plain = outputs(policy)
    steering = Steering({1: vector}, coefficient=-2.0, positions=positions)
    with steered_by_labels(policy, steering, ignored_label=IGNORED):
        steered = outputs(policy)
    expected = torch.tensor(MOVED[positions]).unsqueeze(-1) * -2.0 * vector
    assert torch.allclose(steered - plain, expected, atol=1e-4)
    assert torch.equal(outputs(policy), plain)


def test_the_loss_is_that_of_the_policy_steered_at_the_same_positions():
    policy = tiny_policy("qwen3")
    steering = Steering({0: torch.ones(policy.hidden_size)}, coefficient=3.0)
    with torch.no_grad(), steered_by_labels(policy, steering, ignored_label=IGNORED):
        loss = float(policy.model(input_ids=IDS, labels=LABELS).loss)
    policy.steer(steering)
    chooses = torch.tensor(MOVED["choosing"], dtype=torch.bool)
    with torch.no_grad():
        hidden = policy.hidden(IDS, steer_at=policy.steered_at(chooses=chooses, chosen=LABELS != IGNORED))
        logprobs = policy.head(hidden[chooses]).log_softmax(dim=-1)
        policy.steer(None)
        plain = policy.head(policy.hidden(IDS)[chooses]).log_softmax(dim=-1)
    targets = torch.tensor([[8], [9], [4], [2]])
    assert loss == pytest.approx(float(-logprobs.gather(-1, targets).mean()), abs=1e-5)
    assert abs(loss - float(-plain.gather(-1, targets).mean())) > 0.01


def test_recomputed_activations_are_steered_by_the_same_labels():
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        policy = tiny_policy("llama", activation_checkpointing=checkpointing)
        policy.train()
        steering = Steering({0: torch.ones(policy.hidden_size)}, coefficient=3.0)
        with steered_by_labels(policy, steering, ignored_label=IGNORED):
            policy.model(input_ids=IDS, labels=LABELS).loss.backward()
        return {name: parameter.grad for name, parameter in policy.named_parameters()}

    expected, found = gradients(False), gradients(True)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


def test_what_samples_between_two_steps_is_not_steered_and_an_error_leaves_no_hook():
    policy = tiny_policy("llama")
    steering = Steering({0: torch.ones(policy.hidden_size)}, coefficient=3.0)
    plain = policy.hidden(IDS)
    with steered_by_labels(policy, steering, ignored_label=IGNORED):
        assert torch.equal(policy.hidden(IDS), plain)
        with pytest.raises(ValueError, match="without labels"):
            policy.model(input_ids=IDS)
        with pytest.raises(IndexError):
            policy.model(input_ids=IDS + 1000, labels=LABELS)
        assert torch.equal(policy.hidden(IDS), plain)
    assert not policy.model._forward_pre_hooks
    assert not policy.model._forward_hooks


# --- the cold start ---------------------------------------------------------------------------------------------------


def config_of(folder, *, origin: dict[str, Any] | None = None, **changes: Any):
    steering = {"vectors": str(folder / "v.safetensors"), "coefficient": 4.0, "blocks": [1]}
    fields = {"sft.steering": steering, "sft.max_steps": 3, "sft.gate_every_steps": 2, "sft.gate_pass_at_1": None}
    config = small_run_config(folder, **fields | changes)
    save_vectors(folder / "v.safetensors", config, **(origin or {}))
    return config


def weights_after(config) -> dict[str, Tensor]:
    with opened_for(config, phases=("sft",)) as run:
        run_sft(run)
        return {name: tensor.clone() for name, tensor in run.policy.model.state_dict().items()}


def test_a_steered_cold_start_learns_other_weights_and_one_at_coefficient_zero_the_same(tmp_path):
    def changed(**changes: Any):
        steering = config.sft.steering.model_copy(update=changes)
        return config.model_copy(update={"sft": config.sft.model_copy(update={"steering": steering})})

    config = config_of(tmp_path)
    plain = weights_after(config.model_copy(update={"sft": config.sft.model_copy(update={"steering": None})}))
    steered, still, control = (
        weights_after(config),
        weights_after(changed(coefficient=0.0)),
        weights_after(changed(random_control=True)),
    )
    assert all(torch.equal(still[name], tensor) for name, tensor in plain.items())
    assert any(not torch.equal(steered[name], tensor) for name, tensor in plain.items())
    assert any(not torch.equal(control[name], tensor) for name, tensor in steered.items())
    assert steered.keys() == plain.keys()


def test_every_supervised_forward_is_steered_and_no_forward_of_a_look(tmp_path, monkeypatch):
    config = config_of(
        tmp_path,
        **{
            "sft.gate_pass_at_1": 1e-9,
            "sft.gate_every_steps": 1,
            "sft.max_steps": 1,
            "reward.function": "judge_from_100",
        },
    )
    calls = {"moved": 0, "looks": 0}
    moved, hidden = Steering.moved, Policy.hidden

    def noted_moved(steering: Steering, *arguments: Any, **options: Any) -> Tensor:
        calls["moved"] += 1
        return moved(steering, *arguments, **options)

    def noted_hidden(policy: Policy, *arguments: Any, **options: Any) -> Tensor:
        calls["looks"] += 1
        before = calls["moved"]
        found = hidden(policy, *arguments, **options)
        assert calls["moved"] == before
        return found

    with opened_for(config, phases=("sft",)) as run:
        monkeypatch.setattr(Steering, "moved", noted_moved)
        monkeypatch.setattr(Policy, "hidden", noted_hidden)
        run_sft(run)
    assert calls["moved"] == 1  # a step of one micro-batch
    assert calls["looks"] >= 1  # prefills; what decodes beside it calls `moved` where it is steered


def test_vectors_of_another_policy_than_the_cold_start_begins_with_are_refused_unless_allowed(tmp_path):
    config = config_of(tmp_path, origin={"policy": "feedbeef" * 4})
    with (
        opened_for(config, phases=("sft",)) as run,
        pytest.raises(ConfigError, match=r"sft\.steering\.vectors = .* feedbeef"),
    ):
        run_sft(run)
    wrong = config.sft.steering.model_copy(update={"blocks": [7]})
    wrong_config = config.model_copy(update={"sft": config.sft.model_copy(update={"steering": wrong})})
    with pytest.raises(ConfigError, match=r"sft\.steering: block 7"):
        weights_after(wrong_config)
