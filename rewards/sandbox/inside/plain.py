"""Plain data as JSON trees and back, for the pipe between a candidate's program and its examiner.

What arrives is made of exact builtin types, whatever class it had where it came from, so that no code of the other side
runs here. A mutable container has a number in its message: what is one object there is one object here, cycles
included, and its changes can be sent back. What is not plain is left to the side: an object with `is_referred`,
`refer` and `resolve`, which gives such a value a name on the wire and finds it by that name.

A tree is a JSON scalar, or a list of a tag and its fields. Nothing here knows of pipes and processes."""

from __future__ import annotations

import datetime
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Protocol

import arrays

MAX_DEPTH = 150
MAX_VALUES = 1_000_000
MAX_JSON_INT = 1 << 63
"""Larger ints travel in base 16: reading that takes linear time and has no limit of digits."""

NAMED_TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, range, object)
}


class TooLargeError(ValueError):
    """A value is nested too deeply or holds too many values to travel."""


class Side(Protocol):
    """One end of the wire, as far as what is not plain goes."""

    def is_referred(self, value: object) -> bool:
        """Whether this very object has a name on the wire already, and is to be named again rather than copied."""
        ...

    def refer(self, value: Any, writer: Writer, depth: int) -> list[Any]:
        """The tree that stands for an object that is not plain. Raises TypeError where it cannot travel."""
        ...

    def resolve(self, tag: str, number: int) -> object:
        """The object behind a name that the other side sent. Raises LookupError for a name it cannot know."""
        ...


class Writer:
    """Writes the values of one message. `objects` are its mutable containers in the order of their numbers."""

    def __init__(self, side: Side, *, known: Sequence[object] = ()) -> None:
        self.objects = list(known)
        self._numbers = {id(value): number for number, value in enumerate(self.objects)}
        self._side = side
        self._num_values = 0

    def write(self, value: Any, depth: int = 0) -> Any:
        """The value as a tree. Raises TooLargeError, and what the side raises for a value that cannot travel."""
        self._num_values += 1
        if depth > MAX_DEPTH or self._num_values > MAX_VALUES:
            raise TooLargeError(f"more than {MAX_DEPTH} levels or {MAX_VALUES} values cannot travel")
        write = _WRITERS.get(type(value))
        if write is None:
            if self._side.is_referred(value):
                return self.refer(value, depth)
            write = next((writer for base, writer in _WRITERS.items() if base in type(value).__mro__), None)
        if write is None and (array := arrays.write_array(self, value, depth)) is not None:
            return array
        return self.refer(value, depth) if write is None else write(self, value, depth)

    def refer(self, value: Any, depth: int) -> list[Any]:
        """The side's tree for an object that is not plain."""
        return self._side.refer(value, self, depth)

    def write_all(self, values: Iterable[Any], depth: int) -> list[Any]:
        """A tree for each of the values, which lie one level below depth."""
        return [self.write(value, depth + 1) for value in values]

    def write_container(self, tag: str, value: Any, depth: int) -> list[Any]:
        """A mutable container with its number, or its number alone when it is in the message already."""
        number = self._numbers.get(id(value))
        if number is not None:
            return ["r", number]
        number = self._numbers[id(value)] = len(self.objects)
        self.objects.append(value)
        return [tag, number, self.contents(value, depth)]

    def contents(self, value: Any, depth: int = 0) -> Any:
        """What is in a mutable container, as `Reader.refill` takes it."""
        return _CONTENTS[_container_type(value)](self, value, depth)


