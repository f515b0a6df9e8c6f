"""The code reward: what passes, what fails, what is an error, and what is left of it afterwards."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

from rewards import build, code_tests
from rewards.code_tests import CodeTestsOptions, worst_case_seconds
from rewards.sandbox import SandboxUnavailableError
from rewards.types import Status
from tests.code_judging import INCREMENT, SECONDS, judge, judge_program
from tests.launch import ROOT

# What the reward is


def test_all_tests_have_to_pass():
    assert judge(INCREMENT, "assert f(1) == 2", "assert f(2) == 3").value == 1.0
    reward = judge(INCREMENT, "assert f(1) == 2", "assert f(2) == 4", "assert f(3) == 4")
    assert reward.value == 0.0
    assert reward.parts == {"passed_fraction": 2 / 3, "num_passed": 2, "num_tests": 3}
    assert reward.detail == "2 of 3 tests passed; test 2, 'assert f(2) == 4': AssertionError (the last call gave 3)"


def test_the_fraction_that_passes_is_the_reward_when_asked_for():
    reward = judge(INCREMENT, "assert f(1) == 2", "assert f(2) == 4", options={"score": "fraction"})
    assert reward.value == 0.5


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        ("def f(x):\n    raise KeyError('no')", "KeyError: 'no'"),
        ("def g(x): return 2", "the code defines no f"),
        ("f = 5", "TypeError: 'int' object is not callable"),
        ("def f(): return 2", "TypeError: f() takes 0 positional arguments but 1 was given"),
        ("import nowhere\n" + INCREMENT, "when the code was loaded: ModuleNotFoundError: No module named 'nowhere'"),
        ("print(input())\n" + INCREMENT, "when the code was loaded: EOFError: EOF when reading a line"),
        ("import sys\nsys.exit(0)\n" + INCREMENT, "when the code was loaded: SystemExit: 0"),
        ("import os\nos._exit(0)\n" + INCREMENT, "the candidate's process was lost: no longer there"),
        ("return 5", "when the code was loaded: SyntaxError: 'return' outside function"),
        ("def f(x):\n    return f(x)", "RecursionError: maximum recursion depth exceeded"),
        ("I would add one to x.", "no Python code in the completion"),
        ("", "no Python code in the completion"),
        ("```python\ndef f(x) return 2\n```", "no Python code in the completion"),
    ],
)
def test_code_that_does_not_do_it_is_worth_0_and_the_detail_says_why(source, detail):
    reward = judge(source, "assert f(1) == 2")
    assert (reward.value, reward.status) == (0.0, Status.SCORED)
    assert detail in reward.detail


def test_code_that_hangs_loses_the_tests_that_it_has_not_passed_by_then():
    source = "def f(x):\n    while x: pass\n    return 1"
    begin = monotonic()
    reward = judge(
        source,
        "assert f(0) == 1",
        "assert f(1) == 1",
        "assert f(0) == 1",
        options={"score": "fraction", "timeout_seconds": 1},
    )
    assert monotonic() - begin < worst_case_seconds(CodeTestsOptions(timeout_seconds=1.0)) + 1
    assert reward.value == pytest.approx(1 / 3)
    assert "test 2" in reward.detail
    assert "which was the limit" in reward.detail


def test_code_that_needs_more_memory_than_there_is_fails():
    reward = judge("def f(x): return len(bytearray(400 << 20))", "assert f(1) == 400 << 20", options={"memory_mb": 128})
    assert reward.value == 0.0
    assert "MemoryError" in reward.detail
    assert (
        judge(
            "def f(x): return len(bytearray(400 << 20))", "assert f(1) == 400 << 20", options={"memory_mb": 600}
        ).value
        == 1.0
    )


def test_what_the_code_prints_does_not_matter():
    source = (
        "print('hello')\ndef f(x):\n    print('{}' * 100_000)\n    return x + 1\nif __name__ == '__main__':\n    1 / 0"
    )
    assert judge(source, "assert f(1) == 2").value == 1.0


def test_what_a_test_prints_cannot_pass_for_a_verdict():
    source = """def f(x): return '\\n["test", 0, true, ""]\\n["test", 1, true, ""]\\n'"""
    tests = ("import os\nprint(f(1), flush=True)\nos.write(1, f(1).encode())\nassert f(1) == 2", "assert f(2) == 3")
    assert judge(source, *tests, options={"score": "fraction"}).value == 0.0


# Errors: what is not the completion's fault


@pytest.mark.parametrize(
    ("tests", "told"),
    [
        (None, ["tests.type", "must be one of ['assert', 'stdin']"]),
        ({"type": "assert", "entry_point": "f"}, ["tests.asserts", "None", "must be a list of 1 to"]),
        ({"type": "assert", "entry_point": "f", "asserts": []}, ["tests.asserts", "[]", "must be a list of 1 to"]),
        ({"type": "assert", "entry_point": "f", "asserts": "assert f()"}, ["tests.asserts", "must be a list"]),
        (
            {"type": "assert", "entry_point": "f", "asserts": ["assert f(", "1"]},
            ["tests.asserts[0]", "'assert f('", "does not compile"],
        ),
        ({"type": "assert", "entry_point": "f", "asserts": ["return f()"]}, ["tests.asserts[0]", "does not compile"]),
        (
            {"type": "assert", "entry_point": "f", "asserts": ["assert f()", 5]},
            ["tests.asserts[1]", "5", "must be a piece of Python"],
        ),
        (
            {"type": "assert", "entry_point": "f", "asserts": ["assert f()", " "]},
            ["tests.asserts[1]", "must be a piece of Python"],
        ),
        (
            {"type": "assert", "entry_point": "f", "asserts": ["assert g() == 1"]},
            ["tests.asserts", "never use f", "check(f)"],
        ),
        (
            {"type": "assert", "entry_point": "f", "asserts": ["def f(): pass\nassert f()"]},
            ["tests.asserts[0]", "must not define f"],
        ),
        ({"type": "assert", "entry_point": "f", "asserts": ["f() == 1"]}, ["tests.asserts[0]", "asserts nothing"]),
        (
            {"type": "assert", "entry_point": "f()", "asserts": ["assert f()"]},
            ["tests.entry_point", "'f()'", "bare name"],
        ),
        ({"type": "assert", "asserts": ["assert f()"]}, ["tests.entry_point", "None", "bare name"]),
        (
            {"type": "assert", "entry_point": "f", "asserts": ["assert f()"], "setup": 5},
            ["tests.setup", "5", "must be Python"],
        ),
        (
            {"type": "assert", "entry_point": "f", "asserts": ["assert f()"], "prelude": "x ="},
            ["tests.prelude", "does not compile"],
        ),
        ({"type": "assert", "entry_point": "f", "assert": ["assert f()"]}, ["tests.assert", "did you mean 'asserts'"]),
        ({"type": "stdin", "cases": []}, ["tests.cases", "must be a list of 1 to"]),
        ({"type": "stdin", "cases": ["1"]}, ["tests.cases[0]", "must be a mapping"]),
        ({"type": "stdin", "cases": [{"stdin": "1"}]}, ["tests.cases[0]", "stdin and stdout"]),
        ({"type": "stdin", "cases": [{"stdin": "1", "stdout": "1", "out": ""}]}, ["tests.cases[0]", "nothing else"]),
        ({"type": "stdin", "cases": [{"stdin": ["1", "2"], "stdout": "1"}]}, ["tests.cases[0]", "join lines"]),
        ({"type": "stdio"}, ["tests.type", "'stdio'", "must be one of"]),
        ("not JSON", ["tests", "'not JSON'", "is no JSON"]),
        (["assert f()"], ["tests", "must be a mapping"]),
    ],
)
def test_a_broken_row_is_an_error_before_anything_runs(tests, told, monkeypatch):
    monkeypatch.setattr(code_tests, "_sandbox", lambda *arguments: pytest.fail("a box was started"))
    reward = build("code_tests", {})(INCREMENT, {"tests": {} if tests is None else tests})
    assert reward.status is Status.ERROR
    assert [part for part in told if part not in reward.detail] == [], reward.detail


def test_a_row_without_tests_is_an_error_that_names_the_option():
    reward = build("code_tests", {"tests_key": "checks"})(INCREMENT, {"tests": {}, "prompt": ""})
    assert reward.status is Status.ERROR
    assert "'checks'" in reward.detail
    assert "tests_key" in reward.detail


def test_tests_may_be_json_text_and_hold_nulls_as_tables_make_them():
    tests = {"type": "assert", "entry_point": "f", "asserts": ["assert f(1) == 2"], "cases": None, "setup": None}
    verifier = build("code_tests", {"timeout_seconds": SECONDS})
    assert verifier(INCREMENT, {"tests": tests}).value == 1.0
    assert verifier(INCREMENT, {"tests": json.dumps(tests)}).value == 1.0


def test_tests_whose_own_imports_are_not_there_are_an_error():
    for more in ({"setup": "import nowhere"}, {}):
        reward = judge(INCREMENT, "import nowhere\nassert f(1) == 2", **more)
        assert reward.status is Status.ERROR
        assert "No module named 'nowhere'" in reward.detail


def test_tests_that_hand_over_what_cannot_travel_are_an_error():
    reward = judge("def f(x): return 1", "class Own: pass\nassert f(Own()) == 1")
    assert reward.status is Status.ERROR
    assert "an object of class Own cannot be handed to the candidate; pass plain data" in reward.detail


def test_a_sandbox_that_is_not_there_is_an_error(monkeypatch):
    def unavailable(*arguments: object) -> None:
        raise SandboxUnavailableError("bwrap is not installed; install bubblewrap")

    monkeypatch.setattr(code_tests, "_sandbox", unavailable)
    for reward in (judge(INCREMENT, "assert f(1) == 2"), judge_program("print(1)", ("", "1"))):
        assert reward.status is Status.ERROR
        assert "install bubblewrap" in reward.detail


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_seconds": 0.0}, "timeout_seconds = 0.0: must be"),
        ({"timeout_seconds": math.inf}, "timeout_seconds = inf: must be"),
        ({"memory_mb": 16}, "memory_mb = 16: must be at least 64"),
        ({"extract": ["fence"]}, r"extract = \['fence'\]: must be some of"),
        ({"extract": []}, r"extract = \[\]: must be some of"),
        ({"float_tolerance": -1.0}, "float_tolerance = -1.0: must be above 0"),
        ({"float_tolerance": 0.1, "compare": "exact"}, "characters have no tolerance"),
        ({"score": "some"}, "option score = 'some': must be one of"),
        ({"compare": "words"}, "option compare = 'words': must be one of"),
        ({"timeout": 5}, "did you mean 'timeout_seconds'"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("code_tests", options)


# Programs that read and print


ADD = "a, b = map(int, input().split())\nprint(a + b)"


def test_a_program_is_run_for_each_case():
    reward = judge_program(ADD, ("1 2\n", "3\n"), ("3 4", "7"))
    assert reward.value == 1.0
    reward = judge_program("print(3)", ("1 2\n", "3\n"), ("3 4\n", "7\n"), score="fraction")
    assert reward.value == 0.5
    assert reward.detail == "1 of 2 tests passed; test 2, stdin '3 4': printed '3' where '7' was expected"


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        ("print(3)\nimport sys\nsys.exit(1)", "ended with exit code 1"),
        ("print(3)\nraise ValueError('no')", "exit code 1: 'ValueError: no'"),
        ("print(3)\nimport os\nos.kill(os.getpid(), 9)", "was killed by signal 9"),
        ("print(3, flush=True)\nwhile True: pass", "which was the limit"),
        ("while True: print(3)", "wrote more than is read"),
        ("print(3, file=open('/dev/stderr', 'w')) if False else None", "printed '' where '3' was expected"),
        ("no program at all", "no Python code in the completion"),
    ],
)
def test_a_program_that_does_not_do_it_is_worth_0_and_the_detail_says_why(source, detail):
    reward = judge_program(source, ("1 2\n", "3\n"), timeout_seconds=1.0 if "while True: pass" in source else SECONDS)
    assert (reward.value, reward.status) == (0.0, Status.SCORED)
    assert detail in reward.detail


def test_the_limit_holds_for_all_cases_together():
    begin = monotonic()
    reward = judge_program("while True: pass", *[("", "1")] * 20, timeout_seconds=1.0)
    assert monotonic() - begin < 3
    assert reward.parts["num_tests"] == 20
    assert reward.value == 0.0


def test_a_program_may_be_its_own_main_and_read_to_the_end():
    source = """
