"""The code reward: what passes, what fails, what is an error; extraction, rows, plain data over the pipe, outputs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import build, code_tests
from rewards.code_extract import bound_names, extract_code, fenced_blocks, parse
from rewards.code_output import same_output
from rewards.code_tests import CodeTestsOptions, worst_case_seconds
from rewards.sandbox import SandboxUnavailableError
from rewards.types import Reward, Status
from tests.launch import ROOT

SECONDS = 20.0  # far above what any of these takes, so that a busy machine fails none


def judge(
    source: str, *asserts: str, entry_point: str = "f", options: dict[str, Any] | None = None, **more: Any
) -> Reward:
    """The reward of a completion that is nothing but source, under tests that are asserts."""
    tests = {"type": "assert", "entry_point": entry_point, "asserts": list(asserts), **more}
    verifier = build("code_tests", {"timeout_seconds": SECONDS, **(options or {})})
    return verifier(source, {"tests": tests})


def judge_program(source: str, *cases: tuple[str, str], **options: Any) -> Reward:
    tests = {"type": "stdin", "cases": [{"stdin": stdin, "stdout": stdout} for stdin, stdout in cases]}
    return build("code_tests", {"timeout_seconds": SECONDS, **options})(source, {"tests": tests})


INCREMENT = "def f(x):\n    return x + 1"


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


# The pieces of the tests


def test_a_check_function_and_its_call_are_one_test_and_may_use_the_setup():
    check = "def check(candidate):\n    assert candidate(helper(0)) == 2\n    assert candidate(2) == 3\n\ncheck(f)"
    setup = "def helper(x): return x + 1\ndef f(x):\n    '''A stub, as in a prompt.'''"
    assert judge(INCREMENT, check, setup=setup).value == 1.0
    assert judge(INCREMENT, check, setup=setup.split("\n")).value == 1.0
    assert judge("def f(x): return 2", check, setup=setup).value == 0.0


def test_the_tests_share_a_namespace_and_import_for_themselves():
    tests = ["import math\nlimit = 2", "assert f(1) == limit", "assert math.isclose(f(1), 2.0)"]
    assert judge(INCREMENT, *tests).value == 1.0


def test_the_tests_find_classes_of_the_candidate_and_work_with_its_objects():
    source = """
class Node:
    def __init__(self, value):
        self.value, self.left, self.right = value, None, None
def f(node):
    return 0 if node is None else 1 + max(f(node.left), f(node.right))
"""
    setup = "root = Node(1)\nroot.left = Node(2)\nroot.left.right = Node(3)"
    tests = [
        "assert f(root) == 3",
        "assert root.left.right.value == 3",
        "assert root.left is root.left",
        "assert root != Node(1)",
    ]
    assert judge(source, *tests, setup=setup).value == 1.0


def test_a_class_is_an_entry_point_too():
    source = """
from collections import OrderedDict
class Cache(OrderedDict):
    size = 0
    def __init__(self, size): self.size = size
    def get(self, key): return self[key] if key in self else -1
    def put(self, key, value):
        self[key] = value
        if len(self) > self.size: self.popitem(last=False)
        return self
    def __repr__(self): return f"Cache({dict(self)})"
    def __add__(self, other): return len(self) + len(other)
"""
    test = """
cache = Cache(2)
assert cache.put(1, 10).put(2, 20).put(3, 30) is cache
assert cache.get(1) == -1 and cache.get(3) == 30 and cache.size == 2
assert len(cache) == 2 and cache[2] == 20 and list(cache) == [2, 3] and 2 in cache and 1 not in cache
cache[2] = 21
del cache[3]
assert cache.get(2) == 21 and repr(cache) == "Cache({2: 21})" and f"{cache}" == str(cache)
assert isinstance(cache, Cache) and not isinstance({}, Cache) and cache and not Cache(1)
assert cache + cache == 2
"""
    reward = judge(source, test, entry_point="Cache")
    assert reward.value == 1.0, reward.detail


def test_modules_that_the_tests_do_not_import_are_the_real_ones_not_the_candidates():
    source = "class math:\n    isclose = staticmethod(lambda *a, **k: True)\nisclose = math.isclose\ndef f(x): return 7"
    assert (
        judge(
            source, "assert math.isclose(f(1), 2.0)", "assert isclose(f(1), 2.0)", options={"score": "fraction"}
        ).value
        == 0.0
    )
    assert judge(INCREMENT, "assert math.isclose(f(1), 2.0)", "assert isclose(f(1), 2.0)").value == 1.0


def test_the_code_imports_what_the_standard_library_has():
    source = "import sqlite3, xml.dom.minidom, unittest.mock, encodings.utf_32_le\n" + INCREMENT
    reward = judge(source, "assert f(1) == 2")
    assert reward.value == 1.0, reward.detail


def test_the_prelude_runs_before_the_code_and_in_its_namespace():
    source = "def f(xs: List[int]) -> int: return base + len(xs)"
    assert judge(source, "assert f([1]) == 11", prelude="from typing import List\nbase = 10").value == 1.0
    assert (
        judge("from __future__ import annotations\n" + source, "assert f([1]) == 11", prelude="base = 10").value == 1.0
    )


def test_exceptions_of_the_candidate_arrive_under_the_name_of_their_builtin_class():
    source = """
