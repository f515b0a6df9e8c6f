"""A vector folded into a model's weights is steering at all positions, or is refused with the reason."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from grpo.errors import ConfigError
from grpo.model import base_of
from grpo.persona.folding import Fold, fold_of
from grpo.persona.vectors import load
from grpo.policy import Policy
from grpo.steering import Steering
from tests.conftest import tiny_policy
from tests.runs import grpo, small_run_config
from tests.steering import save_vectors
from tests.test_export import IDS, LORA, logits, made_run
from tests.test_steering_exact import policy_of

COEFFICIENT = -3.0


def fold_for(folder: Path, policy: Policy, *, block: int) -> Fold:
    path = folder / "v.safetensors"
    shape = {"num_blocks": len(policy.blocks), "hidden_size": policy.hidden_size}
    of_blocks = dict.fromkeys(
        ("separation", "random_separation", "agreement", "hidden_norm"), (1.0,) * len(policy.blocks)
    )
    save_vectors(path, small_run_config(folder), **shape, **of_blocks)
    return Fold(load(path), block=block, coefficient=COEFFICIENT)


@torch.no_grad()
def steered_logits(policy: Policy, fold: Fold) -> torch.Tensor:
    """By hooks, at all positions."""
    vectors = fold.vectors.vectors([fold.block])
    policy.steer(Steering(vectors, coefficient=fold.coefficient, positions="all"))
    hidden = policy.hidden(IDS, steer_at=torch.ones_like(IDS, dtype=torch.bool))
    policy.steer(None)
    return policy.head(hidden.flatten(0, 1)).view(*IDS.shape, -1)


def made(family: str, **changes: object) -> Policy:
    return tiny_policy("gpt2", **changes) if family == "gpt2" else policy_of(family, **changes)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss"])
def test_the_folded_model_is_the_one_that_hooks_steer_at_all_positions(tmp_path, family, block):
    policy = made(family)
    fold = fold_for(tmp_path, policy, block=block)
    plain, expected = logits(policy.model), steered_logits(policy, fold)
    folded = fold.into(base_of(policy.model))
    assert float((logits(folded) - expected).abs().max()) < 1e-4 * float(expected.std())
    assert float((plain - expected).abs().max()) > 0.1 * float(expected.std())


def test_a_model_in_bfloat16_keeps_the_type_of_each_tensor(tmp_path):
    policy = made("gpt2", dtype="bfloat16")
    fold = fold_for(tmp_path, policy, block=1)
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    folded = fold.into(base_of(policy.model)).state_dict()
    changed = [name for name, tensor in before.items() if not torch.equal(folded[name], tensor)]
    assert changed == ["transformer.h.1.mlp.c_proj.bias"]
    assert all(folded[name].dtype == tensor.dtype for name, tensor in before.items())
    expected = before[changed[0]] + (COEFFICIENT * fold.vectors.vectors([1])[1]).bfloat16()
    assert torch.equal(folded[changed[0]], expected)


@pytest.mark.parametrize(
    ("family", "why"),
    [("qwen3", "its blocks have no bias"), ("gemma3", "its blocks have no bias"), ("glm4", "none of its biases")],
)
def test_an_architecture_that_cannot_hold_the_vector_is_refused_with_the_reason(tmp_path, family, why):
    policy = made(family)
    with pytest.raises(ConfigError, match=rf"block 0 of .* cannot hold the vector: {why}"):
        fold_for(tmp_path, policy, block=0).into(base_of(policy.model))


def test_a_bias_that_is_not_the_last_thing_added_is_no_place_for_it_and_stays_as_it_was(tmp_path):
    policy = policy_of("llama", architecture={"model_type": "glm4", "attention_bias": True})
    norm = policy.blocks[1].post_mlp_layernorm
    biased = torch.nn.Parameter(torch.zeros(policy.hidden_size))
    policy.blocks[1].mlp.down_proj.bias = biased
    fold = fold_for(tmp_path, policy, block=1)
    with pytest.raises(
        ConfigError, match=r"none of its biases \(.*mlp\.down_proj\.bias.*\) reaches the block's output"
    ):
        fold.into(base_of(policy.model))
    assert torch.equal(biased, torch.zeros_like(biased))
    assert norm is policy.blocks[1].post_mlp_layernorm


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_command_writes_a_steered_model_and_says_what_it_steers(tmp_path, capsys, lora):
    run, model = made_run(tmp_path, **{"model.lora": lora})
    path = save_vectors(tmp_path / "v.safetensors", small_run_config(tmp_path))
    assert grpo("export", run, "--output", tmp_path / "out", "--steer", path, "--coefficient", "2", "--block", "1") == 0
    assert "2 times the vector of loud is in a bias of block 1: it steers every position" in capsys.readouterr().err
    merged = base_of(model) if lora is None else model.merge_and_unload()
    expected = steered_logits(Policy(merged.eval()), Fold(load(Path(path)), block=1, coefficient=2.0))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert float((logits(loaded) - expected).abs().max()) < 1e-4 * float(expected.std())


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--coefficient", "1"], 2, "are of --steer"),
        (["--steer", "v.safetensors"], 2, "recommends none"),
        (["--steer", "v.safetensors", "--coefficient", "0"], 2, "adds nothing"),
        (["--steer", "v.safetensors", "--coefficient", "1", "--block", "2"], 2, "blocks 0 to 1"),
        (["--steer", "none.safetensors", "--coefficient", "1"], 3, "no such file"),
    ],
)
def test_a_wrong_command_is_refused_and_nothing_is_written(tmp_path, monkeypatch, capsys, options, code, said):
    run, _ = made_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    save_vectors(tmp_path / "v.safetensors", small_run_config(tmp_path))
    assert grpo("export", run, "--output", "out", *options) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_adapters_alone_hold_no_vector(tmp_path, capsys):
    run, _ = made_run(tmp_path, **{"model.lora": LORA, "model.path": None})
    path = save_vectors(tmp_path / "v.safetensors", small_run_config(tmp_path))
    options = ("--adapter", "--steer", path, "--coefficient", "1")
    assert grpo("export", run, "--output", tmp_path / "out", *options) == 2
    assert "--adapter" in capsys.readouterr().err


def test_what_a_file_recommends_is_taken(tmp_path):
    path = Path(save_vectors(tmp_path / "v.safetensors", small_run_config(tmp_path), recommended=(0, -1.5)))
    fold = fold_of(path, coefficient=None, block=None)
    assert (fold.block, fold.coefficient) == (0, -1.5)
    assert fold_of(path, coefficient=2.0, block=1).block == 1
