"""Code problems with their own solutions, wrong halves made from these, and the anchor: plain Python in a subprocess.

Reads MBPP and HumanEval; knows no reward."""

from __future__ import annotations

import ast
import copy
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from grpo import published
from rewards import read_jsonl_rows


class CodeProblem(NamedTuple):
    """A problem: `tests` as a row of `code_tests` holds them, and a solution known to be right."""

    name: str
    tests: dict[str, Any]
    solution: str


def shared_folder() -> Path:
    """Where the rows lie: GRPO_SHARED_DATA, else shared/data beside the repository."""
    return Path(os.environ.get("GRPO_SHARED_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def read_mbpp(path: Path) -> list[CodeProblem]:
    """MBPP's rows with their challenging asserts too, which the published score leaves out."""
    return [_mbpp_problem(row) for row in _rows(path)]


def _mbpp_problem(row: dict[str, Any]) -> CodeProblem:
    tests = published.mbpp(row).columns["tests"]
    asserts = [*tests["asserts"], *row["challenge_test_list"]]
    return CodeProblem(f"MBPP/{row['task_id']}", tests | {"asserts": asserts}, row["code"])


def read_humaneval(path: Path) -> list[CodeProblem]:
    """HumanEval's rows."""
    return [_humaneval_problem(row) for row in _rows(path)]


def _humaneval_problem(row: dict[str, Any]) -> CodeProblem:
    problem = published.humaneval(row)
    assert problem.solution is not None, "every row has one"
    return CodeProblem(row["task_id"], problem.columns["tests"], problem.solution)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    return (row for row in read_jsonl_rows(path) if isinstance(row, dict))


def passes_plainly(source: str, tests: dict[str, Any], *, timeout_seconds: float) -> bool | None:
    """The anchor: does a Python with everything in one process end well? None when it took too long."""
    entry_point = tests["entry_point"]
    # The setup comes later, for it may use the solution, and may hold a stub of it.
    program = "\n".join([source, f"_kept = {entry_point}", tests["setup"], f"{entry_point} = _kept", *tests["asserts"]])
    command = [sys.executable, "-I", "-W", "ignore", "-"]
    try:
        done = subprocess.run(command, input=program.encode(), capture_output=True, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        return None
    return done.returncode == 0


def first_wrong_mutant(problem: CodeProblem, *, most: int = 12) -> str | None:
    """The first of the solution's mutants, at most so many, that fails its tests plainly; None when there is none."""
    for mutant in itertools.islice(mutants(problem.solution), most):
        if passes_plainly(mutant, problem.tests, timeout_seconds=3.0) is False:
            return mutant
    return None


def mutants(source: str) -> Iterator[str]:
    """The source with one thing changed: a comparison, an operator, a constant, what is returned, a condition."""
    tree = ast.parse(source)
    num_nodes = sum(1 for _ in ast.walk(tree))
    for place in range(num_nodes):
        changed = copy.deepcopy(tree)
        node = next(itertools.islice(ast.walk(changed), place, None))
        change = _CHANGES.get(type(node))
        if change is not None and change(node):
            yield ast.unparse(ast.fix_missing_locations(changed))


_SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def _swap(holder: Any, operator: ast.AST) -> ast.AST | None:
    swapped = _SWAPS.get(type(operator))
    return swapped() if swapped else None


def _change_compare(node: Any) -> bool:
    swapped = _swap(node, node.ops[0])
    if swapped is not None:
        node.ops[0] = swapped
    return swapped is not None


def _change_operator(node: Any) -> bool:
    swapped = _swap(node, node.op)
    if swapped is not None:
        node.op = swapped
    return swapped is not None


def _change_constant(node: Any) -> bool:
    if isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node.value, (int, float)):
        node.value += 1
    else:
        return False
    return True


def _change_return(node: Any) -> bool:
    if node.value is None:
        return False
    node.value = ast.Constant(None)
    return True


def _change_condition(node: Any) -> bool:
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return True


_CHANGES: dict[type, Callable[[Any], bool]] = {
    ast.Compare: _change_compare,
    ast.BinOp: _change_operator,
    ast.AugAssign: _change_operator,
    ast.BoolOp: _change_operator,
    ast.Constant: _change_constant,
    ast.Return: _change_return,
    ast.If: _change_condition,
}