class Refused(ValueError): pass
def f(x):
    if x < 0: raise Refused(f"{x} is below 0")
    if x > 9: raise Exception("too much")
    return {}[x]
"""
    test = """
for x, kind, text in ((-1, ValueError, "-1 is below 0"), (10, Exception, "too much"), (5, KeyError, "5")):
    try:
        f(x)
    except kind as error:
        assert str(error) == text
    else:
        assert False, "nothing was raised"
"""
    assert judge(source, test).value == 1.0
    assert judge("def f(x): raise TypeError('another')", test).value == 0.0
    assert judge("import os\ndef f(x): os._exit(1)", "try:\n    f(1)\nexcept BaseException:\n    pass").value == 0.0


def test_an_iterator_of_the_candidate_stays_lazy():
    source = "def f(n):\n    while True:\n        n += 1\n        yield n"
    assert judge(source, "numbers = f(1)\nassert [next(numbers) for _ in range(3)] == [2, 3, 4]").value == 1.0
    assert (
        judge("def f(n): return map(str, range(n))", "assert list(f(3)) == ['0', '1', '2']", "assert f(0) != []").value
        == 1.0
    )
    assert judge("f = range", "assert f(3) == range(3)").value == 1.0


def test_functions_that_a_test_passes_are_called_back():
    source = "def f(function, items):\n    return sorted(items, key=function)"
    tests = [
        "assert f(lambda x: -x, [1, 3, 2]) == [3, 2, 1]",
        "assert f(len, ['aa', 'b']) == ['b', 'aa']",
        "assert f(lambda x: f(len, x)[0], [['b'], ['aa', 'a']]) == [['aa', 'a'], ['b']]",
        "seen = []\nassert f(lambda x: seen.append(x) or 0, [2, 1]) == [2, 1]\nassert seen == [2, 1]",
        "assert f(int, ['2', '10', '1']) == ['1', '2', '10']",
        "try:\n    f(lambda x: 1 / 0, [1])\nexcept ZeroDivisionError:\n    pass\nelse:\n    assert False",
    ]
    reward = judge(source, *tests)
    assert reward.value == 1.0, reward.detail
    decorator = "def f(function):\n    def twice(x):\n        return function(function(x))\n    return twice"
    assert judge(decorator, "assert f(lambda x: x * 3)(2) == 18", "assert f(f(lambda x: x + 1))(0) == 4").value == 1.0


def test_arguments_changed_in_place_are_changed_for_the_tests():
    source = """
def f(x):
    if isinstance(x, list):
        x[0] = x[-1] if not isinstance(x[0], list) else x[0] + ["new"]
        x.append([x[0]])
    elif isinstance(x, dict):
        x["k"] = x.pop("a"); x[(1, 2)] = x["k"]
    elif isinstance(x, set):
        x.discard(1)
    else:
        x.extend(b"!")
    return x
"""
    test = """
numbers = [1, 2, 3]
assert f(numbers) is numbers and numbers == [3, 2, 3, [3]]
inner = []
outer = [inner, inner]
f(outer)
assert outer[1] is inner and outer[0] == ["new"] and outer[2][0] is outer[0]
table = {"a": inner}
f(table)
assert table == {"k": [], (1, 2): []} and table["k"] is inner
items = {1, 2}; f(items); assert items == {2}
data = bytearray(b"a"); f(data); assert data == b"a!"
flags = [0, 0]
g(flags)
assert flags[0] is False and flags[1] == 0.0 and isinstance(flags[1], float)
"""
    source += "\ndef g(flags):\n    flags[:] = [False, 0.0]\n"
    reward = judge(source, test)
    assert reward.value == 1.0, reward.detail


def test_containers_that_are_shared_or_hold_themselves_stay_so():
    test = """
