"""What `grpo export` writes is the policy of the checkpoint: the same logits, prompts and ends, loaded without us."""

import errno
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo import checkpoint
from grpo.chat import Chat
from grpo.config import ChatConfig, RunConfig, dump
from grpo.errors import CheckpointError, ConfigError, DiskError
from grpo.export import export
from grpo.model import base_of, end_token_ids, load_model, load_tokenizer
from grpo.types import Message, Problem
from tests.runs import FIELDS, grpo, small_run_config

IDS = torch.arange(24).view(2, 12) * 5 % 96
LORA = {"rank": 4, "alpha": 8.0}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}>>{% endif %}"


def made_model(config: RunConfig) -> nn.Module:
    tokenizer = load_tokenizer(config.model)
    return load_model(config.model, tokenizer=tokenizer, seed=config.run.seed, device=torch.device("cpu"))


def made_run(folder: Path, *, at: str = "step_000004", seed: int = 1, **changes: Any) -> tuple[Path, nn.Module]:
    """A run's folder with one checkpoint, whose weights lie away from the first ones, and a model that has them."""
    config = small_run_config(folder, **changes)
    run = Path(config.run.folder) / config.run.name
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(dump(config), encoding="utf-8")
    model = made_model(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    checkpoint.save(run / "checkpoints" / at, weights=checkpoint.weights_of(model), optimizer=None, state={"step": 4})
    return run, model


def made_base(folder: Path, *, dtype: str, tied: bool) -> Path:
    """A pretrained model's folder, with its tokenizer."""
    architecture = FIELDS["model"]["architecture"] | {"tie_word_embeddings": tied}
    config = small_run_config(folder, **{"model.architecture": architecture, "model.dtype": dtype})
    base_of(made_model(config)).save_pretrained(folder / "base")
    load_tokenizer(config.model).save_pretrained(folder / "base")
    return folder / "base"


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits.float()


def exported(run: Path, output: Path, **options: Any) -> Path:
    said: list[str] = options.pop("said", [])
    return export(run, output=output, **{"checkpoint_name": None, "form": None, "say": said.append} | options)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pretrained", [True, False])
def test_the_folder_holds_the_policy_of_the_checkpoint(tmp_path, dtype, tied, pretrained):
    origin: dict[str, Any] = {"model.architecture": FIELDS["model"]["architecture"] | {"tie_word_embeddings": tied}}
    if pretrained:
        path = str(made_base(tmp_path, dtype=dtype, tied=tied))
        origin = {"model": {"path": path, "dtype": dtype}}
    run, model = made_run(tmp_path, **origin, **{"model.dtype": dtype})
    assert exported(run, tmp_path / "out") == run / "checkpoints" / "step_000004"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == getattr(torch, dtype)
    assert torch.equal(logits(loaded), logits(model))
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert loaded.config.use_cache


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_float16_policy_leaves_a_gpu_as_it_is(tmp_path, lora):
    run, model = made_run(tmp_path, **{"model.lora": lora})
    if lora is None:
        checkpoint.save(
            run / "checkpoints" / "step_000004",
            weights={name: weight.half() for name, weight in checkpoint.weights_of(model).items()},
            optimizer=None,
            state={},
        )
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("dtype: float32", "dtype: float16"))
    exported(run, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == torch.float16
    expected = base_of(model) if lora is None else model.merge_and_unload()
    assert_weights_equal(loaded, expected.half())


def test_a_head_in_float32_is_the_same_weight_in_the_folder(tmp_path):
    run, model = made_run(tmp_path, **{"model.float32_head": True, "model.dtype": "bfloat16"})
    exported(run, tmp_path / "out")
    assert_weights_equal(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto"), base_of(model))


def assert_weights_equal(found: nn.Module, expected: nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
@pytest.mark.parametrize("pretrained", [True, False])
def test_merged_adapters_give_the_logits_of_base_and_adapters(tmp_path, dtype, tolerance, pretrained):
    origin: dict[str, Any] = {}
    if pretrained:
        origin = {"model": {"path": str(made_base(tmp_path, dtype=dtype, tied=True))}}
    run, model = made_run(tmp_path, **origin, **{"model.lora": LORA, "model.dtype": dtype})
    exported(run, tmp_path / "out", form="merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == getattr(torch, dtype)
    expected = logits(model)
    assert float((logits(loaded) - expected).abs().max()) <= tolerance * float(expected.std())
    with model.disable_adapter():
        moved = (logits(model) - expected).abs().max()
    assert moved > 0.2 * expected.std()  # else the adapters could be missing unseen


def test_merged_is_what_a_run_with_adapters_gets_without_a_flag(tmp_path):
    run, _ = made_run(tmp_path, **{"model.lora": LORA})
    exported(run, tmp_path / "out")
    exported(run, tmp_path / "merged", form="merged")
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("out", "merged"))
    assert torch.equal(logits(first), logits(second))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peft_loads_the_adapters_on_their_base(tmp_path, dtype):
    base = made_base(tmp_path, dtype=dtype, tied=False)
    run, model = made_run(tmp_path, model={"path": str(base), "dtype": dtype, "lora": LORA})
    exported(run, tmp_path / "out", form="adapter")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), tmp_path / "out")
    assert torch.equal(logits(loaded), logits(model))
    AutoTokenizer.from_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize("style", ["plain", "template"])
def test_the_exported_tokenizer_makes_the_prompts_of_the_run(tmp_path, style):
    (tmp_path / "chat.jinja").write_text(TEMPLATE, encoding="utf-8")
    fields = {"style": style} | ({"template_file": str(tmp_path / "chat.jinja")} if style == "template" else {})
    run, model = made_run(tmp_path, chat=fields)
    exported(run, tmp_path / "out")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 12|ab\n"}]
    problem = Problem(id="1", messages=tuple(Message(**m) for m in messages), answer="", reward=None, meta={})
    before = load_tokenizer(small_run_config(tmp_path).model)
    chat = Chat(before, ChatConfig.model_validate(fields), end_token_ids=end_token_ids(model, before))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert tuple(ids) == chat.prompt_ids(problem)
    generation = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert generation.eos_token_id == chat.end_token_ids[0]


def test_a_system_prompt_of_the_config_is_told_of(tmp_path):
    run, _ = made_run(tmp_path, **{"chat.system_prompt": "Be brief."})
    said: list[str] = []
    exported(run, tmp_path / "out", said=said)
    assert said == [
        "the prompts of this run began with chat.system_prompt, which no template holds: give it as a message"
    ]


def test_an_end_token_of_the_generation_config_ends_a_completion_of_the_folder_too(tmp_path):
    base = made_base(tmp_path, dtype="float32", tied=False)
    generation = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [7, 95]}))
    run, _ = made_run(tmp_path, model={"path": str(base), "dtype": "float32"})
    exported(run, tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id == [95, 7]


# --- which checkpoint -------------------------------------------------------------------------------------------------


def test_the_newest_whole_checkpoint_is_taken_and_a_torn_one_is_told_of(tmp_path):
    run, model = made_run(tmp_path)
    made_run(tmp_path, at="step_000006", seed=2)
    (run / "checkpoints" / "step_000006" / "policy.safetensors").unlink()
    said: list[str] = []
    assert exported(run, tmp_path / "out", said=said).name == "step_000004"
    assert len(said) == 1
    assert said[0].startswith("passed over: ")
    assert "step_000006: torn, policy.safetensors is missing" in said[0]
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


@pytest.mark.parametrize("name", ["best", "best_000002", "cold_start", "step_000004", "a path"])
def test_a_checkpoint_is_named_by_its_folder_by_best_or_by_a_path(tmp_path, name):
    seeds = {"step_000004": 1, "step_000006": 2, "cold_start": 3, "best_000002": 4}
    models = {}
    for at, seed in seeds.items():
        run, models[at] = made_run(tmp_path, at=at, seed=seed)
    wanted = {"best": "best_000002", "a path": "step_000004"}.get(name, name)
    given = str(run / "checkpoints" / wanted) if name == "a path" else name
    assert exported(run, tmp_path / "out", checkpoint_name=given).name == wanted
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(models[wanted]))


