"""A config file is either right, or refused with the file, the field, the value, the rule and the remedy."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from grpo.config import RunConfig, dump, fingerprint, load, schema
from grpo.config.base import Section
from grpo.errors import ConfigError

SHIPPED = sorted(Path(__file__).resolve().parents[1].glob("configs/*.yaml"))
QUICKSTART = next(path for path in SHIPPED if path.stem == "quickstart")


def refusal(*overrides: str, path: Path = QUICKSTART) -> str:
    """The message with which the config is refused."""
    with pytest.raises(ConfigError) as error:
        load(path, overrides)
    return str(error.value)


@pytest.fixture
def written(tmp_path):
    """Writes a config file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_its_dump_is_the_same_config(path, written):
    config = load(path)
    again = load(written(dump(config)))
    assert again == config
    assert fingerprint(again) == fingerprint(config)


def test_a_dump_spells_out_every_default_and_keeps_keys_that_are_numbers(written):
    config = load(QUICKSTART, ["temperature={kind: steps, milestones: {5: 1.2}}"])
    found = yaml.safe_load(dump(config))
    assert found["temperature"]["milestones"] == {5: 1.2}
    assert found["data"]["train"]["options"]["operations"][2] == 1
    assert found["loss"]["clip_high"] == 0.28
    assert set(found) == set(RunConfig.model_fields)


# --- unknown fields --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "wrong", "meant"),
    [
        ("train.grop_size=4", "train.grop_size", "train.group_size"),
        ("trian={steps: 1}", "trian", "train"),
        ("data.train.pth=x", "data.train.pth", "data.train.path"),
        ("model.lora={rnak: 8}", "model.lora.rnak", "model.lora.rank"),
        ("curriculum.stages.0.step=5", "curriculum.stages.0.step", "curriculum.stages.0.steps"),
        ("sft.traces.prompt_colum=q", "sft.traces.prompt_colum", "sft.traces.prompt_column"),
    ],
)
def test_an_unknown_field_is_refused_with_file_field_and_the_nearest_name(override, wrong, meant):
    assert refusal(override) == f"{QUICKSTART}: {wrong} is not a field; did you mean {meant}?"


def test_an_unknown_field_like_no_other_points_to_the_list_of_fields():
    assert refusal("zzzz=1") == f"{QUICKSTART}: zzzz is not a field; `grpo check --schema` lists every field"


