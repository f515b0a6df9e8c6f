"""The candidate's side: runs the code of a completion as a module and does with it what the examiner asks.

The candidate's code shares this process and may do to it whatever it likes: it can spoil its own answers and nothing
else, for no test and no expected value is ever here."""

from __future__ import annotations

import json
import operator
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from peer import Peer, PeerLostError
from plain import Writer

MODULE_NAME = "candidate"
SPARE_FRAMES = 50
"""Added to Python's limit of recursion: about as many frames as lie between the program's start and a call here."""


def main(payload: bytes, requests: int, answers: int) -> None:
    """Serve the code in `payload`, JSON {"prelude", "source"}, until the examiner closes its pipe."""
    sys.setrecursionlimit(sys.getrecursionlimit() + SPARE_FRAMES)
    candidate = Candidate(**json.loads(payload))
    candidate.peer = Peer(candidate, reads=requests, writes=answers)
    try:
        candidate.peer.serve()
    except PeerLostError:
        return


class Candidate:
    """The module that the code makes, and the objects of it that the examiner has handles for."""

    peer: Peer

    def __init__(self, *, prelude: str, source: str) -> None:
        self._prelude = prelude
        self._source = source
        self._handles: list[object] = []
        self._numbers: dict[int, int] = {}
        self._callbacks: dict[int, Callable[..., Any]] = {}
        self._callback_numbers: dict[int, int] = {}

    def is_referred(self, value: object) -> bool:
        return id(value) in self._numbers or id(value) in self._callback_numbers

    def refer(self, value: Any, writer: Writer, depth: int) -> list[Any]:
        if id(value) in self._callback_numbers:
            return ["H", self._callback_numbers[id(value)]]
        return ["h", self._keep(value)]

    def resolve(self, tag: str, number: int) -> object:
        if tag == "h":
            return self._handles[number]
        if number not in self._callbacks:

            def callback(*args: Any, **kwargs: Any) -> Any:
                return self.peer.ask("call", callback, *args, kwargs=kwargs)

            self._callbacks[number] = callback
            self._callback_numbers[id(callback)] = number
        return self._callbacks[number]

    def perform(self, operation: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if operation == "load":
            return self._load(args[0])
        result = OPERATIONS[operation](*args, **kwargs)
        # What a class of the candidate makes is an object to work with, even when its class derives from list.
        if (
            operation == "call"
            and isinstance(args[0], type)
            and type(result).__module__ == MODULE_NAME
            and isinstance(result, (list, dict, set, deque))
        ):
            self._keep(result)
        return result

    def _load(self, names: list[str]) -> dict[str, Any]:
        """Run the code, and give those of the names that it defines."""
        module = types.ModuleType(MODULE_NAME)
        sys.modules[MODULE_NAME] = module
        for file, text in (("prelude.py", self._prelude), ("candidate.py", self._source)):
            exec(compile(text, file, "exec", dont_inherit=True), module.__dict__)
        return {name: module.__dict__[name] for name in names if name in module.__dict__}

    def _keep(self, value: object) -> int:
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._handles)
            self._handles.append(value)  # alive for good: its id stays its own
        return number


def _next(iterator: Iterator[Any]) -> list[Any]:
    """The next item in a list, or an empty list at the end."""
    try:
        return [next(iterator)]
    except StopIteration:
        return []


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, /, *args, **kwargs: function(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "isinstance": isinstance,
    "iter": iter,
    "next": _next,
    "len": len,
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "repr": repr,
    "neg": operator.neg,
    "abs": abs,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "matmul": operator.matmul,
}
