"""A user's own reward: a function in a Python file, named in the config."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards.guard import RULE, describe_exception, guard
from rewards.options import nearest
from rewards.types import Verifier


def load_function(file: str, function: str, options: Mapping[str, Any]) -> Verifier:
    """The verifier `function(completion, problem, option=value, …)` of the file, which is run to find it.

    Raises ValueError as `find_function` does, and when the function does not accept the options."""
    found = find_function(file, function, remedy=f"write def {function}(completion, problem) there")
    _check_signature(found, file=file, function=function, options=options)
    return guard(functools.partial(found, **options), title=function, file=str(Path(file).resolve()))


def find_function(file: str, function: str, *, remedy: str) -> Callable[..., Any]:
    """The function of that name in a user's file, which is run to find it.

    Raises ValueError when the file is missing or fails to run, and when it holds no such callable."""
    path = Path(file).resolve()
    if not path.is_file():
        raise ValueError(f"reward file {file!r}: no such file ({path}); give the path of a Python file that defines it")
    found = getattr(_run_file(path), function, None)
    if found is None:
        raise ValueError(f"reward file {file!r} defines no {function!r}; {_suggestion(path, function)}")
    if not callable(found):
        raise ValueError(f"{function!r} in reward file {file!r} is a {type(found).__name__}, not a function; {remedy}")
    checked: Callable[..., Any] = found
    return checked


def _run_file(path: Path) -> ModuleType:
    name = f"reward_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"reward file {str(path)!r} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle in the file look themselves up there
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        del sys.modules[name]
        raise ValueError(
            f"reward file {str(path)!r} fails when it is run: {describe_exception(error, file=str(path))}"
        ) from error
    return module


def _suggestion(path: Path, function: str) -> str:
    module = sys.modules[f"reward_file_{path.stem}"]
    names = [name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]
    return f"it defines {', '.join(names) or 'no function'}{nearest(function, names)}"


def _check_signature(found: Callable[..., Any], *, file: str, function: str, options: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(found)
    except ValueError:  # some functions written in C tell no signature; their first call will
        return
    try:
        signature.bind("", {}, **options)
    except TypeError as error:
        raise ValueError(
            f"{function!r} in reward file {file!r} cannot be called as {function}(completion, problem"
            f"{''.join(f', {name}=…' for name in options)}): {error}; it is {function}{signature}. Its options are "
            f"keyword arguments, and {RULE}"
        ) from error