class Reader:
    """Reads the values of one message, in the order in which they were written."""

    def __init__(self, side: Side, *, known: Sequence[object] = ()) -> None:
        self.objects = list(known)
        self._num_known = len(self.objects)
        self._side = side

    def read(self, tree: Any, depth: int = 0) -> Any:
        """The value of a tree. Raises ValueError, TypeError, LookupError or ArithmeticError when it is none."""
        if tree is None or type(tree) in (bool, int, float, str):
            return tree
        if type(tree) is not list or not tree or type(tree[0]) is not str or depth > MAX_DEPTH:
            raise ValueError("not a tree of plain data")
        return _READERS[tree[0]](self, depth, *tree[1:])

    def read_all(self, trees: Any, depth: int) -> list[Any]:
        """The values of a list of trees."""
        if type(trees) is not list:
            raise ValueError("not a list of trees")
        return [self.read(tree, depth + 1) for tree in trees]

    def read_container(self, make: Callable[[], Any], depth: int, number: Any, contents: Any) -> Any:
        """A mutable container; it has its number before its contents are read, which may hold itself."""
        if number != len(self.objects):
            raise ValueError("a container's number is not the next one")
        value = make()
        self.objects.append(value)
        _FILL[type(value)](self, value, contents, depth)
        return value

    def read_number(self, depth: int, number: Any) -> Any:
        """A container that stands in this message already."""
        if type(number) is not int or not 0 <= number < len(self.objects):
            raise LookupError("no container has this number")
        return self.objects[number]

    def read_reference(self, tag: str, number: Any) -> object:
        if type(number) is not int or number < 0:
            raise LookupError("a name on the wire is a number")
        return self._side.resolve(tag, number)

    def refill(self, number: Any, contents: Any) -> None:
        """Give a container that was known before this message the contents that it has on the other side."""
        if type(number) is not int or not 0 <= number < self._num_known:
            raise LookupError("no container that was sent has this number")
        value = self.objects[number]
        _FILL[_container_type(value)](self, value, contents, 0)


def _write_int(writer: Writer, value: int, depth: int) -> Any:
    value = int.__pos__(value)  # an exact int, also of a subclass
    return value if -MAX_JSON_INT < value < MAX_JSON_INT else ["i", hex(value)]


def _write_float(writer: Writer, value: float, depth: int) -> Any:
    value = float.__pos__(value)
    return value if math.isfinite(value) else ["f", repr(value)]


def _write_str(writer: Writer, value: str, depth: int) -> Any:
    value = str.__str__(value)
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON would make one character of two surrogates
        return ["s", list(map(ord, value))]
    return value


def _write_type(writer: Writer, value: type, depth: int) -> Any:
    return ["n", value.__name__] if NAMED_TYPES.get(value.__name__) is value else writer.refer(value, depth)


_WRITERS: dict[type, Callable[[Writer, Any, int], Any]] = {
    type(None): lambda writer, value, depth: None,
    bool: lambda writer, value, depth: value,
    int: _write_int,
    float: _write_float,
    complex: lambda writer, value, depth: ["c", *writer.write_all((value.real, value.imag), depth)],
    str: _write_str,
    bytes: lambda writer, value, depth: ["b", bytes.hex(value)],
    list: lambda writer, value, depth: writer.write_container("l", value, depth),
    tuple: lambda writer, value, depth: ["t", writer.write_all(tuple.__iter__(value), depth)],
    dict: lambda writer, value, depth: writer.write_container("d", value, depth),
    set: lambda writer, value, depth: writer.write_container("S", value, depth),
    frozenset: lambda writer, value, depth: ["F", writer.write_all(frozenset.__iter__(value), depth)],
    bytearray: lambda writer, value, depth: writer.write_container("B", value, depth),
    deque: lambda writer, value, depth: writer.write_container("q", value, depth),
    range: lambda writer, value, depth: ["g", *writer.write_all((value.start, value.stop, value.step), depth)],
    type({}.keys()): lambda writer, value, depth: ["K", writer.write_all(value, depth)],
    type({}.values()): lambda writer, value, depth: ["V", writer.write_all(value, depth)],
    type({}.items()): lambda writer, value, depth: ["I", writer.write_all(value, depth)],
    type(...): lambda writer, value, depth: ["e"],
    Decimal: lambda writer, value, depth: ["D", Decimal.__str__(value)],
    Fraction: lambda writer, value, depth: ["Q", *writer.write_all((value.numerator, value.denominator), depth)],
    datetime.datetime: lambda writer, value, depth: ["T", "datetime", datetime.datetime.isoformat(value)],
    datetime.date: lambda writer, value, depth: ["T", "date", datetime.date.isoformat(value)],
    datetime.time: lambda writer, value, depth: ["T", "time", datetime.time.isoformat(value)],
    datetime.timedelta: lambda writer, value, depth: ["P", value.days, value.seconds, value.microseconds],
    type: _write_type,
}


def _container_type(value: object) -> type:
    return next(base for base in _CONTENTS if base in type(value).__mro__)


