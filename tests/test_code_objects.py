"""What the asserts of a problem can do with the functions, classes and values of a candidate across the pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.sandbox import bubblewrap
from tests.code_judging import INCREMENT, judge


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


# The trees that values travel as


@pytest.fixture(scope="module")
def plain() -> Iterator[ModuleType]:
    """The module, which finds its neighbours as it does in a box."""
    sys.path.insert(0, str(bubblewrap.INSIDE))
    try:
        import plain

        yield plain
    finally:
        sys.path.remove(str(bubblewrap.INSIDE))


class NothingElse:
    """A side that has no objects: whatever is not plain cannot travel."""

    def is_referred(self, value: object) -> bool:
        return False

    def refer(self, value: object, writer: object, depth: int) -> list[Any]:
        raise TypeError("not plain")

    def resolve(self, tag: str, number: int) -> object:
        raise LookupError("no such object")


SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.binary(max_size=9)),
    st.text(st.characters(exclude_categories=()), max_size=9),  # with surrogates
)
HASHABLE = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)
VALUES = st.recursive(
    st.one_of(HASHABLE, st.frozensets(HASHABLE, max_size=4), st.sets(HASHABLE, max_size=4)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HASHABLE, inner, max_size=4),
    max_leaves=20,
)
TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.text("0x1af-é", max_size=6)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(st.sampled_from([*"ifcsbltdSFBqrgKVIeDQTPnahH", "it"]), inner, inner).map(list)
        | st.tuples(st.sampled_from([*"ifsbtFrKVIDnh", "it"]), inner).map(list)
    ),
    max_leaves=20,
)


@given(VALUES)
@settings(max_examples=150, deadline=None)
def test_any_plain_value_comes_out_of_its_tree_as_it_went_in(plain, value):
    tree = json.loads(json.dumps(plain.Writer(NothingElse()).write(value), allow_nan=False))
    back = plain.Reader(NothingElse()).read(tree)
    assert back == value
    assert type(back) is type(value)


@given(TREES)
@settings(max_examples=300, deadline=None)
def test_any_tree_is_a_value_or_is_refused_by_an_error_that_the_pipe_expects(plain, tree):
    expected = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError, RecursionError)
    with suppress(expected):
        plain.Reader(NothingElse()).read(tree)
