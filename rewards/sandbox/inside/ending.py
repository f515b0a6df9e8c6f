"""How a program ends: with the streams, exit codes and order of Python's own end. Knows no box and no limit."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

STREAMS = (("stdin", "r", "surrogateescape"), ("stdout", "w", "surrogateescape"), ("stderr", "w", "backslashreplace"))
FOLDER = os.path.dirname(os.path.abspath(__file__))


def run_and_exit(program: Callable[[], None]) -> NoReturn:
    """Run it on fresh standard streams and end this process with the exit code that Python would give.

    Like Python: a SystemExit's code, 1 after a traceback, then the other threads, the exit functions, what
    `__main__` holds, and a last flush, which makes it 120 when it fails."""
    code = 1
    try:
        atexit._clear()
        _open_streams()
        code = _run(program)
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            _flush()
            vars(sys.modules["__main__"]).clear()
        except BaseException as error:
            _show(error)
        code = code if _flush() else 120
    finally:
        os._exit(code)


def _run(program: Callable[[], None]) -> int:
    try:
        program()
    except SystemExit as error:
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return int.__and__(error.code, 0xFF)  # whatever a class of the program's own makes of `&`
        with suppress(BaseException):
            print(error.code, file=sys.stderr)
        return 1
    except BaseException as error:
        _show(error)
        return 1
    return 0


def _show(error: BaseException) -> None:
    """The traceback on stderr, without the frames of this folder's modules."""
    where = error.__traceback__
    while where is not None and where.tb_frame.f_code.co_filename.startswith(FOLDER):
        where = where.tb_next
    with suppress(BaseException):  # stderr closed, or a hook of the program's own that fails
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exception(type(error), error, where)
        else:
            sys.excepthook(type(error), error, where)


def _open_streams() -> None:
    """UTF-8 whatever comes: undecodable bytes pass through as surrogates, in both directions."""
    for number, (name, mode, errors) in enumerate(STREAMS):
        stream = open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _flush() -> bool:
    try:
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            if stream is not None and not stream.closed:
                stream.flush()
    except BaseException:
        return False
    return True