# --- rules of one field ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.group_size=1", "train.group_size = 1: must be at least 2 (Rollouts per problem (G)."),
        ("sampling.top_p=1.5", "sampling.top_p = 1.5: must be at most 1.0 (Draw from the smallest set"),
        ("loss.clip_low=1", "loss.clip_low = 1: must be below 1.0 (Lower side of the clip"),
        ("optim.learning_rate=0", "optim.learning_rate = 0: must be above 0.0 (Learning rate after warm-up"),
        ("optim.learning_rate=.nan", "optim.learning_rate = nan: must be a finite number (Learning rate"),
        ("optim.learning_rate=fast", "optim.learning_rate = 'fast': must be a number (Learning rate"),
        ("train.steps=2.5", "train.steps = 2.5: must be a whole number (Steps of the run"),
        ("train.steps=many", "train.steps = 'many': must be a whole number (Steps of the run"),
        ("train.steps=yes", "train.steps = True: must be a number (Steps of the run"),
        ("run.threads=true", "run.threads = True: must be a number (Torch threads"),
        ("curriculum.stages.1.until_plateau=7", "curriculum.stages.1.until_plateau = 7: must be true or false (End"),
        (
            "model.dtype=int8",
            "model.dtype = 'int8': must be one of 'float32', 'bfloat16' or 'float16' (Type of weights",
        ),
        ("run.name=a b", "run.name = 'a b': must match ^[A-Za-z0-9]"),
        ("run.name=5", "run.name = 5: must be a text (Name of the run's folder"),
        ("sampling.stop_strings=x", "sampling.stop_strings = 'x': must be a list (Texts that end"),
        ("run=5", "run = 5: must be a section, a mapping of its fields (Where the run lives"),
        ("data.train.options=x", "data.train.options = 'x': must be a mapping (Options of a task:NAME source"),
        ("optim.betas=[0.9]", "optim.betas.1 is missing; set it (Decay of the first and second moment.)"),
        ("optim.betas=[1, 1, 1]", "optim.betas = [1, 1, 1]: must have at most 2 entries (Decay"),
        ("curriculum.stages.0.tiers=[]", "curriculum.stages.0.tiers = []: must have at least 1 entries (Tiers"),
        (
            "curriculum.stages.1.tiers=[extreme, odd]",
            "curriculum.stages.1.tiers.1 = 'odd': must be one of 'trivial', 'moderate', 'extreme' or 'unsolved' (Tiers",
        ),
        ("curriculum.stages.1.group_size=1", "curriculum.stages.1.group_size = 1: must be at least 2 (Rollouts"),
        ("temperature.milestones={x: 1}", "temperature.milestones.x = 'x': must be a whole number (Step to temp"),
        ("model.lora={target_modules: 5}", "model.lora.target_modules = 5: must be a list (Module names to adapt"),
        ("data={}", "data.train is missing; set it (Problems to practise.)"),
        ("train={}", "train.steps is missing; set it (Steps of the run, all stages together.)"),
    ],
)
def test_a_value_against_the_rule_of_its_field_is_refused_with_the_rule_and_the_sentence(override, expected):
    assert f"{QUICKSTART}: {expected}" in refusal(override)


def test_every_fault_of_a_file_is_named_at_once_on_a_line_of_its_own():
    lines = refusal("train.group_size=1", "optim.eps=0", "run.nme=x").splitlines()
    assert [line.removeprefix(f"{QUICKSTART}: ").split(" ")[0] for line in lines] == [
        "optim.eps",
        "run.nme",
        "train.group_size",
    ]


def test_a_sentence_of_several_lines_is_one_line_in_a_message():
    (line,) = refusal("train.tokens_per_micro_batch=0").splitlines()
    assert line.endswith("cannot be packed (the start says so). Lower it when training runs out of memory.)")


# --- rules between fields --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.path=x"], "model: set exactly one of path"),
        (["model.architecture=null"], "model: set exactly one of path"),
        (["model.architecture={hidden_size: 8}"], "model: architecture has no model_type"),
        (["model.tokenizer=null"], "model: a model from architecture brings no tokenizer"),
        (
            ["model={path: x, initial_embedding_std: 1.0}"],
            "model: initial_embedding_std is for a model from architecture",
        ),
        (["chat={style: plain, template_file: a.jinja}"], "chat: template_file is set but style is plain"),
        (["data.train.answer_pattern=(", "data.train.path=x"], "data.train: answer_pattern = '(': is no regular"),
        (["data.train.answer_pattern=(.*)"], "data.train: answer_pattern = '(.*)': has no group (?P<answer>...)"),
        (["sft.traces.drop_pattern=','"], "sft.traces: drop_pattern = ',' edits the groups of answer_pattern"),
        (["sampling.stop_strings=['']"], "sampling: stop_strings = ['']: an empty text"),
        (["temperature.kind=linear"], "temperature: kind = 'linear' needs final"),
        (["temperature.final=1"], "temperature: final = 1.0 is for the kinds linear and cosine"),
        (["temperature.kind=steps"], "temperature: milestones = {} and kind = 'steps'"),
        (["temperature.milestones={5: 1.2}"], "milestones and kind steps go together"),
        (["temperature.grid=[1, 0]"], "temperature: grid = [1.0, 0.0]"),
        (["temperature.grid=[]"], "temperature: grid = []: must name at least one"),
        (["temperature={kind: steps, milestones: {0: 1.2}}"], "the first step of a change is 1"),
        (["reward.file=a.py"], "reward: set exactly one of name"),
        (["reward={file: a.py}"], "reward: file and function go together"),
        (["profile.max_rollouts=4"], "profile: max_rollouts = 4 is below first_rollouts = 8"),
        (["curriculum.stages=[]"], "curriculum: two_stages needs at least one stage"),
        (["curriculum.stages.0.steps=null"], "curriculum: stage moderate never ends"),
        (["loss.truncated=penalty"], "loss: truncated = 'penalty' and penalty_buffer_tokens = 0"),
        (["loss={surrogate: cispo, dual_clip: 3}"], "loss: dual_clip = 3.0 is for surrogate clip"),
        (["loss={dual_clip: 1.1}"], "loss: dual_clip = 1.1: must be above 1 + clip_high = 1.28"),
        (
            ["loss={correction: truncated, correction_low: 2}"],
            "loss: correction_low = 2.0: must be below correction_high = 2.0",
        ),
        (
            ["loss={correction: icepop, correction_high: 0.4}"],
            "loss: correction_low = 0.5: must be below correction_high = 0.4",
        ),
        (["optim.betas=[0.9, 1.0]"], "optim: betas = [0.9, 1.0]: each must be at least 0 and below 1"),
        (["sft.micro_batch_size=48"], "sft: batch_size = 64: must be a multiple of micro_batch_size = 48"),
        (["evaluation.k=[1, 16]"], "evaluation: k = [1, 16]: each must be from 1 to rollouts_per_problem = 8"),
        (["evaluation.k=[]"], "evaluation.k = []: must have at least 1 entries (pass@k is reported for each.)"),
        (["evaluation.patience=3"], "evaluation: every_steps = 0, but patience = 3"),
        (["evaluation.checkpoints=[best]"], "evaluation: every_steps = 0, but patience = None and checkpoints"),
        (["loss.correction=icepop", "train.old_logprobs=sampler"], "loss.correction compares the policy"),
        (
            ["loss={truncated: penalty, penalty_buffer_tokens: 41}"],
            "loss.penalty_buffer_tokens = 41 is above sampling.max_completion_tokens = 40",
        ),
        (
            ["train.problems_per_step=32", "train.minibatches_per_step=33"],
            "train.minibatches_per_step = 33 is above train.problems_per_step = 32",
        ),
        (
            ["train.minibatches_per_step=4", "curriculum.stages.1.problems_per_step=3"],
            "train.minibatches_per_step = 4 is above curriculum.stages.1.problems_per_step = 3",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused_and_never_rewritten(overrides, expected):
    message = refusal(*overrides)
    assert message.startswith(f"{QUICKSTART}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("section", "unread", "because"),
    [
        ("loss", "surrogate: cispo, clip_low: 0.1", "clip_low = 0.1 is not read where surrogate is cispo"),
        ("loss", "surrogate: cispo, clip_high: 0.2", "clip_high = 0.2 is not read where surrogate is cispo"),
        ("loss", "cispo_max_weight: 2", "cispo_max_weight = 2.0 is not read where surrogate is clip"),
        ("loss", "correction_low: 0.1", "correction_low = 0.1 is not read where correction is none"),
        ("loss", "correction_high: 3", "correction_high = 3.0 is not read where correction is none"),
        ("optim", "final_fraction: 0.5", "final_fraction = 0.5 is not read where schedule is constant"),
        ("temperature", "grid: [1.0]", "grid = [1.0] is not read where kind is constant"),
        ("temperature", "kind: linear, final: 1.2, guard: 0.02", "guard = 0.02 is not read where kind is linear"),
        ("temperature", "window_steps: 9", "window_steps = 9 is not read where kind is constant"),
        ("temperature", "guard_kind: absolute", "guard_kind = 'absolute' is not read where kind is constant"),
        ("temperature", "reference: best", "reference = 'best' is not read where kind is constant"),
        ("temperature", "rollouts_per_problem: 4", "rollouts_per_problem = 4 is not read where kind is constant"),
        ("temperature", "max_standard_error: 0.1", "max_standard_error = 0.1 is not read where kind is constant"),
        ("temperature", "cooldown_steps: 5", "cooldown_steps = 5 is not read where kind is constant"),
    ],
)
def test_a_field_that_nothing_reads_is_refused_with_why_and_its_default_may_stand(section, unread, because):
    assert f"{QUICKSTART}: {section}: {because}; drop it or set " in refusal(f"{section}={{{unread}}}")
    name = because.split(" = ")[0]
    choice = ", ".join(part for part in unread.split(", ") if not part.startswith(name))
    at_default = getattr(load(QUICKSTART, [f"{section}={{{choice}}}"]), section)
    spelled_out = yaml.safe_dump({name: getattr(at_default, name)}, default_flow_style=True).strip()[1:-1]
    parts = ", ".join(part for part in (choice, spelled_out) if part)
    assert getattr(load(QUICKSTART, [f"{section}={{{parts}}}"]), section) == at_default


@pytest.mark.parametrize("clips", ["", "clip_low: 3.0e-4", "clip_high: 4.0e-4", "clip_low: 0.05, clip_high: 0.01"])
def test_a_ratio_by_sequence_needs_clips_of_its_own_size(clips):
    message = refusal(f"loss={{ratio: sequence, {clips}}}")
    assert "both must be below 0.05 with ratio sequence" in message
    assert "set clip_low: 3.0e-4 and clip_high: 4.0e-4, as GSPO does" in message


@pytest.mark.parametrize(
    "loss", ["ratio: sequence, clip_low: 3e-4, clip_high: 4e-4", "ratio: sequence, surrogate: cispo"]
)
def test_a_ratio_by_sequence_with_small_clips_or_none_is_taken(loss):
    assert load(QUICKSTART, [f"loss={{{loss}}}"]).loss.ratio == "sequence"


@pytest.mark.parametrize(
    ("loss", "lowest"),
    [
        ("correction: icepop", 0.5),
        ("correction: truncated", 0.0),
        ("correction: icepop, correction_low: 0", 0.0),
        ("correction: truncated, correction_low: 0.25", 0.25),
    ],
)
def test_the_lower_bound_of_a_correction_is_the_published_one_unless_it_is_set(loss, lowest):
    overrides = ["train.old_logprobs=policy", f"loss={{{loss}}}"]
    assert load(QUICKSTART, overrides).loss.lowest_correction == lowest


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_named_with_the_remedy(tmp_path):
    assert "no such file; give the path of a run's YAML config" in refusal(path=tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run: {name: a\n", "not valid YAML"),
        ("", "must be a mapping of sections (run, model, data, ...); got NoneType"),
        ("[1, 2]", "must be a mapping of sections (run, model, data, ...); got list"),
        ("run:\n  name: a\nrun:\n  name: b\n", "the key 'run' stands twice; keep one of them"),
        ("run:\n  name: a\n  seed: 1\n  name: b\n", "the key 'name' stands twice; keep one of them"),
    ],
)
def test_a_file_that_is_no_mapping_of_sections_is_refused(written, text, expected):
    path = written(text)
    message = refusal(path=path)
    assert message.startswith(f"{path}: ")
    assert expected in message


def test_a_key_that_stands_twice_is_refused_with_its_line(written):
    assert "line 4" in refusal(path=written("run:\n  name: a\n  seed: 1\n  name: b\n"))


NUMBERS = {"1e-6": 1e-6, "1E6": 1e6, "-2e+3": -2e3, ".5e1": 5.0, "3.e2": 300.0, "1.5e3": 1.5e3, "+1e2": 100.0}
TEXTS = ["e-6", "1e", "1e-6x", "1-6", "1e-6.0", "0x1e-6", "--1e5"]


def test_a_number_with_an_exponent_is_one_in_a_mapping_of_free_form_and_a_text_stays_one(written):
    raw = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    reward = raw.pop("reward")
    options = "".join(f"    - {text}\n" for text in (*NUMBERS, *TEXTS))
    path = written(f"{yaml.safe_dump(raw)}reward:\n  name: {reward['name']}\n  options:\n    values:\n{options}")
    assert load(path).reward.options["values"] == [*NUMBERS.values(), *TEXTS]


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_an_override_with_an_exponent_is_a_number_in_a_mapping_of_free_form(text, number):
    config = load(QUICKSTART, [f"model.architecture.rms_norm_eps={text}", f"reward.options={{weights: [{text}]}}"])
    assert config.model.architecture is not None
    assert config.model.architecture["rms_norm_eps"] == number
    assert config.reward.options["weights"] == [number]


def test_a_text_that_looks_like_a_number_is_still_a_text_after_a_dump(written):
    config = load(QUICKSTART, ['reward.options={text: "1e-6", number: 1e-6, plain: 1.0}'])
    again = load(written(dump(config)))
    assert again.reward.options == {"text": "1e-6", "number": 1e-6, "plain": 1.0}
    assert again == config


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"run: \xff\xfe\xff")
    assert "not valid YAML" in refusal(path=tmp_path / "mine.yaml")


