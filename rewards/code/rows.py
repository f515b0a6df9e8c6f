"""The tests of a problem row, checked before anything runs: a broken row is told from a wrong completion."""

from __future__ import annotations

import ast
import json
import keyword
import reprlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.code.extract import bound_names
from rewards.options import nearest

MAX_TESTS = 5_000


@dataclass(frozen=True, slots=True)
class AssertTests:
    """Pieces of Python that use a function or class of the candidate; each piece is one test.

    `setup` runs before them, in their namespace; `prelude` runs before the candidate's code, in its own."""

    entry_point: str
    setup: str
    prelude: str
    asserts: tuple[str, ...]

    @property
    def num_tests(self) -> int:
        return len(self.asserts)


@dataclass(frozen=True, slots=True)
class StdinTests:
    """What a program reads, and what it must print; each pair is one test."""

    cases: tuple[tuple[str, str], ...]

    @property
    def num_tests(self) -> int:
        return len(self.cases)


_KEYS = {"assert": ("entry_point", "asserts", "setup", "prelude"), "stdin": ("cases",)}


def read_tests(problem: Mapping[str, Any], *, key: str) -> AssertTests | StdinTests:
    """The tests under a key of the row: a mapping, or such a mapping as JSON text. A key that is null is not there.

    Raises ValueError that names the key, its value, the rule and the remedy."""
    if key not in problem:
        raise ValueError(f"problem has no {key!r}; its keys are {sorted(map(str, problem))} (option tests_key)")
    tests = problem[key]
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except ValueError:
            raise _fault(key, problem[key], "is text that is no JSON; give a mapping, or one as JSON") from None
    if not isinstance(tests, Mapping):
        raise _fault(key, tests, 'must be a mapping such as {"type": "assert", "entry_point": "f", "asserts": ["…"]}')
    tests = {name: value for name, value in tests.items() if value is not None}
    kind = tests.pop("type", None)
    if not isinstance(kind, str) or kind not in _KEYS:
        raise _fault(f"{key}.type", kind, f"must be one of {list(_KEYS)}")
    for name in tests:
        if name not in _KEYS[kind]:
            known = ", ".join(_KEYS[kind])
            raise _fault(
                f"{key}.{name}",
                tests[name],
                f"is no key of type {kind!r}{nearest(str(name), list(_KEYS[kind]))} (keys: {known})",
            )
    return _read_asserts(tests, key=key) if kind == "assert" else _read_cases(tests, key=key)


def _read_asserts(tests: Mapping[str, Any], *, key: str) -> AssertTests:
    entry_point = tests.get("entry_point")
    if not isinstance(entry_point, str) or not entry_point.isidentifier() or keyword.iskeyword(entry_point):
        raise _fault(
            f"{key}.entry_point", entry_point, "must be the bare name of the function or class that the tests use"
        )
    asserts = _read_list(tests, "asserts", key=key)
    for place, text in enumerate(asserts):
        if not isinstance(text, str) or not text.strip():
            raise _fault(f"{key}.asserts[{place}]", text, "must be a piece of Python as text")
    trees = [_parse(text, name=f"{key}.asserts[{place}]") for place, text in enumerate(asserts)]
    for place, tree in enumerate(trees):
        name = f"{key}.asserts[{place}]"
        if entry_point in bound_names(tree.body):
            raise _fault(name, asserts[place], f"must not define {entry_point} itself, which the completion has to")
        if any(isinstance(node, ast.Expr) and isinstance(node.value, ast.Compare) for node in tree.body):
            raise _fault(name, asserts[place], "compares and asserts nothing; write assert before it")
    if not any(isinstance(node, ast.Name) and node.id == entry_point for tree in trees for node in ast.walk(tree)):
        raise _fault(
            f"{key}.asserts",
            asserts,
            f"never use {entry_point}; a check function needs its call, such as check({entry_point})",
        )
    sources = {}
    for name in ("setup", "prelude"):
        value = tests.get(name, "")
        if isinstance(value, (list, tuple)) and all(isinstance(line, str) for line in value):
            value = "\n".join(value)
        if not isinstance(value, str):
            raise _fault(f"{key}.{name}", value, "must be Python as text, or a list of such texts")
        _parse(value, name=f"{key}.{name}")
        sources[name] = value
    return AssertTests(entry_point=entry_point, asserts=tuple(asserts), **sources)


def _read_cases(tests: Mapping[str, Any], *, key: str) -> StdinTests:
    cases = []
    for place, case in enumerate(_read_list(tests, "cases", key=key)):
        name = f"{key}.cases[{place}]"
        if not isinstance(case, Mapping):
            raise _fault(name, case, "must be a mapping of stdin and stdout")
        unknown = sorted(set(case) - {"stdin", "stdout"})
        if unknown or "stdout" not in case:
            raise _fault(name, case, "must hold the texts stdin and stdout, and nothing else")
        texts = [case.get("stdin") or "", case["stdout"]]
        if not all(isinstance(text, str) for text in texts):
            raise _fault(name, case, "stdin and stdout must be text; join lines with line breaks")
        cases.append((texts[0], texts[1]))
    return StdinTests(cases=tuple(cases))


def _read_list(tests: Mapping[str, Any], name: str, *, key: str) -> list[Any]:
    values = tests.get(name)
    if not isinstance(values, (list, tuple)) or not 1 <= len(values) <= MAX_TESTS:
        raise _fault(f"{key}.{name}", values, f"must be a list of 1 to {MAX_TESTS} tests")
    return list(values)


def _parse(text: str, *, name: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, name, "exec", dont_inherit=True)  # finds what parsing alone does not: return outside
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise _fault(name, text, f"does not compile ({type(error).__name__}: {error.args[0]}{where})") from None


def _fault(name: str, value: object, rule: str) -> ValueError:
    return ValueError(f"the tests cannot be used: problem {name} = {reprlib.repr(value)}: {rule}")
