"""MBPP and HumanEval: every solution passes, and a wrong half, made by changing one thing in the solutions, fails.

A few rows are here and always tested; the whole sets where they lie (GRPO_SHARED_DATA, or shared/data beside the
repository)."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards import build
from rewards.types import Status
from scripts.reward_accuracy.code_cases import (
    CodeProblem,
    first_wrong_mutant,
    mutants,
    passes_plainly,
    read_humaneval,
    read_mbpp,
    shared_folder,
)

DATA = Path(__file__).parent / "data"
pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")

LONG_SECONDS = 60.0
"""MBPP/123's solution takes ten seconds by itself."""


def verdict(problem: CodeProblem, source: str) -> float | None:
    reward = build("code_tests", {"timeout_seconds": LONG_SECONDS})(
        f"Here it is.\n\n```python\n{source}\n```\n", {"tests": problem.tests}
    )
    assert reward.status is Status.SCORED, f"{problem.name}: {reward.detail}"
    return reward.value


def few() -> list[CodeProblem]:
    return [*read_mbpp(DATA / "mbpp_rows.jsonl"), *read_humaneval(DATA / "humaneval_rows.jsonl")]


def whole(name: str) -> list[CodeProblem]:
    path = shared_folder() / {"mbpp": "mbpp/mbpp.jsonl", "humaneval": "humaneval/HumanEval.jsonl.gz"}[name]
    if not path.exists():
        pytest.skip(f"the rows are not at {path}; GRPO_SHARED_DATA names the folder that holds {name}/")
    return (read_mbpp if name == "mbpp" else read_humaneval)(path)


@pytest.mark.parametrize("problem", few(), ids=lambda problem: problem.name)
def test_the_solution_of_a_row_passes_and_a_wrong_one_fails(problem):
    assert verdict(problem, problem.solution) == 1.0
    mutant = first_wrong_mutant(problem)
    assert mutant is not None
    assert verdict(problem, mutant) == 0.0


def test_a_mutant_differs_from_its_source_in_one_thing():
    assert list(mutants("def f(x):\n    if x > 1 and x:\n        return x + 2\n    return True")) == [
        "def f(x):\n    if not (x > 1 and x):\n        return x + 2\n    return True",
        "def f(x):\n    if x > 1 and x:\n        return x + 2\n    return None",
        "def f(x):\n    if x > 1 or x:\n        return x + 2\n    return True",
        "def f(x):\n    if x > 1 and x:\n        return None\n    return True",
        "def f(x):\n    if x > 1 and x:\n        return x + 2\n    return False",
        "def f(x):\n    if x >= 1 and x:\n        return x + 2\n    return True",
        "def f(x):\n    if x > 1 and x:\n        return x - 2\n    return True",
        "def f(x):\n    if x > 2 and x:\n        return x + 2\n    return True",
        "def f(x):\n    if x > 1 and x:\n        return x + 3\n    return True",
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "num_problems"), [("mbpp", 974), ("humaneval", 164)])
def test_every_solution_passes(name, num_problems):
    problems = whole(name)
    assert len(problems) == num_problems
    failed = [problem for problem in problems if verdict(problem, problem.solution) != 1.0]
    # Whatever fails here has to fail where tests and solution share a process, too.
    assert [p.name for p in failed if passes_plainly(p.solution, p.tests, timeout_seconds=LONG_SECONDS)] == []
    assert failed == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["mbpp", "humaneval"])
def test_wrong_halves_fail(name):
    problems = whole(name)
    wrong = [(problem, mutant) for problem in problems if (mutant := first_wrong_mutant(problem)) is not None]
    assert len(wrong) >= len(problems) / 2
    assert [problem.name for problem, mutant in wrong if verdict(problem, mutant) != 0.0] == []