# --- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("run.seed=7", "run.seed", 7),
        ("optim.learning_rate=2e-6", "optim.learning_rate", 2e-6),
        ("run.threads=null", "run.threads", None),
        ("curriculum.stages.0.steps=5", "curriculum.stages.0.steps", 5),
        ("curriculum.stages.0={name: all, tiers: [moderate], steps: 3}", "curriculum.stages.0.name", "all"),
        ("evaluation.k=[1, 4]", "evaluation.k", [1, 4]),
        ("evaluation.k.1=4", "evaluation.k", [1, 4]),
        ("data.train.options.num_rows=900", "data.train.options.num_rows", 900),
        ("tracking.wandb_project=a=b", "tracking.wandb_project", "a=b"),
        ("model.lora={rank: 4}", "model.lora.rank", 4),
        ("model.lora.rank=4", "model.lora.rank", 4),
        ('chat.system_prompt="be brief: yes"', "chat.system_prompt", "be brief: yes"),
        ("sft=null", "sft", None),
    ],
)
def test_an_override_sets_its_field_to_the_value_in_yaml(override, path, value):
    found: Any = load(QUICKSTART, [override])
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value


def test_the_last_override_of_a_field_wins():
    assert load(QUICKSTART, ["run.seed=1", "run.seed=2"]).run.seed == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.seed", "must read section.key=value"),
        ("=3", "must read section.key=value"),
        ("run.seed={a: 1", "the value is not valid YAML"),
        ("run.seed={a: 1, a: 2}", "the key 'a' stands twice"),
        ("run.name.first=x", "run.name is not a section"),
        ("curriculum.stages.7.steps=1", "curriculum.stages is not a section"),
        ("curriculum.stages.7=x", "curriculum.stages is not a section"),
        ("curriculum.stages.first.steps=1", "curriculum.stages is not a section"),
    ],
)
def test_an_override_that_cannot_be_applied_is_quoted_with_the_reason(override, expected):
    message = refusal(override)
    assert message.startswith(f"override {override!r}: ")
    assert expected in message


