"""Arrays as JSON can hold them: in base64, so that a million numbers are written in milliseconds and exactly."""

import base64
import zlib

import numpy as np
from numpy.typing import NDArray


def pack_numbers(numbers: NDArray[np.generic]) -> str:
    """The array's bytes, little-endian, in base64. Whoever unpacks them knows the type."""
    return base64.b64encode(numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).tobytes()).decode("ascii")


def unpack_numbers(text: str, *, dtype: type[np.generic]) -> NDArray[np.generic]:
    """The array that `pack_numbers` was given."""
    little = np.dtype(dtype).newbyteorder("<")
    return np.frombuffer(base64.b64decode(text, validate=True), dtype=little).astype(dtype)


def pack_members(indices: NDArray[np.integer], *, num_problems: int) -> str:
    """A set of problems: one bit a problem, compressed. A few of a million take some hundred bytes."""
    among = np.zeros(num_problems, dtype=np.bool_)
    among[indices] = True
    return base64.b64encode(zlib.compress(np.packbits(among).tobytes(), level=1)).decode("ascii")


def unpack_members(text: str, *, num_problems: int) -> NDArray[np.int32]:
    """The indices that `pack_members` was given, ascending."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype=np.uint8)
    return np.flatnonzero(np.unpackbits(bits, count=num_problems)).astype(np.int32)
