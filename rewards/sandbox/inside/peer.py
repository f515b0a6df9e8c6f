"""One end of the two pipes between a candidate's program and its examiner: questions and answers as frames of JSON.

Both ends are alike. While one waits for an answer it serves what the other asks meanwhile (a function that a test
passed as an argument is called back). Whatever is not a frame, not JSON, not the answer awaited breaks the pipe for
good: `lost` says why, and nothing is read from it again."""

from __future__ import annotations

import builtins
import json
import os
import struct
from collections.abc import Sequence
from typing import Any, Protocol

from plain import Reader, Side, TooLargeError, Writer

HEADER = struct.Struct("<I")
MAX_FRAME_BYTES = 16 << 20
MAX_NESTING = 40
"""Questions within questions: each takes a few dozen of Python's frames."""
MAX_TEXT_CHARACTERS = 2_000

UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError, RecursionError)
"""What reading a message raises that is none."""

# Raised here in the name of the other side, these would end a loop or the process without a word.
NEVER_RAISED = frozenset({"StopIteration", "StopAsyncIteration"})


class PeerLostError(BaseException):
    """The other side is gone or does not keep to the protocol. No `except Exception` of a test may swallow it."""


class RemoteError(Exception):
    """The other side raised something that is no builtin exception."""


class Performer(Side, Protocol):
    """A side that also does what it is asked."""

    def perform(self, operation: str, args: list[Any], kwargs: dict[str, Any]) -> Any: ...


class Peer:
    """Asks and serves. `lost` is empty while the pipe holds; `last` is the latest value that was answered."""

    def __init__(self, side: Performer, *, reads: int, writes: int) -> None:
        self.lost = ""
        self.last: Any = None
        self.num_serving = 0
        self._side = side
        self._reads, self._writes = reads, writes
        self._num_asked = 0
        self._nesting = 0

    def ask(self, operation: str, *args: Any, kwargs: dict[str, Any] | None = None) -> Any:
        """What the other side gives for an operation; mutable arguments are changed in place as they were there.

        Raises the exception that was raised there, PeerLostError, TooLargeError, or TypeError for an argument that
        cannot travel."""
        if self.lost:
            raise PeerLostError(self.lost)
        if self._nesting >= MAX_NESTING:
            raise RecursionError(f"calls across the pipe are nested more than {MAX_NESTING} deep")
        writer = Writer(self._side)
        arguments = [writer.write(argument) for argument in args]
        keywords = [[name, writer.write(value)] for name, value in (kwargs or {}).items()]
        self._num_asked += 1
        number = self._num_asked
        self._send(["do", number, operation, arguments, keywords])
        self._nesting += 1
        try:
            while (message := self._receive())[0] == "do":
                self._serve(message)
        finally:
            self._nesting -= 1
        try:
            value, error = self._read_answer(message, number=number, known=writer.objects)
        except UNREADABLE as fault:
            raise self._lose(f"an answer that is none ({type(fault).__name__})") from None
        if error is not None:
            raise error
        self.last = value
        return value

    def serve(self) -> None:
        """Do what the other side asks until it closes its pipe. Raises PeerLostError then."""
        while True:
            self._serve(self._receive())

    def _serve(self, message: list[Any]) -> None:
        reader = Reader(self._side)
        try:
            _, number, operation, trees, keywords = message
            args = [reader.read(tree) for tree in trees]
            kwargs = {str(name): reader.read(tree) for name, tree in keywords}
        except UNREADABLE as fault:
            raise self._lose(f"a question that is none ({type(fault).__name__})") from None
        before = [json.dumps(tree) for tree in _contents(Writer(self._side, known=reader.objects), reader.objects)]
        self._nesting += 1
        self.num_serving += 1
        writer = Writer(self._side, known=reader.objects)
        try:
            if self._nesting > MAX_NESTING:
                raise RecursionError(f"calls across the pipe are nested more than {MAX_NESTING} deep")
            answer = ["done", number, writer.write(self._side.perform(operation, args, kwargs))]
        except PeerLostError:
            raise
        except BaseException as error:
            writer = Writer(self._side, known=reader.objects)
            answer = ["raised", number, *_describe(error)]
        finally:
            self._nesting -= 1
            self.num_serving -= 1
        try:
            after = _contents(writer, reader.objects)
            # As text, in which 1, 1.0 and True differ.
            changes = [[place, new] for place, new in enumerate(after) if json.dumps(new) != before[place]]
        except Exception as error:  # an argument holds what cannot travel
            answer, changes = ["raised", number, *_describe(error)], []
        self._send([*answer, changes])

    def _read_answer(
        self, message: list[Any], *, number: int, known: Sequence[object]
    ) -> tuple[Any, BaseException | None]:
        reader = Reader(self._side, known=known)
        kind, answered, *fields, changes = message
        if answered != number:
            raise ValueError("an answer to another question")
        value, error = None, None
        if kind == "done":
            (tree,) = fields
            value = reader.read(tree)
        elif kind == "raised":
            title, names, texts = fields
            error = _rebuild(title, names, [reader.read(text) for text in texts])
        else:
            raise ValueError("neither a question nor an answer")
        for place, contents in changes:
            reader.refill(place, contents)
        return value, error

    def _send(self, message: list[Any]) -> None:
        body = json.dumps(message, allow_nan=False).encode("ascii")
        if len(body) > MAX_FRAME_BYTES:
            if message[0] == "do":
                raise TooLargeError(f"{len(body)} bytes cannot travel; at most {MAX_FRAME_BYTES} can")
            text = f"the value takes {len(body)} bytes; at most {MAX_FRAME_BYTES} can travel"
            body = json.dumps(["raised", message[1], "TooLargeError", ["ValueError"], [text], []]).encode("ascii")
        frame = memoryview(HEADER.pack(len(body)) + body)
        while frame:
            try:
                frame = frame[os.write(self._writes, frame) :]
            except OSError as error:
                raise self._lose("no longer there") from error

    def _receive(self) -> list[Any]:
        (length,) = HEADER.unpack(self._read_exactly(HEADER.size))
        if length > MAX_FRAME_BYTES:
            raise self._lose(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES} are read")
        body = self._read_exactly(length)
        try:
            message = json.loads(body, parse_constant=_refuse)
        except (ValueError, MemoryError, RecursionError):
            raise self._lose("a frame that is no JSON") from None
        if type(message) is not list or not message:
            raise self._lose("a frame that is no message")
        return message

    def _read_exactly(self, length: int) -> bytes:
        chunks = bytearray()
        while len(chunks) < length:
            try:
                chunk = os.read(self._reads, min(length - len(chunks), 1 << 20))
            except OSError:
                chunk = b""
            if not chunk:
                raise self._lose("a frame that breaks off" if chunks else "no longer there")
            chunks += chunk
        return bytes(chunks)

    def _lose(self, why: str) -> PeerLostError:
        self.lost = self.lost or why
        return PeerLostError(self.lost)


