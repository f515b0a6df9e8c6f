"""The trusted side: runs a problem's tests, in which the candidate's functions and classes are proxies.

A proxy's calls go over the pipe; what comes back is plain data, or a proxy for an object that stays with the candidate
and that nothing here compares but by identity. Reports on its own standard output, a JSON list a line: ["ready"],
["test", number from 0, passed, how it failed], and ["fault", text] where the tests themselves are at fault."""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import math
import os
import reprlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from peer import Peer
from plain import Writer

MAX_ITERATED = 100_000
MAX_TEXT_CHARACTERS = 200
MAX_TEXTS = 20
"""Failures that are described; later ones are only named, so that the report stays short."""


def main(payload: bytes, answers: int, requests: int) -> None:
    """Run the tests in `payload`, JSON {"entry_point", "setup", "asserts"}, against the candidate behind the pipes."""
    report = os.dup(1)  # out of the reach of what the tests print
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    examiner = Examiner(reads=answers, writes=requests, report=report)
    examiner.run(**json.loads(payload))


class CannotTravelError(TypeError):
    """A test hands the candidate an object that is neither plain data, nor a function, nor the candidate's own."""


class Examiner:
    """One run of the tests, which share a namespace."""

    def __init__(self, *, reads: int, writes: int, report: int) -> None:
        self.peer = Peer(self, reads=reads, writes=writes)
        self._report = report
        self._remotes: dict[int, Remote] = {}
        self._functions: list[Any] = []
        self._fault = ""
        self._num_failed = 0

    def run(self, *, entry_point: str, setup: str, asserts: list[str]) -> None:
        """Run the setup and each test, and report; a candidate that is lost fails whatever is left."""
        trees = [ast.parse(text) for text in (setup, *asserts)]
        codes = [compile(text, name, "exec", dont_inherit=True) for name, text in _named(setup, asserts)]
        modules, names = names_to_find(trees, entry_point=entry_point)
        namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
        self._write("ready")
        namespace.update((name, value) for name, value in vars(math).items() if name in names)
        namespace.update((name, importlib.import_module(name)) for name in modules)
        wanted = sorted(names - namespace.keys() | {entry_point})
        found: dict[str, Any] = {}
        failure = self._attempt(lambda: found.update(self._load(wanted)))
        failure = f"when the code was loaded: {failure}" if failure else ""
        if not failure and entry_point not in found:
            failure = f"the code defines no {entry_point}"
        if not failure:
            namespace.update(found)
            failure = self._attempt(lambda: exec(codes[0], namespace))
            failure = f"in the setup: {failure}" if failure else ""
            namespace[entry_point] = found[entry_point]  # whatever stub of it the setup holds
        for number, code in enumerate(codes[1:]):
            how = failure or self._attempt(lambda code=code: exec(code, namespace))  # type: ignore[misc]
            if self._fault:
                self._write("fault", self._fault)
                return
            self._write("test", number, not how, how if self._num_failed < MAX_TEXTS else "")
            self._num_failed += bool(how)

    def _load(self, wanted: list[str]) -> dict[str, Any]:
        """Those of the names that the candidate's code defines: no other, which could stand before a builtin."""
        values = self.peer.ask("load", wanted)
        if type(values) is not dict:
            raise TypeError("the candidate's module is none")
        return {name: values[name] for name in wanted if name in values}

    def _attempt(self, run: Callable[[], object]) -> str:
        """How the run failed, in words; empty when it did not. A candidate that is lost has failed in any case."""
        self.peer.last = _NOTHING
        try:
            run()
        except BaseException as error:
            if isinstance(error, ImportError) and not hasattr(error, "remote_title"):
                self._fault = self._fault or f"{type(error).__name__}: {error}"
            text = _describe(error)
            if isinstance(error, AssertionError) and self.peer.last is not _NOTHING:
                text += f" (the last call gave {_brief(self.peer.last)})"
        else:
            text = ""
        return f"the candidate's process was lost: {self.peer.lost}" if self.peer.lost else text

    def is_referred(self, value: object) -> bool:
        return False

    def refer(self, value: Any, writer: Writer, depth: int) -> list[Any]:
        if type(value) is Remote:
            return ["h", _number_of(value)]
        if isinstance(value, Iterator):
            items = [item for item, _ in zip(value, range(MAX_ITERATED), strict=False)]
            return ["it", writer.write_all(items, depth)]
        if callable(value):
            for number, function in enumerate(self._functions):
                if function is value:
                    return ["H", number]
            self._functions.append(value)
            return ["H", len(self._functions) - 1]
        text = f"an object of class {type(value).__name__} cannot be handed to the candidate; pass plain data"
        if not self.peer.num_serving:
            self._fault = self._fault or text
        raise CannotTravelError(text)

    def resolve(self, tag: str, number: int) -> object:
        if tag == "H":
            return self._functions[number]
        if number not in self._remotes:
            self._remotes[number] = Remote(self.peer, number)
        return self._remotes[number]

    def perform(self, operation: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call back a function that a test passed, which is all that the candidate can ask for."""
        if operation != "call" or not any(function is args[0] for function in self._functions):
            raise TypeError("only a function that was passed can be called")
        return args[0](*args[1:], **kwargs)

    def _write(self, *line: Any) -> None:
        os.write(self._report, json.dumps(line).encode("ascii") + b"\n")


_NOTHING = object()


def _named(setup: str, asserts: list[str]) -> list[tuple[str, str]]:
    return [("setup.py", setup), *((f"test {number}", text) for number, text in enumerate(asserts, start=1))]


def names_to_find(trees: list[ast.Module], *, entry_point: str) -> tuple[set[str], set[str]]:
    """The modules of the standard library that the tests use without an import, and other names they do not bind."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    imports = [alias for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]
    bound |= {(alias.asname or alias.name).split(".")[0] for alias in imports}
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    free = used - bound - vars(builtins).keys() - {entry_point}
    bases = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    modules = free & bases & sys.stdlib_module_names
    return modules, free - modules


def _describe(error: BaseException) -> str:
    title = getattr(error, "remote_title", type(error).__name__)
    try:
        text = str(error)
    except Exception:  # an int of too many digits in it
        text = ""
    return f"{title}: {text}"[:MAX_TEXT_CHARACTERS] if text else title


class _Brief(reprlib.Repr):
    def repr_Remote(self, value: Remote, level: int) -> str:  # the name that reprlib looks for
        return "an object"


def _brief(value: object) -> str:
    try:
        return _Brief().repr(value)[:MAX_TEXT_CHARACTERS]
    except Exception:  # an int of too many digits
        return f"a {type(value).__name__}"


class Remote:
    """An object of the candidate. Equal to itself alone; without order and hash of its own.

    No operation whose operand a test expects the value to be goes over the pipe, for the candidate would be judge of
    it: ==, <, arithmetic with plain data. `in` looks through the items here."""

    __slots__ = ("_remote_number", "_remote_peer")

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_remote_peer", peer)
        object.__setattr__(self, "_remote_number", number)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return _ask(self, "call", *args, kwargs=kwargs)

    def __getattr__(self, name: str) -> Any:
        _refuse_dunder(name)
        return _ask(self, "getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _refuse_dunder(name)
        _ask(self, "setattr", name, value)

    def __delattr__(self, name: str) -> None:
        _refuse_dunder(name)
        _ask(self, "delattr", name)

    def __getitem__(self, key: Any) -> Any:
        return _ask(self, "getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask(self, "setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        _ask(self, "delitem", key)

    def __iter__(self) -> Any:
        return _ask(self, "iter")

    def __next__(self) -> Any:
        items = _ask(self, "next")
        if type(items) is not list or len(items) > 1:
            raise TypeError("no iterator")
        if not items:
            raise StopIteration
        return items[0]

    def __contains__(self, item: Any) -> bool:
        return any(item is mine or item == mine for mine in self)

    def __instancecheck__(self, value: object) -> bool:
        return type(value) is Remote and _ask(value, "isinstance", self) is True

    def __len__(self) -> int:
        return _ask(self, "len")

    def __bool__(self) -> bool:
        return _ask(self, "bool")

    def __int__(self) -> int:
        return _ask(self, "int")

    def __float__(self) -> float:
        return _ask(self, "float")

    def __str__(self) -> str:
        return _ask(self, "str")

    def __repr__(self) -> str:
        return _ask(self, "repr")

    def __neg__(self) -> Any:
        return _ask(self, "neg")

    def __abs__(self) -> Any:
        return _ask(self, "abs")

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError("an object of the candidate cannot be copied on the tests' side")


def _binary(operation: str) -> Callable[[Remote, Any], Any]:
    def operate(self: Remote, other: Any) -> Any:
        return _ask(self, operation, other) if type(other) is Remote else NotImplemented

    return operate


for _operation in ("add", "sub", "mul", "truediv", "floordiv", "mod", "and", "or", "xor", "matmul"):
    setattr(Remote, f"__{_operation}__", _binary(_operation))


def _ask(remote: Remote, operation: str, *args: Any, kwargs: dict[str, Any] | None = None) -> Any:
    peer: Peer = object.__getattribute__(remote, "_remote_peer")
    return peer.ask(operation, remote, *args, kwargs=kwargs)


def _number_of(remote: Remote) -> int:
    return object.__getattribute__(remote, "_remote_number")


def _refuse_dunder(name: str) -> None:
    if name.startswith("__") and name.endswith("__"):
        raise AttributeError(f"{name} of a candidate's object stays with the candidate")