row = [0]
grid = [row, row]
f(grid)
assert grid == [[1], [1]] and grid[0] is row
loop = []
loop.append(loop)
assert f(loop) is None and loop[0] is loop
"""
    reward = judge("def f(grid):\n    if grid[0] is not grid: grid[0][0] = 1", test)
    assert reward.value == 1.0, reward.detail


def test_recursion_reaches_as_deep_as_in_a_program_of_its_own():
    assert judge("def f(n): return 0 if n == 0 else 1 + f(n - 1)", "assert f(980) == 980").value == 1.0


PLAIN_VALUES = [
    *(
        "None",
        "True",
        "0",
        "-1",
        "10**5000",
        "-(1 << 64)",
        "0.1",
        "-0.0",
        "float('inf')",
        "-float('inf')",
        "1e308",
        "2j",
    ),
    *(
        "''",
        "'\\x00é\\u2028'",
        "'\\ud83d'",
        "'\\ud83d' + '\\ude00'",
        "'\\U0001f600'",
        "b''",
        "b'\\xff'",
        "bytearray(b'a')",
    ),
    *(
        "[]",
        "[1, [2, (3, {4})]]",
        "()",
        "(1,)",
        "set()",
        "{1, 'a'}",
        "frozenset({1})",
        "{}",
        "{1: 2, (1, 2): [3], None: 4.5}",
    ),
    *("range(3, 9, 2)", "...", "int", "{'a': 1}.keys()", "{'a': 1}.items()", "list({'a': [1]}.values())"),
    *(
        "decimal.Decimal('1.10')",
        "fractions.Fraction(1, 3)",
        "datetime.date(2024, 2, 29)",
        "datetime.timedelta(days=-1)",
    ),
    "datetime.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=datetime.timezone.utc)",
    "collections.deque([1, 2], maxlen=2)",
]


def test_plain_values_go_to_the_candidate_and_back_unchanged():
    tests = [f"value = {value}\nassert f(value) == value and type(f(value)) is type(value)" for value in PLAIN_VALUES]
    tests += [
        "assert str(f(-0.0)) == '-0.0'",
        "nan = f(float('nan'))\nassert nan != nan",
        "assert f(math.nan) in [math.nan]",
    ]
    reward = judge("def f(x): return x", *tests)
    assert reward.value == 1.0, reward.detail


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from collections import Counter\ndef f(): return Counter('aab')", "{'a': 2, 'b': 1}"),
        ("from collections import OrderedDict\ndef f(): return OrderedDict(a=1)", "{'a': 1}"),
        (
            "from collections import defaultdict\ndef f():\n    d = defaultdict(list); d[1].append(2); return d",
            "{1: [2]}",
        ),
        ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return [P(1, 2)]", "[(1, 2)]"),
        ("from enum import IntEnum\nclass E(IntEnum):\n    A = 3\ndef f(): return E.A", "3"),
        ("class S(str): pass\ndef f(): return S('a')", "'a'"),
        ("class L(list): pass\ndef f(): return L([1])", "[1]"),
    ],
)
def test_subclasses_of_builtin_types_arrive_as_the_builtin(source, expected):
    assert judge(source, f"assert f() == {expected} and type(f()) is type({expected})").value == 1.0


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


@pytest.mark.parametrize(
    ("actual", "expected", "lines", "tokens", "exact"),
    [
        ("1 2\n", "1 2\n", True, True, True),
        ("1 2", "1 2\n", True, True, False),
        (" 1   2 \r\n\n\n", "1 2\n", True, True, False),
        ("1\n2\n", "1 2\n", False, True, False),
        ("\n1\n", "1\n", False, True, False),
        ("1\n\n2\n", "1\n2\n", False, True, False),
        ("12\n", "1 2\n", False, False, False),
        ("1.0\n", "1\n", False, False, False),
        ("", "\n", True, True, False),
        ("Yes", "yes", False, False, False),
    ],
)
def test_outputs_are_compared_by_lines_by_words_or_exactly(actual, expected, lines, tokens, exact):
    for compare, same in (("lines", lines), ("tokens", tokens), ("exact", exact)):
        assert same_output(actual, expected, compare=compare, float_tolerance=None) is same, compare


@pytest.mark.parametrize(
    ("actual", "expected", "same"),
    [
        ("0.3000004", "0.3", True),
        ("0.31", "0.3", False),
        ("1000000.5", "1000000", True),  # relative to the expected value
        ("1000001", "1000000", False),  # two integers are the same or not
        ("+5", "5", True),
        ("1e-7", "0", True),
        ("3.0", "3", True),
        (".5", "0.5", True),
        ("nan", "0.5", False),
        ("inf", "1e308", False),
        ("1e9999", "1.0", False),
        ("1_0", "10", False),
        ("x 0.50", "x 0.5", True),
        ("x 0.50", "y 0.5", False),
        ("0.5 0.5", "0.5", False),
    ],
)
def test_a_tolerance_lets_numbers_differ_and_nothing_else(actual, expected, same):
    for compare in ("lines", "tokens"):
        assert same_output(actual, expected, compare=compare, float_tolerance=1e-6) is same


# Where the code is


WANTED = "def f(x):\n    return 1"


@pytest.mark.parametrize(
    "completion",
    [
        WANTED,
        f"```python\n{WANTED}\n```",
        f"Text.\n```py\n{WANTED}\n```\nMore text.",
        f"```\n{WANTED}\n```",
        f"~~~python\n{WANTED}\n~~~",
        f"````python\n{WANTED}\n````",
        f"```python\r\n{WANTED}\r\n```\r\n".replace("x):\n", "x):\r\n"),
        f"```Python3\n{WANTED}",  # the end was cut off, or a stop string
        f"<answer>```python\n{WANTED}\n```</answer>",
        f"<answer>\n```python\n{WANTED}\n```\n</answer>",
        f"1. A list:\n   ```python\n   {WANTED.replace(chr(10), chr(10) + '   ')}\n   ```",
        f"```python\ndef f(x): return 2\n```\nBetter:\n```python\n{WANTED}\n```",
        f"```python\n{WANTED}\n```\nUse it:\n```python\nprint(f(3))\n```",
        f"```python\n{WANTED}\n```\n```bash\npython main.py\n```\n```text\n1\n```",
        f"```python\n{WANTED}\n```\n```python\ndef f(x) broken\n```",
        f"```bash\npip install x\n```\n{WANTED}"[:0] + WANTED,
    ],
)
def test_the_code_is_found(completion):
    code = extract_code(completion, ("last_block", "whole"), entry_point="f")
    assert code is not None
    assert code.strip() == WANTED


def test_a_fence_in_a_docstring_closes_nothing():
    code = 'def f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return 1'
    assert fenced_blocks(f"```python\n{code}\n```\nDone.") == [code]


def test_pieces_in_several_blocks_are_joined_when_asked_for():
    completion = "```python\nimport math\n```\nand\n```python\ndef f(x): return math.floor(x)\n```\n```text\n5\n```"
    assert extract_code(completion, ("last_block",), entry_point="f") == "def f(x): return math.floor(x)"
    assert extract_code(completion, ("all_blocks",), entry_point="f") == "import math\n\ndef f(x): return math.floor(x)"


def test_without_an_entry_point_the_last_block_that_parses_counts():
    assert (
        extract_code("```python\nprint(1)\n```\n```python\nprint(2)\n```\n```python\n1 +\n```", ("last_block",))
        == "print(2)"
    )
    assert extract_code("```python\n1 +\n```", ("last_block", "whole")) is None


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(): g = 1\nclass C:\n    x = 1", {"f", "C"}),
        ("f = g = 1\n(a, [b, *c]) = 1, 2\nd: int = 1", set("fgabcd")),
        ("import a.b, c as d\nfrom e import f", {"a", "d", "f"}),
        ("if x:\n    f = 1\nelse:\n    def g(): pass", {"f", "g"}),
        ("try:\n    import a\nexcept E:\n    a = 1\nfinally:\n    b = 2", {"a", "b"}),
        ("x[0] = 1\ny.z = 2\nprint(q)", set()),
        ("f = lambda: [h for h in k]", {"f"}),
    ],
)
def test_the_names_that_code_defines(source, names):
    assert bound_names(parse(source).body) == names


@pytest.mark.parametrize(
    "source",
    [
        "",
        "x\x00",
        "(" * 5000,
        "-" * 150_000 + "1",
        "1" + "+1" * 90_000,
        "x = " + "[" * 150 + "]" * 150,
        "a" * 300_000,
        "\ud800",
        "0" * 5000 + "1",
    ],
)
def test_code_made_to_break_the_parser_is_no_code(source):
    assert parse(source) is None or source.startswith("x = [")


@given(st.text(alphabet="`~ \npythonxdef():\t\"'", max_size=300))
@settings(max_examples=200, deadline=None)
def test_reading_fences_never_raises(text):
    extract_code(text, ("last_block", "all_blocks", "whole"), entry_point="f")


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