def test_an_override_of_one_field_leaves_its_yaml_anchor_alone(written):
    text = QUICKSTART.read_text(encoding="utf-8")
    raw = yaml.safe_load(text)
    del raw["data"]["heldout"]
    anchored = yaml.safe_dump(raw).replace(
        "  train:\n", "  heldout: &rows\n    path: x\n    options: {}\n  train:\n", 1
    )
    assert anchored.count("&rows") == 1
    start = anchored.index("  train:\n")
    end = anchored.index("  validation_problems")
    path = written(anchored[:start] + "  train: *rows\n" + anchored[end:])
    config = load(path, ["data.train.path=y", "data.train.options.num_rows=3"])
    assert (config.data.train.path, config.data.train.options) == ("y", {"num_rows": 3})
    assert config.data.heldout is not None
    assert (config.data.heldout.path, config.data.heldout.options) == ("x", {})


# --- schema, fingerprint, imports -------------------------------------------------------------------------------------


def sections_under(section: type[Section]) -> list[type[Section]]:
    """All that derive from it in grpo.config; other files that users write have sections of their own."""
    below = [found for child in section.__subclasses__() for found in (child, *sections_under(child))]
    return [found for found in below if found.__module__.startswith("grpo.config.")]


def test_every_field_of_the_schema_has_a_description_and_json_can_hold_it():
    found = json.loads(json.dumps(schema()))
    sections = [found, *(d for d in found["$defs"].values() if d["type"] == "object")]
    assert len(sections) == len(sections_under(Section))  # RunConfig, which holds them, is one of both
    for section in sections:
        assert section.get("description"), section["title"]
        for name, field in section["properties"].items():
            refers = [field, *field.get("anyOf", [])]
            described = any("description" in part or _target(found, part).get("description") for part in refers)
            assert described, f"{section['title']}.{name}"


