"""Code that tries to pass without being right: it passes not a single test, and the next verdict is as it should be.

The tests use what a test may use of a value: ==, !=, in, abs of a difference, a set, a dict, str, len, all, not. Every
attack is scored by the fraction of tests that pass, so that one fooled operator would show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

from rewards import build
from rewards.types import Reward, Status

LIMIT_SECONDS = 2.0

ASSERTS = [
    "assert f(2) == 5",
    "assert 10 == f(3)",
    "assert not f(2) != 5",
    "assert f(4) in [17]",
    "assert f(4) in {17: 'a'}",
    "assert abs(f(3) - 10) < 1e-9",
    "assert len({f(2), 5}) == 1",
    "assert str(f(2)) == '5' and f(2) == 5",
    "assert [f(x) for x in range(3)] == [1, 2, 5]",
    "assert all(f(x) == x * x + 1 for x in range(1, 4))",
    "assert sorted([f(3), 5]) == [5, 10]",
    "assert isinstance(f(2), int) and f(2) > 4 and f(2) < 6",
    "value = f(2)\nif value != 5:\n    raise ValueError(value)",
    "try:\n    assert f(2) == 5\nexcept TypeError:\n    raise",
]
RIGHT = "def f(x):\n    return x * x + 1\n"

DATA = Path(__file__).parent / "data"


def read_programs(name: str) -> dict[str, str]:
    """The programs of a file of attacks by name, each with the beginnings that it shares with others."""
    pieces = re.split(r"^== ", (DATA / name).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    programs, beginnings = {}, {}
    for piece in pieces:
        title, _, source = piece.partition("\n")
        name, _, shared = title.partition("[")
        if not name:
            beginnings[shared.strip("]")] = source
        else:
            needed = [beginnings[each] for each in shared.strip("]").split(", ") if each]
            programs[name.strip()] = "\n".join([*needed, source])
    return programs


ATTACKS = read_programs("code_attacks.txt")
PROGRAM_ATTACKS = read_programs("code_attack_programs.txt")
SLOW = re.compile(r"without end|floods|hangs|sleeps|past the stack|many|as large as|one hash|traces|from a thread")


def score(source: str) -> Reward:
    """The reward by the fraction of tests that pass, within the limit and what killing takes."""
    options = {"score": "fraction", "timeout_seconds": LIMIT_SECONDS, "memory_mb": 256}
    tests = {"type": "assert", "entry_point": "f", "asserts": ASSERTS}
    begin = monotonic()
    reward = build("code_tests", options)(source, {"tests": tests})
    assert monotonic() - begin < LIMIT_SECONDS + 2
    return reward


def test_right_code_passes_the_same_tests():
    assert score(RIGHT).value == 1.0


@pytest.mark.parametrize(
    "attack",
    [pytest.param(name, marks=pytest.mark.slow if SLOW.search(name) else ()) for name in ATTACKS],
)
def test_no_attack_passes_a_single_test(attack):
    reward = score(ATTACKS[attack])
    assert (reward.value, reward.status) == (0.0, Status.SCORED), reward.detail
    assert score(RIGHT).value == 1.0


# The same programs where tests and code share a process, which is what they are made for.
FOOLED = [
    "exits while it is loaded",
    "exits hard in the call",
    "an object that equals everything",
    "an int that lies",
    "a mock of everything",
    "reads the frames",
    "reads the garbage collector's objects",
]


@pytest.mark.parametrize("attack", FOOLED)
def test_the_attack_is_a_real_one_it_fools_tests_that_share_its_process(attack):
    program = """
import sys
source, test = sys.argv[1:]
space = {"tests": test}
exec(source, space)
exec(test, space)
"""
    arguments = [sys.executable, "-c", program, ATTACKS[attack], "assert f(2) == 5"]
    assert subprocess.run(arguments, capture_output=True, timeout=20).returncode == 0


@pytest.mark.parametrize("attack", PROGRAM_ATTACKS)
def test_no_program_passes_by_anything_but_its_output(attack):
    cases = [{"stdin": f"{n}\n", "stdout": f"{n * n}\n"} for n in (5, 6)]
    verifier = build("code_tests", {"score": "fraction", "timeout_seconds": LIMIT_SECONDS})
    begin = monotonic()
    reward = verifier(f"```python\n{PROGRAM_ATTACKS[attack]}\n```", {"tests": {"type": "stdin", "cases": cases}})
    assert monotonic() - begin < LIMIT_SECONDS + 2
    assert (reward.value, reward.status) == (0.0, Status.SCORED), reward.detail
    assert verifier("n = int(input())\nprint(n * n)", {"tests": {"type": "stdin", "cases": cases}}).value == 1.0