def test_a_checkpoint_that_its_run_deletes_meanwhile_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    run, _ = made_run(tmp_path)
    monkeypatch.setattr(checkpoint, "check", lambda path: (path / "policy.safetensors").unlink(missing_ok=True))
    with pytest.raises(CheckpointError, match="was deleted while it was read"):
        exported(run, tmp_path / "out")


# --- bad input: the message and the exit code -------------------------------------------------------------------------


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    code = grpo("export", *arguments)
    said = capsys.readouterr()
    assert said.out == ""
    return code, said.err


def test_the_command_exports_and_says_what(tmp_path, capsys):
    run, _ = made_run(tmp_path)
    assert grpo("export", run, "--output", tmp_path / "out") == 0
    assert capsys.readouterr().out == f"{run / 'checkpoints' / 'step_000004'} is in {tmp_path / 'out'}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    code, said = refusal(capsys, tmp_path / "nowhere", "--output", tmp_path / "out")
    assert code == ConfigError.exit_code
    assert "nowhere: no folder of a run (there is no config.yaml in it)" in said


def test_a_run_without_a_checkpoint_is_refused_and_others_are_named(tmp_path, capsys):
    run, _ = made_run(tmp_path, at="cold_start")
    code, said = refusal(capsys, run, "--output", tmp_path / "out")
    assert code == CheckpointError.exit_code
    assert "no whole checkpoint of a step; --checkpoint takes cold_start" in said
    for name in ("best", "step_000100"):
        code, said = refusal(capsys, run, "--output", tmp_path / "out", "--checkpoint", name)
        assert code == CheckpointError.exit_code
        assert "--checkpoint takes cold_start" in said
    (run / "checkpoints" / "cold_start").rename(run / ".gone")
    code, said = refusal(capsys, run, "--output", tmp_path / "out")
    assert code == CheckpointError.exit_code
    assert "the run has saved none yet" in said