def _contents(writer: Writer, containers: Sequence[object]) -> list[Any]:
    return [writer.contents(container) for container in containers]


def _describe(error: BaseException) -> list[Any]:
    """The name of an exception's class, those of its builtin bases, nearest first, and its arguments.

    Arguments that are no scalars become the text that the exception is; its class may do anything in the making."""
    bases = [base.__name__ for base in type(error).__mro__ if base.__module__ == "builtins"]
    try:
        texts = list(error.args)
        if not all(type(text) in (str, int, bool, float, bytes, type(None)) for text in texts):
            texts = [str.__str__(str(error))]
        texts = [text[:MAX_TEXT_CHARACTERS] if type(text) in (str, bytes) else text for text in texts[:5]]
    except BaseException:
        texts = []
    writer = Writer(None)  # scalars need no side
    return [type(error).__name__, bases, [writer.write(text) for text in texts]]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _rebuild(title: Any, names: Any, args: list[Any]) -> BaseException:
    """The exception to raise here: of the nearest builtin class that takes the arguments, else a RemoteError."""
    if type(title) is not str or type(names) is not list:
        raise ValueError("an exception without a name")
    for name in names[:20]:
        kind = vars(builtins).get(name) if type(name) is str else None
        if not isinstance(kind, type) or not issubclass(kind, Exception) or kind is Exception or name in NEVER_RAISED:
            continue
        try:
            error = kind(*args)
        except Exception:
            continue
        error.remote_title = title[:100]  # type: ignore[attr-defined]  # marks what was not raised here
        return error
    error = RemoteError(*args)
    error.remote_title = title[:100]  # type: ignore[attr-defined]
    return error
