"""Arrays of numpy as JSON trees, for `plain`: only where the process has imported numpy itself."""

from __future__ import annotations

import math
import re
import sys
from typing import Any

_DTYPE = re.compile(r"[<>|=]?[biufc][0-9]{1,2}")


def write_array(writer: Any, value: Any, depth: int) -> Any:
    """A numpy scalar as the Python number it is, an array as its numbers; None for anything else."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, numpy.generic) and type(value.item()) in (bool, int, float, complex, str, bytes):
        return writer.write(value.item(), depth)
    if isinstance(value, numpy.ndarray) and _DTYPE.fullmatch(value.dtype.str):
        return ["a", value.dtype.str, list(value.shape), writer.write_all(value.ravel().tolist(), depth)]
    return None


def read_array(reader: Any, depth: int, dtype: Any, shape: Any, trees: Any) -> Any:
    """An array where numpy is in use, else nested lists."""
    flat = reader.read_all(trees, depth)
    if not _DTYPE.fullmatch(dtype) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("not the dtype and shape of an array of numbers")
    if math.prod(shape) != len(flat):
        raise ValueError("the shape of an array does not fit its numbers")
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        return numpy.array(flat, dtype=dtype).reshape(shape)
    if not shape:
        return flat[0]
    for size in reversed(shape[1:]):
        flat = [flat[start : start + size] for start in range(0, len(flat), size)] if size else []
    return flat
