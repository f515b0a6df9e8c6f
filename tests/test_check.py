"""What `grpo check` derives: numbers by hand, and against the model, the cache and the optimizer that a run makes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grpo.check import GIB, STRATEGIES, Memory, derived, memory, sizes_of
from grpo.config import OptimConfig
from grpo.errors import ConfigError, DataError, OutOfMemoryError
from grpo.logprobs import CHUNK_ELEMENTS
from grpo.model import load_model, load_tokenizer, skeleton
from grpo.optim import Optimizer
from grpo.probe import Probe, probe
from tests.conftest import ARCHITECTURES, SHARED_DATA, tiny_config
from tests.runs import FIELDS, grpo, small_run_config, small_run_file
from tests.steering import save_vectors

UNIFORM = {"curriculum": {"kind": "uniform", "max_refill_waves": 2}, "sft": None}
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def test_the_steps_of_a_uniform_run_are_counted_as_by_hand(tmp_path):
    found = derived(
        small_run_config(
            tmp_path,
            **UNIFORM,
            **{
                "train.steps": 10,
                "train.problems_per_step": 5,
                "train.group_size": 6,
                "train.minibatches_per_step": 2,
                "train.epochs_per_step": 3,
                "train.tokens_per_micro_batch": 100,
                "data.max_prompt_tokens": 12,
            },
        )
    )
    assert found["phases"] == "train, eval, report"
    assert found["reward"].endswith("small_reward.py")
    assert found["tokens of the longest rollout"] == 12 + 8
    assert found["rollouts a step"] == 30
    assert found["rollouts a step with refills, at most"] == 30 + 2 * 4 * 30  # a first wave and two refills
    assert found["tokens sampled a step, at most"] == 270 * 8
    assert found["optimizer updates a step, at most"] == 6
    # The larger minibatch has 3 groups, 18 rollouts; 5 of 20 tokens fit into 100: 4 micro-batches, in 6 updates.
    assert found["micro-batches a step, at most"] == 24
    assert found["optimizer updates of the run, at most"] == 60
    assert found["rollouts of the run, without refills"] == 300


def test_stages_with_steps_are_added_up_and_a_plateau_gives_a_bound(tmp_path):
    stages = [
        {"name": "first", "tiers": ["moderate"], "steps": 3},
        {"name": "second", "tiers": ["extreme"], "group_size": 16, "problems_per_step": 2},
    ]
    found = derived(small_run_config(tmp_path, **{"curriculum.stages": stages, "train.steps": 8}))
    assert found["stage first: rollouts a step"] == 16
    assert found["stage second: rollouts a step"] == 32
    assert found["rollouts of the run, without refills"] == 3 * 16 + 5 * 32
    stages[0] = {"name": "first", "tiers": ["moderate"], "until_plateau": True}
    found = derived(small_run_config(tmp_path, **{"curriculum.stages": stages, "train.steps": 8}))
    assert found["rollouts of the run, at most, without refills"] == 8 * 32


def test_the_longest_rollout_ends_with_the_models_context(tmp_path):
    found = derived(small_run_config(tmp_path, **{"data.max_prompt_tokens": 5000}))
    assert found["tokens of the longest rollout"] == 64
    assert found["tokens of the model's context"] == 64


def test_problems_are_counted_in_each_split(tmp_path):
    found = derived(small_run_config(tmp_path))
    assert found["problems to practise"] == 60 - 8 - 12
    assert found["problems of validation"] == 8
    assert found["problems held out"] == 12
    assert found["rollouts of the profile, at least"] == 40 * 4
    assert found["rollouts of the profile, at most"] == 40 * 16
    assert found["rollouts of the evaluation"] == 2 * 12 * 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8.0}])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_sizes_on_the_meta_device_are_those_of_the_model_that_a_run_makes(name, lora, dtype):
    config = tiny_config(name, dtype=dtype, lora=lora)
    tokenizer = load_tokenizer(config)
    model = load_model(config, tokenizer=tokenizer, seed=0, device=torch.device("cpu"))
    meta = skeleton(config, tokenizer=tokenizer)
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    assert _layout(meta) == _layout(model)
    assert sizes_of(meta) == sizes_of(model)
    assert sizes_of(model).cache_bytes_per_token == _cache_bytes(model, num_tokens=7) / 7


def _layout(model: nn.Module) -> dict[str, tuple[object, ...]]:
    return {name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in model.named_parameters()}


def _cache_bytes(model: nn.Module, *, num_tokens: int) -> int:
    cache = model(input_ids=torch.zeros(1, num_tokens, dtype=torch.long), use_cache=True).past_key_values
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8.0}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_of_the_optimizer_is_that_of_its_tensors(tmp_path, dtype, lora, kind):
    config = small_run_config(tmp_path, **{"model.dtype": dtype, "model.lora": lora, "optim.kind": kind})
    tokenizer = load_tokenizer(config.model)
    model = load_model(config.model, tokenizer=tokenizer, seed=0, device=torch.device("cpu"))
    optimizer = Optimizer(model, OptimConfig(kind=kind))
    optimizer.backward(torch.stack([p.sum() for p in model.parameters() if p.requires_grad]).sum())
    gradients = sum(gradient.nbytes for _, gradient in optimizer.gradients())
    optimizer.update(rate=1e-3)
    state = optimizer.state_dict()
    moments = [t for of_weight in state["moments"].values() for n, t in of_weight.items() if n != "step"]
    copies: dict[str, Tensor] = state["masters"]
    found = memory(config, sizes_of(model), strategy="ddp", num_ranks=1)
    assert found.held == {
        "weights": sum(p.nbytes for p in model.parameters()),
        "float32 copies": sum(t.nbytes for t in copies.values()),
        "moments": sum(t.nbytes for t in moments),
    }
    assert found.training["gradients"] == gradients
    assert found.training["messages"] == 0  # one rank sends none


def memory_of(folder: Path, strategy: str, *, num_ranks: int = 4, **changes: Any) -> tuple[Memory, int]:
    """The memory of a rank, and how many weights the model has."""
    config = small_run_config(folder, **changes)
    sizes = sizes_of(skeleton(config.model, tokenizer=load_tokenizer(config.model)))
    assert sizes.num_trainable % num_ranks == 0
    return memory(config, sizes, strategy=strategy, num_ranks=num_ranks), sizes.num_trainable


def test_memory_of_sampling_and_of_the_logits_chunk_is_counted_as_by_hand(tmp_path):
    changes = {"data.max_prompt_tokens": 12, "sampling.max_rows": 10}
    found, _ = memory_of(tmp_path, "ddp", num_ranks=1, **changes)
    # 2 layers of keys and of values, 2 heads of 16 numbers of 4 bytes; 10 rows of 20 tokens; 96 tokens to choose from.
    assert found.sampling == {"keys and values": 2 * 2 * 2 * 16 * 4 * 10 * 20, "logits of a draw": 10 * 96 * 24}
    assert CHUNK_ELEMENTS["cpu"] // 96 > 256  # a micro-batch of 256 tokens is one chunk
    assert found.training["logits of a chunk"] == 256 * 96 * 12
    assert found.training["gradient of the head"] == 96 * 32 * 4
    sampling, training = sum(found.sampling.values()), sum(found.training.values())
    assert found.least == sum(found.held.values()) + max(sampling, training)
    changes |= {"model.float32_head": True, "model.dtype": "bfloat16"}
    found, _ = memory_of(tmp_path, "ddp", num_ranks=1, **changes)
    assert found.training["logits of a chunk"] == 256 * 96 * 12 + 96 * 32 * 4  # and the head once more, in float32


# Bytes on each of 4 ranks for each weight: weights, float32 copies, moments, gradients.
BY_HAND = {
    ("ddp", "float32"): (4, 0, 8, 4),
    ("ddp", "bfloat16"): (2, 4, 8, 4),
    ("zero1", "float32"): (4, 1, 2, 4),
    ("zero1", "bfloat16"): (2, 1, 2, 4 + 2),
    ("zero2", "float32"): (4, 1, 2, 2),
    ("zero2", "bfloat16"): (2, 1, 2, 1),
    ("zero3", "float32"): (1, 1, 2, 1),
    ("zero3", "bfloat16"): (0.5, 1, 2, 1),
}


@pytest.mark.parametrize(("strategy", "dtype"), sorted(BY_HAND))
def test_each_strategy_shards_what_it_says(tmp_path, strategy, dtype):
    found, number = memory_of(tmp_path, strategy, **{"model.dtype": dtype})
    parts = [found.held[name] for name in ("weights", "float32 copies", "moments")]
    parts.append(found.held.get("gradients", 0) + found.training.get("gradients", 0))
    assert tuple(part / number for part in parts) == BY_HAND[strategy, dtype]
    gathered = {"float32": 4, "bfloat16": 2}[dtype] * number if strategy == "zero3" else 0
    assert found.training.get("gathered weights", 0) == 2 * gathered  # those in use and those fetched ahead
    assert found.sampling.get("gathered weights", 0) == gathered
    assert found.host == {}


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_offloading_moves_the_shards_to_the_host(tmp_path, strategy):
    distributed: dict[str, object] = {"strategy": strategy, "offload_optimizer": True}
    if strategy == "zero3":
        distributed["offload_parameters"] = True
    found, number = memory_of(tmp_path, strategy, **{"model.dtype": "bfloat16", "distributed": distributed})
    assert found.held["weights"] == (0 if strategy == "zero3" else 2 * number)
    assert {"float32 copies", "moments"} & found.held.keys() == set()
    assert found.host["float32 copies"] == number
    assert found.host["moments"] == 2 * number
    assert found.host.get("weights", 0) == (number / 2 if strategy == "zero3" else 0)


def test_a_bucket_of_the_users_json_is_counted(tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"reduce_bucket_size": 1000}}')
    distributed = {"strategy": "zero2", "deepspeed_config": str(tmp_path / "ds.json")}
    found, _ = memory_of(tmp_path, "zero2", distributed=distributed)
    assert found.training["messages"] == 1000 * 4


def test_the_table_has_a_column_for_each_strategy_and_marks_the_runs_own(tmp_path):
    config = small_run_config(tmp_path, **{"distributed.strategy": "zero2", "sampling.max_rows": 100_000})
    found = derived(config, num_ranks=4)
    assert str(found["GiB of each of 4 ranks, by strategy"]).split() == ["ddp", "zero1", "[zero2]", "zero3"]
    sizes = sizes_of(skeleton(config.model, tokenizer=load_tokenizer(config.model)))
    least = [memory(config, sizes, strategy=name, num_ranks=4).least / GIB for name in STRATEGIES]
    assert str(found["  at least, without activations"]).split() == [f"{value:.3f}" for value in least]
    assert str(found["  gathered weights, sampling"]).split()[:3] == ["-"] * 3


def test_muon_is_estimated_for_the_one_strategy_that_takes_it(tmp_path):
    found = derived(small_run_config(tmp_path, **{"optim.kind": "muon"}), num_ranks=2)
    assert str(found["GiB of each of 2 ranks, by strategy"]).split() == ["[ddp]"]


def test_the_command_prints_deepspeeds_config_where_it_is_used(tmp_path, capsys):
    file = small_run_file(tmp_path)
    assert grpo("check", file, "--ranks", "4", "distributed.strategy=zero2") == 0
    printed = json.loads(capsys.readouterr().out.partition("DeepSpeed's config:\n")[2])
    assert printed["zero_optimization"]["stage"] == 2
    assert printed["train_batch_size"] == 4
    assert grpo("check", file, "--ranks", "4") == 0
    assert "DeepSpeed" not in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--ranks", "--memory-gib"])
def test_no_ranks_and_no_memory_are_a_wrong_command_line(tmp_path, flag):
    with pytest.raises(SystemExit) as stop:
        grpo("check", small_run_file(tmp_path), flag, "0")
    assert stop.value.code == 2


def test_a_model_that_lies_elsewhere_is_unknown_with_the_reason_and_the_rest_is_derived(tmp_path, monkeypatch):
    def no_network(name: str) -> None:
        raise OSError(f"no connection for {name}\nand no cache")

    monkeypatch.setattr("grpo.model.AutoTokenizer.from_pretrained", no_network)
    monkeypatch.setattr("datasets.load_dataset", lambda path, **_: no_network(path))
    model = {"path": "someone/some-model"}
    found = derived(small_run_config(tmp_path, model=model, **{"data.train": {"path": "someone/some-rows"}}))
    assert str(found["parameters"]).startswith("unknown (model.path = 'someone/some-model': no tokenizer")
    assert "\n" not in str(found["parameters"])
    assert str(found["problems"]).startswith("unknown (data.train.path")
    assert found["rollouts of the run, without refills"] == 4 * 16 + 4 * 32


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.train={path: nofile.jsonl}", "data.train.path = 'nofile.jsonl': no such file"),
        ("data.train={path: ROWS, format: mbpp, split: test}", "row 1: no column 'task_id'; it has question, answer"),
        ("evaluation.sets={own: {source: {path: ./nofolder}}}", "evaluation.sets.own.source.path = './nofolder'"),
        ("evaluation.sets={own: {source: {path: ROWS, format: ifeval}}}", "there is no column 'prompt', which format"),
    ],
)
def test_rows_that_would_be_here_and_cannot_be_read_are_an_error(tmp_path, capsys, override, expected):
    rows = Path(__file__).parent / "data" / "gsm8k_rows.jsonl"
    assert grpo("check", small_run_file(tmp_path), override.replace("ROWS", str(rows))) == DataError.exit_code
    said = capsys.readouterr()
    assert expected in said.err
    assert "unknown" not in said.out


def test_a_set_of_a_hub_that_cannot_be_reached_is_unknown_with_the_reason(tmp_path, monkeypatch):
    def no_network(path: str, **_: object) -> None:
        raise ConnectionError(f"no way to {path}")

    monkeypatch.setattr("datasets.load_dataset", no_network)
    found = derived(small_run_config(tmp_path, **{"evaluation.sets": {"own": {"source": {"path": "someone/rows"}}}}))
    assert str(found["problems of evaluation.sets"]).startswith("unknown (evaluation.sets.own.source.path = 'someone/r")
    assert found["problems held out"] == 12


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model.architecture": {"model_type": "lama"}}, "model.architecture: transformers takes no such config"),
        ({"model.tokenizer": "task:lst_machine"}, "there is no task 'lst_machine'"),
        ({"reward": {"name": "lst_machine"}}, "did you mean 'list_machine'?"),
    ],
)
def test_what_the_config_itself_gets_wrong_is_an_error(tmp_path, changes, expected):
    with pytest.raises(ConfigError) as error:
        derived(small_run_config(tmp_path, **changes))
    assert expected in str(error.value)


def test_the_command_prints_each_number_on_a_line_and_makes_nothing(tmp_path, capsys):
    assert grpo("check", small_run_file(tmp_path), "train.group_size=1000") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["stage", "moderate:", "rollouts", "a", "step", "4,000"] for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_what_steers_is_told_and_a_file_that_is_not_there_yet_is_unknown(tmp_path):
    steering = {"vectors": str(tmp_path / "v.safetensors"), "coefficient": -1.5}
    fields = {"steering": steering, "profile.reuse_steps": 0, "evaluation.steered": True}
    config = small_run_config(
        tmp_path, **fields, **{"sft.steering": steering | {"blocks": [0], "random_control": True}}
    )
    found = derived(config)
    assert str(found["steering"]).startswith("unknown (")
    assert "no such file; make it with `grpo persona extract`" in str(found["steering"])
    save_vectors(tmp_path / "v.safetensors", config)
    found = derived(config)
    assert found["steering"] == "add -1.5 times loud at block 1 of 2, choosing"
    assert found["sft.steering"] == "add -1.5 times a random direction for loud at block 0 of 2, choosing"
    assert found["rollouts of the evaluation"] == 2 * 2 * 12 * 4
    wrong = config.model_copy(update={"steering": config.steering.model_copy(update={"blocks": [5]})})
    with pytest.raises(ConfigError, match="steering: block 5: the vectors of loud are of blocks 0 to 1"):
        derived(wrong)


def test_the_command_prints_the_schema_without_a_config(capsys):
    assert grpo("check", "--schema") == 0
    assert '"RunSection"' in capsys.readouterr().out


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs GSM8K's published rows beside the repository")
def test_the_shipped_gsm8k_config_splits_the_published_rows(capsys):
    rows = SHARED_DATA / "gsm8k"
    paths = [f"data.train.path={rows}/train.jsonl", f"data.heldout.path={rows}/test.jsonl"]
    assert grpo("check", CONFIGS / "gsm8k_qwen3_0.6b.yaml", "model.path=/nowhere", *paths) == 0
    numbers = {line[:58].strip(): line[58:].strip() for line in capsys.readouterr().out.splitlines()}
    assert numbers["problems held out"] == "1,319"
    assert numbers["problems of validation"] == "128"
    assert int(numbers["problems to practise"].replace(",", "")) > 7_300


# --- the probe --------------------------------------------------------------------------------------------------------

LARGER = {
    "model.architecture": FIELDS["model"]["architecture"]
    | {"hidden_size": 128, "intermediate_size": 2048, "max_position_embeddings": 512},
    "sampling.max_completion_tokens": 512,
    "curriculum": {"kind": "uniform"},
    "sft": None,
    "train.problems_per_step": 2,
    "train.group_size": 2,
}
PEAK = re.compile(r"tokens_per_micro_batch = ([\d,]+) \(rollouts: \d+ of 512 tokens\): ([\d.]+) of")


@pytest.mark.slow
def test_a_probe_finds_the_size_between_one_that_fits_and_one_that_does_not(tmp_path):
    config = small_run_config(tmp_path, **LARGER)
    *sizes, last = probe(config, memory_gib=64.0)
    found = {int(size.replace(",", "")): float(peak) for size, peak in (PEAK.search(line).groups() for line in sizes)}
    assert list(found) == [512, 1024, 2048]  # up to the 4 rollouts of a step
    assert last == "largest that fits: train.tokens_per_micro_batch=2048 (the config's 256 fits)"
    assert found[2048] > found[512] + 0.05
    bound = (found[512] + found[2048]) / 2
    *_, too_much, last = probe(config, memory_gib=bound)
    assert too_much.endswith(f"more than {bound:.3f} GiB")
    largest = int(re.search(r"tokens_per_micro_batch=(\d+)", last)[1])
    assert found[largest] < bound < found[2 * largest]


def test_a_bound_that_not_even_one_rollout_fits_into_is_an_error_with_remedies(tmp_path, capsys):
    assert grpo("check", small_run_file(tmp_path), "--probe", "--memory-gib", "0.05") == OutOfMemoryError.exit_code
    said = capsys.readouterr()
    assert said.out == "train.tokens_per_micro_batch = 64 (rollouts: 1 of 64 tokens): more than 0.050 GiB\n"
    assert "not even one rollout of 64 tokens fits into 0.050 GiB; set model.activation_checkpointing=true" in said.err


@pytest.mark.parametrize(
    ("own", "fits_up_to", "verdict"),
    [
        (256, 4096, "largest that fits: train.tokens_per_micro_batch=1024 (the config's 256 fits)"),
        (2048, 4096, "largest that fits: train.tokens_per_micro_batch=1024 (the config's 2,048 is never filled)"),
        (512, 300, "largest that fits: train.tokens_per_micro_batch=256 (the config's 512 was not seen to fit)"),
    ],
)
def test_a_probe_doubles_the_rollouts_up_to_those_of_a_step(tmp_path, monkeypatch, own, fits_up_to, verdict):
    tried = []

    def measured(config: object, file: Path, *, tokens: int, longest: int, bound: int) -> Probe:
        tried.append(tokens)
        return Probe(tokens=tokens, peak_bytes=tokens if tokens <= fits_up_to else None, bound_bytes=bound)

    monkeypatch.setattr("grpo.probe._tried", measured)
    changes = {"curriculum": {"kind": "uniform"}, "sft": None, "train.tokens_per_micro_batch": own}
    *_, last = probe(small_run_config(tmp_path, **changes), memory_gib=1.0)
    assert tried == [64, 128, 256, 512, 1024][: 5 if fits_up_to == 4096 else 4]  # 16 rollouts of 64 tokens
    assert last == verdict


def test_what_is_wrong_with_a_model_is_told_by_a_probe_as_by_a_run(tmp_path, capsys):
    file = small_run_file(tmp_path, **{"model.dtype": "float16"})
    assert grpo("check", file, "--probe", "--memory-gib", "64") == ConfigError.exit_code
    assert "model.dtype = 'float16' on the CPU" in capsys.readouterr().err


def test_a_probe_without_a_bound_may_take_what_the_machine_has_left(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal:  9000000 kB\nMemAvailable:  3145728 kB\n")
    monkeypatch.setattr("grpo.probe.MEMORY_FILE", tmp_path / "meminfo")
    monkeypatch.setattr("grpo.probe._tried", lambda *_, tokens, longest, bound: Probe(tokens, None, bound))
    with pytest.raises(OutOfMemoryError, match=r"not even one rollout of 64 tokens fits into 3\.000 GiB"):
        list(probe(small_run_config(tmp_path), memory_gib=None))
    (tmp_path / "meminfo").unlink()
    with pytest.raises(ConfigError, match="set --memory-gib"):
        list(probe(small_run_config(tmp_path), memory_gib=None))


def test_a_bound_without_a_probe_is_refused(tmp_path, capsys):
    assert grpo("check", small_run_file(tmp_path), "--memory-gib", "4") == ConfigError.exit_code
    assert "--memory-gib 4: bounds a probe; add --probe, or leave it out" in capsys.readouterr().err