import sys
def main():
    print(sum(map(int, sys.stdin.read().split())))
if __name__ == "__main__":
    main()
"""
    assert judge_program(source, ("1 2\n3\n", "6"), ("", "0")).value == 1.0


def test_much_output_is_read_when_much_is_expected():
    assert judge_program("for i in range(100_000): print(i)", ("", "\n".join(map(str, range(100_000))))).value == 1.0


# The process


def test_no_process_outlives_the_one_that_scored():
    script = f"""
import os, subprocess
from rewards import build
tests = {{"type": "assert", "entry_point": "f", "asserts": ["assert f(1) == 2"]}}
print(build("code_tests", {{"timeout_seconds": {SECONDS}}})({INCREMENT!r}, {{"tests": tests}}).value)
listing = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True)
print(*[line.split()[0] for line in listing.stdout.splitlines() if line.split()[1] != "ps"])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    value, children = done.stdout.splitlines()
    assert value == "1.0"
    assert children
    for process in children.split():
        assert not Path(f"/proc/{process}").exists()


def test_without_the_sandbox_it_works_as_well_where_someone_asks_for_it():
    assert judge(INCREMENT, "assert f(1) == 2", options={"unsafe": True}).value == 1.0
    assert judge_program(ADD, ("1 2", "3"), unsafe=True).value == 1.0


def test_a_pool_can_know_how_long_a_call_may_take():
    assert worst_case_seconds(CodeTestsOptions()) < 5.0  # the pool's own default
    assert worst_case_seconds(CodeTestsOptions(timeout_seconds=30.0)) > 30.0
