"""The wire between pool, nursery and worker: frames of a length and that many bytes, on pipes.

Requests are pickled by the pool, which trusts itself. Answers are JSON, so that nothing in a worker can make the
trainer's process run anything."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

HEADER = struct.Struct("<Q")
PREPARE, FORK = b"p", b"w"
"""What the pool asks of the nursery."""
EXIT_CODE = struct.Struct("<i")
"""What the nursery tells of a worker that has ended; negative: the signal that killed it."""


def pack(body: bytes) -> bytes:
    """One frame."""
    return HEADER.pack(len(body)) + body


def unpack(buffer: bytearray) -> bytes | None:
    """Take the first whole frame off the buffer and return its body; None when there is none yet."""
    if len(buffer) < HEADER.size:
        return None
    (length,) = HEADER.unpack_from(buffer)
    end = HEADER.size + length
    if len(buffer) < end:
        return None
    body = bytes(buffer[HEADER.size : end])
    del buffer[:end]
    return body


def read_frame(descriptor: int) -> bytes | None:
    """Block until a whole frame is there and return its body; None at the end of the pipe."""
    header = _read_exactly(descriptor, HEADER.size)
    return None if header is None else _read_exactly(descriptor, HEADER.unpack(header)[0])


def write_answer(descriptor: int, answer: list[Any]) -> None:
    """Send one answer as JSON; blocks while the pipe is full. ASCII, so that lone surrogates survive."""
    frame = memoryview(pack(json.dumps(answer).encode("ascii")))
    while frame:
        frame = frame[os.write(descriptor, frame) :]


def _read_exactly(descriptor: int, length: int) -> bytes | None:
    chunks = []
    while length:
        chunk = os.read(descriptor, min(length, 1 << 20))
        if not chunk:
            return None
        chunks.append(chunk)
        length -= len(chunk)
    return b"".join(chunks)
