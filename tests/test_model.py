"""Which models are taken, and that a policy is the whole of one: its own logits, its own weights, its own spread."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from grpo import checkpoint
from grpo.batch import TrainedRollout, micro_batches
from grpo.config import ModelConfig, OptimConfig
from grpo.errors import ConfigError
from grpo.model import DTYPES, Float32Head, base_of, load_model, load_tokenizer, skeleton
from grpo.optim import Optimizer
from grpo.policy import Policy, Wanted
from grpo.sampling import trials
from grpo.sampling.trials import check_decoding
from grpo.types import Rollout, StopReason
from tests.conftest import ARCHITECTURES, SIZES, tiny_config, tiny_policy

LLAMA = LlamaConfig(vocab_size=96, **SIZES)


def load(config: ModelConfig) -> nn.Module:
    return load_model(config, tokenizer=load_tokenizer(config), seed=0, device=torch.device("cpu"))


def loaded_from(folder: Path) -> nn.Module:
    return load(ModelConfig(path=str(folder), tokenizer="task:list_machine", dtype="float32"))


def refusal(**fields: Any) -> str:
    config = ModelConfig.model_validate({"tokenizer": "task:list_machine", "dtype": "float32"} | fields)
    with pytest.raises(ConfigError) as error:
        load(config)
    return str(error.value)


# --- architectures that the sampler cannot hold -----------------------------------------------------------------------

SMALL = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64}
ALIBI = "weighs attention by distance (alibi), which the native sampler cannot; take a model with rotary or learned"


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        (
            {"model_type": "gpt_neo", "attention_types": [[["global", "local"], 1]]} | SMALL,
            "model: GPTNeoForCausalLM has local attention layers, whose window the native sampler does not know; take",
        ),
        ({"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 2}, f"model: BloomForCausalLM {ALIBI}"),
        ({"model_type": "mpt", "d_model": 32, "n_layers": 2, "n_heads": 2}, f"model: MptForCausalLM {ALIBI}"),
        ({"model_type": "falcon", "alibi": True} | SIZES, f"model: FalconForCausalLM {ALIBI}"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_a_model_whose_attention_the_sampler_cannot_hold_is_refused_by_name(architecture, expected):
    assert expected in refusal(architecture=architecture, attention="eager")


@pytest.mark.parametrize(
    "architecture",
    [
        {"model_type": "gpt_neo", "attention_types": [[["global"], 2]]} | SMALL,
        {"model_type": "falcon", "alibi": False} | SIZES,
    ],
    ids=["gpt_neo", "falcon"],
)
def test_a_model_of_the_same_family_without_such_attention_is_taken_and_decoded_rightly(architecture):
    config = ModelConfig.model_validate(
        {"architecture": architecture, "tokenizer": "task:list_machine", "dtype": "float32", "attention": "eager"}
    )
    check_decoding(Policy(load(config)))


# --- the test of decoding at the start --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_known_architecture_passes_the_test_of_decoding(policy, dtype):
    policy.to(getattr(torch, dtype))
    check_decoding(policy)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_mask_that_shows_a_row_anothers_positions_is_found_before_a_token_is_drawn(monkeypatch, dtype):
    policy = tiny_policy("llama")
    policy.to(getattr(torch, dtype))
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "o_proj" in name or "v_proj" in name:  # a fresh model hardly listens to its attention
                weight.mul_(10)

    def shows_all(self: trials.Rows, mask: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(mask[:, None, None], dtype=self._policy.dtype)

    monkeypatch.setattr(trials.Rows, "_for_attention", shows_all)
    with pytest.raises(ConfigError, match="model: LlamaForCausalLM is decoded wrongly by the native sampler"):
        check_decoding(policy)


def test_a_position_that_is_off_by_one_is_found_before_a_token_is_drawn(monkeypatch):
    policy = tiny_policy("gpt2")
    original = Policy.hidden

    def shifted(self: Policy, ids: torch.Tensor, *, position_ids: torch.Tensor | None = None, **rest: Any) -> Any:
        return original(self, ids, position_ids=None if position_ids is None else position_ids + 1, **rest)

    monkeypatch.setattr(Policy, "hidden", shifted)
    with pytest.raises(ConfigError, match="model: GPT2LMHeadModel is decoded wrongly"):
        check_decoding(policy)


def test_an_architecture_whose_code_fails_in_decoding_is_refused_by_name(monkeypatch):
    policy = tiny_policy("llama")

    def failing(self: Policy, *args: Any, **options: Any) -> None:
        raise ValueError("not enough values to unpack")

    monkeypatch.setattr(Policy, "hidden", failing)
    expected = r"LlamaForCausalLM cannot be decoded by the native sampler \(ValueError: not enough values to unpack\)"
    with pytest.raises(ConfigError, match=expected):
        check_decoding(policy)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_without_a_head_is_refused_by_the_weight_it_lacks(tmp_path):
    LlamaForSequenceClassification(LLAMA).save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as error:
        loaded_from(tmp_path)
    assert (
        f"model.path = {str(tmp_path)!r}: the checkpoint does not fill LlamaForCausalLM: lm_head.weight (missing);"
        in (str(error.value))
    )


def test_a_checkpoint_of_another_width_than_its_config_is_refused_by_weight_and_shapes(tmp_path):
    LlamaForCausalLM(LLAMA).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"vocab_size": 100}))
    with pytest.raises(ConfigError, match=r"lm_head.weight \(\[96, 32\], not \[100, 32\]\), model.embed_tokens.weight"):
        loaded_from(tmp_path)


def test_many_missing_weights_are_counted_and_not_all_listed(tmp_path):
    LlamaForCausalLM(LLAMA).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 4}))
    with pytest.raises(ConfigError, match=r"layers.2.input_layernorm.weight \(missing\), .* and 13 more; take"):
        loaded_from(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_a_whole_checkpoint_is_loaded_as_it_is_with_its_head_tied_or_not(tmp_path, tied):
    saved = LlamaForCausalLM(LlamaConfig(vocab_size=96, tie_word_embeddings=tied, **SIZES))
    saved.save_pretrained(tmp_path)
    found = loaded_from(tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in saved.state_dict().items())


# --- fresh weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.3, 1.0])
def test_fresh_embeddings_have_the_spread_that_was_asked_for(std):
    weight = base_of(load(tiny_config("llama", initial_embedding_std=std))).get_input_embeddings().weight
    # 96 · 32 draws: the standard deviation of their spread is std / √(2 · 3072), 1.3 %.
    assert float(weight.detach().std()) == pytest.approx(std, rel=0.05)
    assert abs(float(weight.detach().mean())) < 0.1 * std


def test_without_a_spread_asked_for_fresh_embeddings_have_the_architectures_own():
    weight = base_of(load(tiny_config("llama", initial_embedding_std=None))).get_input_embeddings().weight
    assert float(weight.detach().std()) == pytest.approx(LLAMA.initializer_range, rel=0.05)


# --- the head ---------------------------------------------------------------------------------------------------------

# Factors far from 1, so that leaving them out would be seen; the soft cap is below the logits.
HEADS: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "gemma2": {"final_logit_softcapping": 2.0, "head_dim": 16, "sliding_window": 8},
}


def with_head(model_type: str, **changes: Any) -> PreTrainedModel:
    fields = {"model_type": model_type, "vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    fields |= SIZES | HEADS[model_type] | changes
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(50)
    return model.eval()


@pytest.mark.parametrize("model_type", sorted(HEADS))
def test_a_policys_head_scales_and_caps_its_logits_as_the_model_does(model_type):
    model = with_head(model_type)
    policy = Policy(model)
    ids = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0]
        hidden = policy.hidden(ids)[0]
        torch.testing.assert_close(policy.head(hidden), expected, rtol=1e-5, atol=1e-5)
        bare = model.get_output_embeddings()(hidden)
    assert float((bare - expected).abs().max()) > 0.5
    check_decoding(policy)


@pytest.mark.parametrize(("model_type", "field"), [("granite", "_scale"), ("cohere", "_scale"), ("gemma2", "_softcap")])
def test_a_head_that_is_not_the_models_own_is_refused_with_what_it_is_off_by(model_type, field):
    policy = Policy(with_head(model_type))
    setattr(policy, field, 1 if field == "_scale" else None)
    with pytest.raises(ValueError, match=r"its logits are not its head on its last hidden state \(off by \d"):
        policy._compare_with_model()


def test_a_model_that_transforms_its_logits_in_a_way_of_its_own_is_refused_by_name():
    class Shifted(LlamaForCausalLM):
        def forward(self, *args: Any, **options: Any) -> Any:
            output = super().forward(*args, **options)
            output.logits = output.logits + torch.linspace(0, 0.1, output.logits.shape[-1])
            return output

    with pytest.raises(ValueError, match="Shifted: its logits are not its head on its last hidden state"):
        Policy(Shifted(LLAMA).eval())


# --- float16 ----------------------------------------------------------------------------------------------------------


def test_float16_is_refused_on_the_cpu_with_what_to_set_instead():
    config = tiny_config("llama", dtype="float16")
    with pytest.raises(
        ConfigError, match=r"model.dtype = 'float16' on the CPU: .*; set model.dtype: float32 or bfloat"
    ):
        load(config)
    # What needs no arithmetic is told all the same.
    weights = skeleton(config, tokenizer=load_tokenizer(config)).parameters()
    assert {weight.dtype for weight in weights} == {torch.float16}


def test_every_dtype_of_the_config_has_a_tolerance_of_decoding():
    assert set(DTYPES.values()) == set(trials.DECODING_TOLERANCE)


# --- a head in float32 ------------------------------------------------------------------------------------------------

FLOAT32_HEADS = [
    ("llama", {"tie_word_embeddings": False}),
    ("qwen3", {"tie_word_embeddings": True}),
    ("qwen3", {"tie_word_embeddings": False}),
    ("gemma3", {"tie_word_embeddings": True, "final_logit_softcapping": 20.0}),
]
IDS = torch.arange(20).unsqueeze(0)


def with_float32_head(
    name: str, fields: dict[str, Any], *, dtype: str = "bfloat16", on: bool = True, **more: Any
) -> Policy:
    architecture = ARCHITECTURES[name] | SIZES | fields
    return tiny_policy(name, architecture=architecture, dtype=dtype, float32_head=on, **more)


@pytest.mark.parametrize(("name", "fields"), FLOAT32_HEADS)
def test_logits_are_the_float32_product_of_hidden_states_and_weight_and_those_of_a_bfloat16_head_are_not(name, fields):
    found = {}
    for on in (True, False):
        policy = with_float32_head(name, fields, on=on)
        with torch.no_grad():
            hidden = policy.hidden(IDS)[0]  # [T, D]
            exact = hidden.double() @ base_of(policy.model).get_output_embeddings().weight.double().T  # [T, V]
            cap = fields.get("final_logit_softcapping")
            exact = exact if cap is None else torch.tanh(exact / cap) * cap
            own = policy.model(input_ids=IDS).logits[0]
            logits = policy.head(hidden)
        assert hidden.dtype == torch.bfloat16
        assert {own.dtype, logits.dtype} == {torch.float32 if on else torch.bfloat16}
        assert torch.equal(own, logits)
        found[on] = float((logits.double() - exact).abs().max() / exact.abs().max())
    assert found[True] < 1e-6
    assert found[False] > 1e-3


@pytest.mark.parametrize(("name", "fields"), FLOAT32_HEADS)
@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_float32_head_keeps_names_types_and_tying_and_is_not_adapted(name, fields, lora):
    plain, policy = (with_float32_head(name, fields, on=on, lora=lora) for on in (False, True))
    layout = [
        {n: (p.shape, p.dtype, p.requires_grad) for n, p in of.model.named_parameters()} for of in (plain, policy)
    ]
    assert layout[0] == layout[1]
    assert list(checkpoint.weights_of(plain.model)) == list(checkpoint.weights_of(policy.model))
    base = base_of(policy.model)
    head = base.get_output_embeddings()
    assert type(head) is Float32Head
    assert (head.weight is base.get_input_embeddings().weight) == fields["tie_word_embeddings"]
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), policy.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(("name", "fields"), FLOAT32_HEADS)
def test_a_checkpoint_of_a_float32_head_is_an_ordinary_one(tmp_path, name, fields):
    policy = with_float32_head(name, fields)
    base_of(policy.model).save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert type(read.get_output_embeddings()) is nn.Linear
    assert read.state_dict().keys() == policy.model.state_dict().keys()
    assert all(torch.equal(tensor, policy.model.state_dict()[name]) for name, tensor in read.state_dict().items())
    config = ModelConfig(path=str(tmp_path), tokenizer="task:list_machine", dtype="bfloat16", float32_head=True)
    again = Policy(load(config))
    with torch.no_grad():
        assert torch.equal(again.head(again.hidden(IDS)), policy.head(policy.hidden(IDS)))


def loss_of(policy: Policy) -> torch.Tensor:
    """Minus the mean log-prob of a rollout with a prompt of one token, as in a forward of training."""
    ids = tuple(IDS[0].tolist())
    rollout = Rollout(
        problem_id="p",
        attempt=0,
        token_ids=ids,
        action_mask=(False,) + (True,) * (len(ids) - 1),
        logprobs=(0.0,) * len(ids),
        kept=None,
        stop_reason=StopReason.END_TOKEN,
        temperature=1.0,
        policy_step=0,
    )
    (batch,) = micro_batches(
        [[TrainedRollout(rollout, advantage=1.0, group_tokens=len(ids) - 1, group_rollouts=1)]],
        tokens_per_micro_batch=100,
        limit_tokens=100,
        aggregation="token",
        device=policy.device,
        shares_prompts=policy.packs,
    )
    loss, *_ = policy(batch, Wanted(loss_of=lambda logprobs, part: -(logprobs * batch.weights[part]).sum()))
    return loss


def gradient_of(policy: Policy) -> dict[str, torch.Tensor]:
    """By name, as the optimizer would step it."""
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:  # fresh adapters multiply by zero, and half of their gradients are zero too
            nn.init.constant_(parameter, 0.05)
    optimizer = Optimizer(policy.model, OptimConfig())
    optimizer.backward(loss_of(policy))
    optimizer.backward(loss_of(policy) * 2)
    return dict(optimizer.gradients())


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recomputing_activations_changes_no_gradient_of_a_model_with_a_float32_head(dtype, lora):
    held, recomputed = (
        gradient_of(with_float32_head("gemma3", {}, dtype=dtype, lora=lora, activation_checkpointing=on))
        for on in (False, True)
    )
    assert held.keys() == recomputed.keys()
    assert [name for name in held if not torch.equal(held[name], recomputed[name])] == []
    assert all(bool(gradient.any()) for gradient in held.values())


@pytest.mark.parametrize("float32_head", [False, True])
@pytest.mark.parametrize("lora", [None, {"rank": 4}])
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_the_gradient_of_a_float16_model_is_that_of_float32_but_for_rounding(
    float32_head, lora, activation_checkpointing
):
    """The scale of 2**16 is in none of them, be the weight float16 or a float32 adapter."""
    more: dict[str, Any] = {"lora": lora, "activation_checkpointing": activation_checkpointing}
    exact = gradient_of(with_float32_head("qwen3", {}, dtype="float32", on=float32_head, **more))
    policy = with_float32_head("qwen3", {}, dtype="float32", on=float32_head, **more)
    for name, parameter in policy.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.half()
    found = gradient_of(policy)
    assert found.keys() == exact.keys()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert float((gradient - exact[name]).norm() / exact[name].norm()) < 0.02, name


@pytest.mark.parametrize(("name", "fields"), FLOAT32_HEADS)
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_the_gradient_reaches_the_weight_of_a_float32_head_and_moves_it(name, fields, activation_checkpointing):
    policy = with_float32_head(name, fields, activation_checkpointing=activation_checkpointing)
    optimizer = Optimizer(policy.model, OptimConfig())
    weight = base_of(policy.model).get_output_embeddings().weight
    before = weight.detach().clone()
    optimizer.backward(loss_of(policy))
    rows = dict(optimizer.gradients())[next(n for n, p in policy.model.named_parameters() if p is weight)]
    assert bool((rows.abs().sum(dim=1) > 0).all())  # of tokens that are no input as well
    optimizer.update(rate=0.1)
    assert weight.dtype == torch.bfloat16
    assert not torch.equal(weight, before)


@pytest.mark.parametrize(("name", "fields"), FLOAT32_HEADS)
def test_a_float32_head_is_decoded_rightly(name, fields):
    check_decoding(with_float32_head(name, fields))
    check_decoding(with_float32_head(name, fields, lora={"rank": 4}))


def test_a_float32_head_changes_nothing_of_a_float32_model():
    policies = [with_float32_head("llama", {}, dtype="float32", on=on) for on in (False, True)]
    with torch.no_grad():
        plain, other = (policy.head(policy.hidden(IDS)) for policy in policies)
    assert torch.equal(plain, other)


def test_autocast_does_not_reach_into_a_float32_head():
    policy = with_float32_head("llama", {}, dtype="float32")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = policy.hidden(IDS)
        logits = policy.head(hidden)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, hidden.float() @ base_of(policy.model).lm_head.weight.T, rtol=1e-5, atol=1e-5)


def test_the_skeleton_of_a_model_with_a_float32_head_has_one_too_and_its_weights_are_in_no_memory():
    config = tiny_config("qwen3", float32_head=True)
    model = skeleton(config, tokenizer=load_tokenizer(config))
    assert type(base_of(model).get_output_embeddings()) is Float32Head
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
