"""The floors of the house: who may import whom, read from the source by `ast`, imports inside functions included."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from grpo.arguments import RUN_COMMANDS

ROOT = Path(__file__).resolve().parents[1]

# From the top. A module imports modules of lower floors, and those to its right on its own floor.
FLOORS = (
    ("cli", "commands", "arguments", "persona_cli", "wiring"),
    (
        *(
            "talk",
            "init",
            "pace",
            "probe",
            "check",
            "disk",
            "scoring",
            "replay",
            "recipe",
            "persona_commands",
            "final_evaluation",
            "starts",
        ),
        *("trainer", "thermostat", "update", "sft", "profiling", "evaluation"),
    ),
    ("collecting", "persona", "profile_meter", "rollout", "sampling", "tracking"),
    (
        *(
            "manifest",
            "fingerprints",
            "stock",
            "export",
            "distributed",
            "policy",
            "batch",
            "optim",
            "checkpoint",
            "folder",
        ),
        *("columns", "evaluation_sets", "practice", "data", "published", "chat"),
        *("model", "steering", "tasks", "watchdog", "heartbeat", "guards"),
    ),
    ("attention", "advantages", "linears", "losses", "logprobs", "norms", "packing"),
    ("types", "config", "seeds", "errors", "recompute"),
)
WITHOUT_TORCH = (
    "types",
    "config",
    "seeds",
    "errors",
    "folder",
    "practice",
    "scoring",
    "cli",
    "commands",
    "arguments",
    "persona_cli",
)

# A package of some weight or risk, and the one file that may import it, inside a function.
QUARANTINE = {
    "deepspeed": "grpo/distributed/zero.py",
    "trl": "grpo/sft.py",
    "peft": "grpo/model.py",
    "vllm": "grpo/sampling/vllm.py",
    "wandb": "grpo/tracking/wandb_sink.py",
    "trackio": "grpo/tracking/trackio_sink.py",
    "datasets": "grpo/data.py",
    "pyarrow": "grpo/manifest.py",
    "math_verify": "rewards/math_answer.py",
    "reasoning_gym": "rewards/generated.py",
    "httpx": "rewards/judge.py",
    "langdetect": "rewards/prose/detection.py",
    "nltk": "rewards/prose/sentences.py",
    "starlette": "grpo/tracking/dashboard.py",
    "uvicorn": "grpo/tracking/dashboard.py",
}


@dataclass(frozen=True)
class Import:
    """One import statement: what of which package, and whether it is at the top of its file."""

    file: str
    line: int
    target: str  # dotted
    at_top: bool

    @property
    def package(self) -> str:
        return self.target.split(".")[0]


def imports_of(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    file = str(path.relative_to(ROOT))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute here"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(file=file, line=node.lineno, target=target, at_top=id(node) in top)


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


EVERY = [found for package in ("grpo", "rewards", "curricula") for p in files_of(package) for found in imports_of(p)]


def room_of(dotted: str) -> str:
    """The module of `grpo` on a floor that a dotted name lies in: grpo.sampling.native.X is sampling."""
    return dotted.split(".")[1]


def file_room(file: str) -> str:
    return Path(file).parts[1].removesuffix(".py")


def may_import(importer: str, imported: str) -> bool:
    places = {room: (depth, place) for depth, floor in enumerate(FLOORS) for place, room in enumerate(floor)}
    return importer == imported or places[importer] < places[imported]


def test_every_module_of_grpo_has_a_floor_and_one_only():
    rooms = [room for floor in FLOORS for room in floor]
    assert len(rooms) == len(set(rooms))
    found = {file_room(str(path.relative_to(ROOT))) for path in files_of("grpo")} - {"__init__"}
    assert found <= set(rooms), f"give a floor to {sorted(found - set(rooms))}"
    assert set(rooms) <= found, f"no such module: {sorted(set(rooms) - found)}"


def test_modules_import_lower_floors_and_to_their_right_only():
    wrong = [
        f"{found.file}:{found.line} imports {found.target}"
        for found in EVERY
        if found.file.startswith("grpo/") and found.package == "grpo"
        if not may_import(file_room(found.file), room_of(found.target))
    ]
    assert wrong == []


@pytest.mark.parametrize(("importer", "imported"), [("losses", "trainer"), ("config", "types"), ("data", "rollout")])
def test_the_rule_refuses_an_import_of_a_higher_floor_or_to_the_left(importer, imported):
    assert may_import(imported, importer)
    assert not may_import(importer, imported)


@pytest.mark.parametrize("package", ["rewards", "curricula"])
def test_the_ground_stands_on_its_own_without_torch(package):
    others = {"torch", "transformers", "grpo", "rewards", "curricula", "scripts"} - {package}
    assert [found for found in EVERY if found.file.startswith(f"{package}/") and found.package in others] == []


def test_the_lowest_floor_and_the_command_line_start_without_torch():
    heavy = {"torch", "transformers", "safetensors"}
    rooms = [found for found in EVERY if found.file.startswith("grpo/") and file_room(found.file) in WITHOUT_TORCH]
    assert [found for found in rooms if found.at_top and found.package in heavy] == []


@pytest.mark.parametrize("package", sorted(QUARANTINE))
def test_a_quarantined_package_is_imported_in_its_one_file_inside_a_function(package):
    found = [i for i in EVERY if i.package == package]
    assert {i.file for i in found} <= {QUARANTINE[package]}
    assert [i for i in found if i.at_top] == []


@pytest.mark.parametrize("command", sorted(RUN_COMMANDS))
def test_a_launch_file_knows_the_command_line_alone(command):
    name = {"profile": "profile_tiers"}.get(command, command)
    assert [i.target for i in imports_of(ROOT / "scripts" / f"{name}.py")] == ["sys", "grpo.cli.main"]


def test_no_launch_file_hides_a_module_of_the_standard_library():
    # Python puts a started file's folder first: scripts/profile.py would be what `import cProfile` finds.
    assert {path.stem for path in (ROOT / "scripts").glob("*.py")} & set(sys.stdlib_module_names) == set()


def test_no_import_is_tried_and_done_without():
    """A missing package is an error with a remedy where it is needed, never a quiet second way."""
    wrong = []
    for package in ("grpo", "rewards", "curricula"):
        for path in files_of(package):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Try) and any(isinstance(n, ast.Import | ast.ImportFrom) for n in node.body):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []
