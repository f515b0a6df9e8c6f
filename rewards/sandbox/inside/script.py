"""The task `script`: a program's source as `__main__`, run as `python main.py` would run it. Knows no limit."""

from __future__ import annotations

import linecache
import sys
import types

NAME = "main.py"


def main(payload: bytes, *pipes: int) -> None:
    """Run the source; SystemExit and exceptions pass to the caller. The numbers of pipes become its arguments."""
    module = types.ModuleType("__main__")
    module.__file__ = NAME
    module.__builtins__ = __builtins__  # type: ignore[attr-defined]
    sys.modules["__main__"] = module
    sys.argv[:] = [NAME, *map(str, pipes)]
    sys.path[0] = ""
    sys.setrecursionlimit(sys.getrecursionlimit() + _depth())
    lines = payload.decode(errors="replace").splitlines(keepends=True)
    linecache.cache[NAME] = (len(payload), None, lines, NAME)  # for tracebacks and inspect: there is no such file
    exec(compile(payload, NAME, "exec"), vars(module))


def _depth() -> int:
    """Frames that stand where Python's own would have none."""
    frame: types.FrameType | None = sys._getframe()
    depth = 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1
    return depth - 1
