"""Every command in README, docs and the heads of configs is one that exists: its options are parsed by the command line
itself, its config is loaded with its overrides, its script is there. Those that take no GPU and no hub are run."""

import dataclasses
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from curricula import Outcome
from grpo.arguments import EPILOG, RUN_COMMANDS, parser
from grpo.commands import COMMANDS
from grpo.config import RunConfig, load
from tests.runs import grpo

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
# What stands for a config of one's own.
PLACEHOLDERS = ("CONFIG.yaml", "CONFIG", "my_run.yaml")
# Launch files: what `grpo` does, by other names.
LAUNCHED = {"profile_tiers": "profile"}


@dataclasses.dataclass(frozen=True)
class Command:
    """A line of a page, as words."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"[:100]


def shell_lines(text: str) -> Iterator[str]:
    for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()


def head_lines(text: str) -> Iterator[str]:
    """What the head of a config says to start it with."""
    head = "\n".join(line.removeprefix("#") for line in text.splitlines() if line.startswith("#"))
    head = head.replace("\\\n", " ")
    for line in head.splitlines():
        found = re.search(r"(?:^\s*|: +)((?:grpo|torchrun|deepspeed) .*)$", line)
        if found:
            yield " ".join(found[1].split())


def commands() -> list[Command]:
    lines = [(page.name, line) for page in PAGES for line in shell_lines(page.read_text(encoding="utf-8"))]
    lines += [(path.name, line) for path in CONFIGS for line in head_lines(path.read_text(encoding="utf-8"))]
    lines += [("grpo --help", line) for line in EPILOG.splitlines() if line.startswith("  grpo ")]
    found = []
    for page, line in lines:
        words = shlex.split(line, comments=True)
        while words and (re.fullmatch(r"[A-Z_]+=\S*", words[0]) or words[0] == "srun"):
            words.pop(0)
        if words:
            words[0] = words[0].removeprefix(".venv/bin/")
        if words and words[0] in ("grpo", "torchrun", "deepspeed", "python", "bash"):
            found.append(Command(page, tuple(word for word in words if word != "&")))
    return found


EVERY = commands()


def as_grpo(words: tuple[str, ...]) -> list[str] | None:
    """The arguments of `grpo`, whichever launcher starts it; None for a script of its own."""
    if words[0] == "grpo":
        return list(words[1:])
    script = next((word for word in words if re.fullmatch(r"scripts/\w+\.py", word)), None)
    if script is None or words[0] in ("python", "bash"):
        return None
    name = Path(script).stem
    return [LAUNCHED.get(name, name), *words[words.index(script) + 1 :]]


def test_the_pages_hold_commands_of_every_kind():
    assert len(EVERY) > 40
    assert {command.words[0] for command in EVERY} == {"grpo", "torchrun", "deepspeed", "python", "bash"}
    assert len({command.page for command in EVERY if command.page.endswith(".yaml")}) >= 8


@pytest.mark.parametrize("command", [command for command in EVERY if as_grpo(command.words)], ids=str)
def test_a_command_of_grpo_is_parsed_and_its_config_is_loaded(command):
    arguments = as_grpo(command.words)
    assert arguments is not None
    parsed, others = parser().parse_known_args(arguments)
    assert parsed.command in COMMANDS
    overrides = [*getattr(parsed, "overrides", []), *others]
    assert [other for other in others if other.startswith("-") or "=" not in other] == []
    if "config" not in parsed or parsed.config is None:
        return
    # What a run wrote into its folder stands for itself: a clean checkout has no runs.
    elsewhere = str(parsed.config) in PLACEHOLDERS or parsed.config.parts[0] == "runs"
    config = load(ROOT / "configs/quickstart.yaml" if elsewhere else ROOT / parsed.config, overrides)
    assert isinstance(config, RunConfig)


@pytest.mark.parametrize("command", [command for command in EVERY if not as_grpo(command.words)], ids=str)
def test_a_script_that_is_named_is_there_and_knows_the_options_that_it_is_given(command):
    path = ROOT / command.words[1]
    assert path.exists(), path
    sources = [path] if path.is_file() else sorted(path.glob("*.py"))
    text = "".join(source.read_text(encoding="utf-8") for source in sources)
    for word in command.words[2:]:
        if word.startswith("--"):
            assert f'"{word}"' in text or word in text, f"{path} knows no {word}"
        elif word.startswith("configs/"):
            assert (ROOT / word).is_file(), word


def test_every_word_after_grpo_in_running_text_is_a_command():
    wrong = []
    for page in PAGES:
        for found in re.findall(r"`grpo ([a-z]+)[ `]", page.read_text(encoding="utf-8")):
            if found not in COMMANDS:
                wrong.append(f"{page.name}: grpo {found}")
    assert wrong == []
    assert set(RUN_COMMANDS) <= set(COMMANDS)


def test_the_check_finds_a_command_that_does_not_exist():
    with pytest.raises(SystemExit):
        parser().parse_known_args(["trian", "CONFIG.yaml"])
    assert as_grpo(("torchrun", "--nproc-per-node", "8", "scripts/profile_tiers.py", "x.yaml", "--resume")) == [
        *("profile", "x.yaml", "--resume"),
    ]
    assert list(head_lines("# Start it: grpo recipe a.yaml\n#   torchrun --nnodes 2 \\\n#     scripts/x.py b\n")) == [
        "grpo recipe a.yaml",
        "torchrun --nnodes 2 scripts/x.py b",
    ]


def test_extras_that_are_told_to_be_installed_are_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {
        name for page in PAGES for name in re.findall(r"grpo-trainer\[(\w[\w-]*)\]", page.read_text(encoding="utf-8"))
    }
    assert named >= {"deepspeed", "tensorboard", "trackio"}
    assert named <= set(extras)


def test_every_link_between_the_pages_leads_somewhere():
    wrong = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            place = (page.parent / path) if path else page
            if not place.exists():
                wrong.append(f"{page.name}: {target}")
            elif anchor and place.suffix == ".md":
                headings = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), flags=re.MULTILINE)
                if anchor not in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}:
                    wrong.append(f"{page.name}: {target}")
    assert wrong == []


# --- run --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def somewhere(tmp_path, monkeypatch) -> Path:
    """A folder like the repository's, with the files that the pages speak of."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    rows = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(40)]
    completions = [row | {"completion": f"It is \\boxed{{{row['answer']}}}."} for row in rows]
    for name, of in (("problems", rows), ("completions", completions)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of), encoding="utf-8")
    page = (ROOT / "docs" / "writing_a_reward.md").read_text(encoding="utf-8")
    (tmp_path / "my_reward.py").write_text("\n".join(re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Commands that need neither a GPU nor a hub, by their beginnings. Of those that train, the shipped configs' own test
# makes two steps.
RUN_HERE = (
    ("init", "my_run.yaml"),
    ("score",),
    ("check", "configs/quickstart.yaml"),
)


def is_run_here(arguments: list[str]) -> bool:
    return any(tuple(arguments[: len(begins)]) == begins for begins in RUN_HERE)


LOCAL = sorted({tuple(as_grpo(c.words) or ()) for c in EVERY if is_run_here(as_grpo(c.words) or [])})


@pytest.mark.parametrize("arguments", LOCAL, ids=" ".join)
def test_a_command_that_needs_no_gpu_and_no_hub_does_what_the_page_says(somewhere, capsys, arguments):
    assert grpo(*arguments) == 0
    said = capsys.readouterr()
    if arguments[0] == "score":
        assert len(said.out.splitlines()) == 40
        assert "40 scored" in said.err
    if arguments[0] == "init":
        assert load(somewhere / "my_run.yaml").reward.name == "math_answer"


def test_the_rewards_of_the_page_score_as_it_says(somewhere, capsys):
    for function, expected in (("brief", 1.0), ("graded", 1.2)):
        assert grpo("score", f"my_reward.py:{function}", "completions.jsonl") == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {row["reward"] for row in rows} == {expected}
    assert rows[0]["parts"] == {"right": 1.0, "short": 1.0}


def test_the_curriculum_of_the_page_keeps_the_rules_that_it_states():
    page = (ROOT / "docs" / "writing_a_curriculum.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    made = names["Rested"]
    assert callable(made)
    ids = [f"p{n}" for n in range(12)]

    def begun() -> object:
        return made(ids, seed=3, rest_steps=2)

    first, given = begun(), []
    states = []
    for _ in range(8):
        states.append(json.loads(json.dumps(first.state_dict())))
        asked = first.next(4)
        assert len(set(asked)) == 4
        given.append(asked)
        first.observe([Outcome(name, 4, 4 if name in ("p0", "p1") else 1) for name in asked])
        first.end_step()
    for step, state in enumerate(states):  # a resume gives the same problems
        again = begun()
        again.load_state_dict(state)
        assert again.next(4) == given[step]
    solved_at = next(step for step, asked in enumerate(given) if "p0" in asked)
    assert all("p0" not in given[step] for step in range(solved_at + 1, min(solved_at + 3, len(given))))


# --- names of other libraries -----------------------------------------------------------------------------------------


def table_cells(page: Path, column: int) -> list[str]:
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [row.strip("|").split(" | ")[column] for row in rows if not row.startswith("| here")]


def dotted_fields() -> set[str]:
    def of(model: type, prefix: str) -> Iterator[str]:
        for name, field in model.model_fields.items():
            yield prefix + name
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                yield from of(field.annotation, f"{prefix}{name}.")

    return set(of(RunConfig, ""))


def test_every_field_that_the_comparison_names_is_one_of_ours():
    cells = table_cells(ROOT / "docs" / "coming_from_trl_and_verl.md", 0)
    named = {name for cell in cells for name in re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)?)[:`]", cell)}
    known = dotted_fields()
    assert len(named) > 35
    assert sorted(name for name in named if name not in known) == []


def test_every_option_of_trl_that_the_comparison_names_is_one():
    from trl import GRPOConfig

    fields = {field.name for field in dataclasses.fields(GRPOConfig)}
    cells = table_cells(ROOT / "docs" / "coming_from_trl_and_verl.md", 1)
    named = {name for cell in cells for name in re.findall(r"`([a-z_0-9]+)[:`]", cell)}
    # Of the trainer, and of no config.
    named -= {"reward_funcs", "train_dataset", "peft_config", "dapo", "grpo", "dr_grpo", "cispo"}
    assert len(named) > 25
    assert sorted(name for name in named if name not in fields) == []