def _target(found: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    return found["$defs"].get(part.get("$ref", "").rpartition("/")[2], {})


def test_every_field_says_in_one_sentence_what_it_is():
    def fields(model: type[BaseModel]):
        for name, field in model.model_fields.items():
            yield f"{model.__name__}.{name}", field.description

    for section in Section.__subclasses__():
        if section is not RunConfig:
            for name, description in fields(section):
                assert description, name
                assert description.rstrip().endswith((".", ")")), name


@pytest.mark.parametrize(
    "override",
    [
        "run.seed=1",
        "run.name=other",
        "train.group_size=4",
        "optim.learning_rate=1e-9",
        "curriculum.stages.0.steps=41",
        "data.train.options.num_rows=1999",
        "model.architecture.hidden_size=32",
        "reward.success_threshold=0.5",
        "sampling.top_k=8",
        "sft=null",
    ],
)
def test_the_fingerprint_changes_with_what_changes_the_run(override):
    before, after = fingerprint(load(QUICKSTART)), fingerprint(load(QUICKSTART, [override]))
    assert before != after
    assert all(name.startswith(override.split("=")[0].split(".")[0]) for name in _differing(before, after))


@pytest.mark.parametrize(
    "override",
    [
        "run.folder=elsewhere",
        "run.threads=2",
        "tracking.wandb=offline",
        "checkpoint.keep_last=9",
        "reward.workers=0",
        "reward.timeout_seconds=1",
        "train.steps=999",
        "sampling.max_rows=8",
        "train.tokens_per_micro_batch=64",
        "model.activation_checkpointing=true",
    ],
)
def test_the_fingerprint_stays_with_what_a_resume_may_change(override):
    steady = "optim={schedule: constant}"  # a schedule that ends with the run holds on to train.steps
    assert fingerprint(load(QUICKSTART, [steady])) == fingerprint(load(QUICKSTART, [steady, override]))


@pytest.mark.parametrize("schedule", ["optim.schedule=cosine", "temperature={kind: linear, final: 0.5}"])
def test_the_number_of_steps_is_not_free_where_a_schedule_ends_with_the_run(schedule):
    before, after = (fingerprint(load(QUICKSTART, [schedule, f"train.steps={steps}"])) for steps in (100, 200))
    assert _differing(before, after) == {"train.steps"}


def _differing(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load(QUICKSTART).run.seed = 5  # type: ignore[misc]


def test_the_config_package_imports_neither_torch_nor_transformers():
    code = "import sys, grpo.config, grpo.cli; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