@pytest.mark.parametrize("torn", ["policy.safetensors", "manifest.json"])
def test_a_torn_checkpoint_that_is_named_is_refused(tmp_path, capsys, torn):
    run, _ = made_run(tmp_path)
    (run / "checkpoints" / "step_000004" / torn).unlink()
    code, said = refusal(capsys, run, "--output", tmp_path / "out", "--checkpoint", "step_000004")
    assert code == CheckpointError.exit_code
    assert torn in said
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path, capsys):
    run, _ = made_run(tmp_path)
    _, other = made_run(tmp_path / "other", **{"model.lora": LORA})
    weights = checkpoint.weights_of(other)
    checkpoint.save(run / "checkpoints" / "step_000009", weights=weights, optimizer=None, state={})
    code, said = refusal(capsys, run, "--output", tmp_path / "out")
    assert code == CheckpointError.exit_code
    assert "the checkpoint is of another model" in said


def test_an_output_that_holds_something_is_refused_and_an_empty_folder_is_taken(tmp_path, capsys):
    run, _ = made_run(tmp_path)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    for name in ("file", "full"):
        code, said = refusal(capsys, run, "--output", tmp_path / name)
        assert code == ConfigError.exit_code
        assert f"--output {tmp_path / name}: is there already, and not an empty folder; name another one" in said
    assert (tmp_path / "full" / "file").read_text() == "kept"
    (tmp_path / "empty").mkdir()
    assert grpo("export", run, "--output", tmp_path / "empty") == 0


@pytest.mark.parametrize("flag", ["--adapter", "--merged"])
def test_a_form_of_adapters_is_refused_where_there_are_none(tmp_path, capsys, flag):
    run, _ = made_run(tmp_path)
    code, said = refusal(capsys, run, "--output", tmp_path / "out", flag)
    assert code == ConfigError.exit_code
    assert f"{flag} is for a run that trained adapters" in said


def test_adapters_alone_are_refused_for_a_base_that_has_no_path(tmp_path, capsys):
    run, _ = made_run(tmp_path, **{"model.lora": LORA})
    code, said = refusal(capsys, run, "--output", tmp_path / "out", "--adapter")
    assert code == ConfigError.exit_code
    assert "there is no model.path that the adapters could be loaded on; take --merged" in said


def test_merging_into_a_tied_weight_is_refused(tmp_path, capsys):
    architecture = FIELDS["model"]["architecture"] | {"tie_word_embeddings": True}
    lora = LORA | {"target_modules": ["lm_head"]}
    run, _ = made_run(tmp_path, **{"model.architecture": architecture, "model.lora": lora})
    code, said = refusal(capsys, run, "--output", tmp_path / "out")
    assert code == ConfigError.exit_code
    assert "lm_head.base_layer.weight has an adapter and is tied to another weight" in said


def test_both_forms_at_once_are_a_wrong_command_line(tmp_path):
    with pytest.raises(SystemExit) as stop:
        grpo("export", tmp_path, "--output", tmp_path / "out", "--merged", "--adapter")
    assert stop.value.code == 2


@pytest.mark.parametrize("quoted", [True, False])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch, quoted):
    run, _ = made_run(tmp_path)

    def full(tokenizer: object, folder: Path, *, template: str) -> None:
        (folder / "half").write_text("half")
        if quoted:  # as tokenizers' Rust says it
            raise Exception(f"No space left on device (os error {errno.ENOSPC})")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("grpo.export._save_tokenizer", full)
    with pytest.raises(DiskError, match=r"out: No space left on device; make room or give permission, then export"):
        exported(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
