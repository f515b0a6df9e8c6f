"""What an engine is handed: files that hold every weight once, and digests of the forms that it may hold them in."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from grpo.sampling import handover
from grpo.sampling.handover import INDEX_FILE, WEIGHTS_FILE, WeightsDifferError
from tests.engines import small_policy


def sha(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


def test_weights_that_fit_are_in_one_file_and_others_in_several_with_an_index(tmp_path, monkeypatch):
    policy = small_policy()
    weights = dict(handover.named_weights(policy))
    handover.write_weights(policy, tmp_path / "one")
    assert [path.name for path in (tmp_path / "one").iterdir()] == [WEIGHTS_FILE]
    monkeypatch.setattr(handover, "FILE_BYTES", 20_000)
    handover.write_weights(policy, tmp_path / "several")
    index = json.loads((tmp_path / "several" / INDEX_FILE).read_text())["weight_map"]
    files = {path.name: load_file(path) for path in (tmp_path / "several").glob("*.safetensors")}
    assert len(files) > 3
    assert all(sum(w.nbytes for w in of_file.values()) <= 20_000 or len(of_file) == 1 for of_file in files.values())
    assert index == {name: file for file, of_file in files.items() for name in of_file}
    one = load_file(tmp_path / "one" / WEIGHTS_FILE)
    for found in (one, {name: weight for of_file in files.values() for name, weight in of_file.items()}):
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_who_is_no_writer_writes_nothing(tmp_path):
    handover.write_weights(small_policy(), tmp_path / "weights", is_writer=False)
    handover.write_adapters(small_policy(lora={"rank": 4}), tmp_path / "adapters", is_writer=False)
    assert list(tmp_path.iterdir()) == []


def test_adapters_are_written_without_the_weights_below_them(tmp_path):
    policy = small_policy(lora={"rank": 4})
    handover.write_adapters(policy, tmp_path / "adapters")
    found = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    expected = {name: p for name, p in policy.model.named_parameters() if ".lora_" in name}
    assert len(found) == len(expected) > 0
    for name, parameter in expected.items():
        assert torch.equal(found[name.replace(".default.", ".")], parameter)


def test_fused_and_filled_weights_are_known_by_their_digests_and_one_changed_number_is_told():
    policy = small_policy()
    weights = dict(handover.named_weights(policy))
    expected = handover.expected_digests(policy)
    attention = "model.layers.0.self_attn"
    qkv = sha(*(weights[f"{attention}.{part}.weight"] for part in ("q_proj", "k_proj", "v_proj")))
    embeddings = weights["model.embed_tokens.weight"]  # [96, 32], which an engine fills up to 128 rows
    filled = sha(embeddings, torch.zeros(32, 32))
    held = {
        f"rank0:{attention}.qkv_proj.weight": qkv,
        "rank0:model.embed_tokens.weight": filled,
        "rank0:model.norm.weight": sha(weights["model.norm.weight"]),
        "rank0:lm_head.weight": handover.NO_BYTES,  # in a form of its own
        "rank0:rotary.cache": "0" * 64,  # of no weight
    }
    said = handover.check_held(held, expected, holder="the engine")
    assert said == "3 of its 5 weights are in a form that can be compared, and are the policy's"
    with torch.no_grad():
        dict(policy.model.named_parameters())[f"{attention}.k_proj.weight"][1, 2] += 1e-6
    with pytest.raises(WeightsDifferError, match=rf"another {attention}\.qkv_proj\.weight than the policy \(1 of 3"):
        handover.check_held(held, handover.expected_digests(policy), holder="the engine")
