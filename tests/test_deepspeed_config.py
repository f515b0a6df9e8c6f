"""What DeepSpeed is started with follows from the run, and a user's JSON may tune it but not contradict it."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from grpo.config import RunConfig
from grpo.distributed.deepspeed_config import TOP_LEVEL, generated, resolved
from grpo.errors import ConfigError

RANKS = 4


def config_of(path: Path | None = None, **changes: Any) -> RunConfig:
    """A run of zero2 in bfloat16; a change is of a dotted field."""
    fields: dict[str, Any] = {
        "run": {"name": "small"},
        "model": {"path": "somewhere"},
        "data": {"train": {"path": "task:list_machine"}},
        "reward": {"name": "list_machine"},
        "train": {"steps": 4},
        "optim": {"learning_rate": 2e-6, "weight_decay": 0.1},
        "distributed": {"strategy": "zero2", "deepspeed_config": None if path is None else str(path)},
    }
    for name, value in changes.items():
        section, field = name.split("__")
        fields.setdefault(section, {})[field] = value
    return RunConfig.model_validate(fields)


def resolved_with(folder: Path, theirs: Any, **changes: Any) -> dict[str, Any]:
    path = folder / "deepspeed.json"
    path.write_text(theirs if isinstance(theirs, str) else json.dumps(theirs))
    return resolved(config_of(path, **changes), world_size=RANKS)


def faults(folder: Path, theirs: Any, **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        resolved_with(folder, theirs, **changes)
    return str(raised.value).splitlines()


@pytest.mark.parametrize(("strategy", "stage"), [("zero1", 1), ("zero2", 2), ("zero3", 3)])
def test_the_stage_is_the_strategys(strategy, stage):
    assert generated(config_of(distributed__strategy=strategy), world_size=RANKS)["zero_optimization"]["stage"] == stage


@pytest.mark.parametrize(
    ("dtype", "lora", "bf16", "fp16"),
    [
        ("float32", None, False, False),
        ("bfloat16", None, True, False),
        ("float16", None, False, True),
        # Adapters are float32 beside any base, and are what is trained.
        ("bfloat16", {"rank": 4}, False, False),
        ("float16", {"rank": 4}, False, False),
    ],
)
def test_the_precision_is_that_of_the_weights_that_are_trained(dtype, lora, bf16, fp16):
    found = generated(config_of(model__dtype=dtype, model__lora=lora), world_size=RANKS)
    assert (found["bf16"]["enabled"], found["fp16"]["enabled"]) == (bf16, fp16)
    assert found["data_types"]["grad_accum_dtype"] == "fp32"


def test_batch_clip_and_optimizer_are_the_runs():
    found = generated(config_of(optim__max_grad_norm=0.5, optim__betas=(0.8, 0.9)), world_size=RANKS)
    assert found["train_batch_size"] == RANKS
    assert (found["train_micro_batch_size_per_gpu"], found["gradient_accumulation_steps"]) == (1, 1)
    assert found["gradient_clipping"] == 0.5
    assert found["optimizer"]["type"] == "AdamW"
    assert found["optimizer"]["params"]["betas"] == [0.8, 0.9]


@pytest.mark.parametrize("on", [True, False])
def test_what_is_offloaded_lies_on_the_host(on):
    config = config_of(
        distributed__strategy="zero3", distributed__offload_optimizer=on, distributed__offload_parameters=on
    )
    zero = generated(config, world_size=RANKS)["zero_optimization"]
    assert {zero[name]["device"] for name in ("offload_optimizer", "offload_param")} == {"cpu" if on else "none"}


def test_every_generated_field_is_one_that_deepspeed_knows():
    assert set(generated(config_of(), world_size=RANKS)) <= set(TOP_LEVEL)


def test_without_a_file_the_generated_config_is_what_it_is():
    assert resolved(config_of(), world_size=RANKS) == generated(config_of(), world_size=RANKS)


def test_a_file_tunes_what_it_names_and_leaves_the_rest(tmp_path):
    theirs = {
        "zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 1000},
        "comms_logger": {"enabled": True},
        "steps_per_print": 10,
    }
    expected = generated(config_of(), world_size=RANKS)
    expected["zero_optimization"] |= theirs["zero_optimization"]
    expected |= {"comms_logger": {"enabled": True}, "steps_per_print": 10}
    assert resolved_with(tmp_path, theirs) == expected


def test_what_repeats_the_run_or_is_auto_is_no_contradiction(tmp_path):
    theirs = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": 1.0,
        "bfloat16": {"enabled": True},
        "fp16": {"enabled": False, "loss_scale_window": 1000, "hysteresis": 2},  # read where it is enabled only
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}, "reduce_bucket_size": "auto"},
        "optimizer": {"type": "Adam", "params": {"lr": "auto", "betas": [0.9, 0.98], "eps": "auto"}},
        "scheduler": "auto",
    }
    expected = generated(config_of(), world_size=RANKS)
    expected["fp16"] = theirs["fp16"]
    expected["optimizer"]["type"] = "Adam"  # DeepSpeed's decays as AdamW does
    assert resolved_with(tmp_path, theirs) == expected


def test_the_loss_scale_of_float16_is_the_runs(tmp_path):
    (fault,) = faults(tmp_path, {"fp16": {"enabled": True, "loss_scale_window": 1000}}, model__dtype="float16")
    assert "fp16.loss_scale_window = 1000, but the run has 2000" in fault


CONTRADICTIONS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"train_batch_size": 64}, "train_batch_size", "64", "4"),
    ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu", "8", "1"),
    ({"gradient_accumulation_steps": 16}, "gradient_accumulation_steps", "16", "1"),
    ({"gradient_clipping": 0.3}, "gradient_clipping", "0.3", "1.0"),
    ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage", "3", "2"),
    ({"bf16": {"enabled": False}}, "bf16.enabled", "false", "true"),
    ({"fp16": {"enabled": True}}, "fp16.enabled", "true", "false"),
    ({"amp": {"enabled": True}}, "amp.enabled", "true", "false"),
    ({"torch_autocast": {"enabled": True}}, "torch_autocast.enabled", "true", "false"),
    ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype", '"bf16"', '"fp32"'),
    ({"optimizer": {"type": "Lamb"}}, "optimizer.type", '"Lamb"', '"AdamW"'),
    ({"optimizer": {"params": {"lr": 1e-3}}}, "optimizer.params.lr", "0.001", "2e-06"),
    ({"optimizer": {"params": {"betas": [0.9, 0.999]}}}, "optimizer.params.betas", "[0.9, 0.999]", "[0.9, 0.98]"),
    ({"optimizer": {"params": {"eps": 1e-6}}}, "optimizer.params.eps", "1e-06", "1e-08"),
    ({"optimizer": {"params": {"weight_decay": 0.0}}}, "optimizer.params.weight_decay", "0.0", "0.1"),
    ({"optimizer": {"params": {"adam_w_mode": False}}}, "optimizer.params.adam_w_mode", "false", "true"),
    (
        {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
        "zero_optimization.offload_optimizer.device",
        '"cpu"',
        '"none"',
    ),
    ({"scheduler": {"type": "WarmupLR"}}, "scheduler", "WarmupLR", "optim.schedule"),
    ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation", "false", "true"),
    ({"elasticity": {"enabled": True}}, "elasticity.enabled", "true", "false"),
    ({"zero_optimization": {"zenflow": {"topk_ratio": 0.1}}}, "zero_optimization.zenflow", "0.1", "left out"),
]


@pytest.mark.parametrize(("theirs", "name", "their_value", "our_value"), CONTRADICTIONS, ids=lambda v: str(v)[:40])
def test_a_field_that_contradicts_the_run_is_an_error_with_both_values(tmp_path, theirs, name, their_value, our_value):
    (fault,) = faults(tmp_path, theirs)
    assert fault.startswith(f"{tmp_path / 'deepspeed.json'}: {name}")
    assert their_value in fault
    assert our_value in fault.replace(name, "")


def test_every_contradiction_of_a_file_is_named_at_once(tmp_path):
    found = faults(tmp_path, {"train_batch_size": 64, "gradient_clipping": 0.3, "zero_stage": 2})
    assert [line.split(": ")[1].split()[0] for line in found] == [
        "zero_stage",
        "train_batch_size",
        "gradient_clipping",
    ]


@pytest.mark.parametrize("device", ["cpu", "nvme"])
def test_offloaded_moments_may_lie_anywhere_but_on_the_gpu(tmp_path, device):
    theirs = {"zero_optimization": {"offload_optimizer": {"device": device}}}
    found = resolved_with(tmp_path, theirs, distributed__offload_optimizer=True)
    assert found["zero_optimization"]["offload_optimizer"]["device"] == device
    assert (
        "device = "
        in faults(
            tmp_path,
            {"zero_optimization": {"offload_optimizer": {"device": "none"}}},
            distributed__offload_optimizer=True,
        )[0]
    )


def test_an_unknown_field_is_an_error_with_the_nearest_name(tmp_path):
    (fault,) = faults(tmp_path, {"gradient_cliping": 1.0})
    assert fault.endswith("gradient_cliping is not a field of DeepSpeed; did you mean gradient_clipping?")


@pytest.mark.parametrize(
    ("text", "says"), [("{", "not valid JSON"), ("[1]", "must be a mapping of DeepSpeed's fields; got list")]
)
def test_a_file_that_is_no_mapping_in_json_is_an_error(tmp_path, text, says):
    assert says in faults(tmp_path, text)[0]


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"distributed.deepspeed_config = .*nowhere.json.*: no such file"):
        resolved(config_of(tmp_path / "nowhere.json"), world_size=RANKS)


def test_every_field_that_is_known_is_one_of_the_installed_deepspeeds():
    """Each is named in its sources; a rename there shows here."""
    found = importlib.util.find_spec("deepspeed")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).parent
    texts = [path.read_text(encoding="utf-8") for path in source.rglob("*.py")]
    assert [name for name in TOP_LEVEL if not any(f'"{name}"' in t or f"'{name}'" in t for t in texts)] == []