_CONTENTS: dict[type, Callable[[Writer, Any, int], Any]] = {
    list: lambda writer, value, depth: writer.write_all(list.__iter__(value), depth),
    dict: lambda writer, value, depth: [writer.write_all(pair, depth) for pair in dict.items(value)],
    set: lambda writer, value, depth: writer.write_all(set.__iter__(value), depth),
    bytearray: lambda writer, value, depth: bytearray.hex(value),
    deque: lambda writer, value, depth: writer.write_all((value.maxlen, *deque.__iter__(value)), depth),
}


def _fill_list(reader: Reader, value: list[Any], contents: Any, depth: int) -> None:
    value[:] = reader.read_all(contents, depth)


def _fill_dict(reader: Reader, value: dict[Any, Any], contents: Any, depth: int) -> None:
    pairs: list[Any] = [reader.read_all(pair, depth) for pair in contents]
    value.clear()
    value.update(pairs)


def _fill_set(reader: Reader, value: set[Any], contents: Any, depth: int) -> None:
    items = reader.read_all(contents, depth)
    value.clear()
    value.update(items)


def _fill_bytearray(reader: Reader, value: bytearray, contents: Any, depth: int) -> None:
    value[:] = bytes.fromhex(contents)


def _fill_deque(reader: Reader, value: deque[Any], contents: Any, depth: int) -> None:
    items = reader.read_all(contents, depth)[1:]
    value.clear()
    value.extend(items)


_FILL: dict[type, Callable[[Reader, Any, Any, int], None]] = {
    list: _fill_list,
    dict: _fill_dict,
    set: _fill_set,
    bytearray: _fill_bytearray,
    deque: _fill_deque,
}

_HEX = re.compile(r"-?0x[0-9a-f]+")
_MOMENTS: dict[str, Any] = {"datetime": datetime.datetime, "date": datetime.date, "time": datetime.time}


def _read_int(reader: Reader, depth: int, text: Any) -> int:
    if not _HEX.fullmatch(text):
        raise ValueError("not an int in base 16")
    return int(text, 16)


def _read_deque(reader: Reader, depth: int, number: Any, contents: Any) -> Any:
    maxlen = contents[0]
    return reader.read_container(lambda: deque(maxlen=maxlen), depth, number, contents)


_READERS: dict[str, Callable[..., Any]] = {
    "i": _read_int,
    # The very object math.nan, which Python's containers find equal to itself.
    "f": lambda reader, depth, text: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text],
    "c": lambda reader, depth, real, imaginary: complex(reader.read(real), reader.read(imaginary)),
    "s": lambda reader, depth, ordinals: "".join(map(chr, ordinals)),
    "b": lambda reader, depth, text: bytes.fromhex(text),
    "l": lambda reader, depth, number, contents: reader.read_container(list, depth, number, contents),
    "t": lambda reader, depth, trees: tuple(reader.read_all(trees, depth)),
    "d": lambda reader, depth, number, contents: reader.read_container(dict, depth, number, contents),
    "S": lambda reader, depth, number, contents: reader.read_container(set, depth, number, contents),
    "F": lambda reader, depth, trees: frozenset(reader.read_all(trees, depth)),
    "B": lambda reader, depth, number, contents: reader.read_container(bytearray, depth, number, contents),
    "q": _read_deque,
    "r": Reader.read_number,
    "g": lambda reader, depth, *trees: range(*reader.read_all(list(trees), depth)),
    "K": lambda reader, depth, trees: dict.fromkeys(reader.read_all(trees, depth)).keys(),
    "V": lambda reader, depth, trees: dict(enumerate(reader.read_all(trees, depth))).values(),
    "I": lambda reader, depth, trees: dict(reader.read_all(trees, depth)).items(),
    "e": lambda reader, depth: ...,
    "D": lambda reader, depth, text: Decimal(text),
    "Q": lambda reader, depth, *trees: Fraction(*reader.read_all(list(trees), depth)),
    "T": lambda reader, depth, kind, text: _MOMENTS[kind].fromisoformat(text),
    "P": lambda reader, depth, *fields: datetime.timedelta(*fields),
    "n": lambda reader, depth, name: NAMED_TYPES[name],
    "it": lambda reader, depth, trees: iter(reader.read_all(trees, depth)),
    "a": lambda reader, depth, *fields: arrays.read_array(reader, depth, *fields),
    "h": lambda reader, depth, number: reader.read_reference("h", number),
    "H": lambda reader, depth, number: reader.read_reference("H", number),
}
