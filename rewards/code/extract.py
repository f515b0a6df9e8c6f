"""The code of a completion: text in, Python source out. Parses, and runs nothing.

Fences are read line by line, so that no text makes the reading slow. A fence that is never closed reaches to the end,
as where a stop string cut it off; one that stands deeper than its opening (in a docstring) closes nothing."""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

MAX_CODE_CHARACTERS = 200_000
PYTHON_NAMES = frozenset({"python", "py", "python3", "py3", "ipython", "ipython3"})


def extract_code(completion: str, sources: Sequence[str], *, entry_point: str = "") -> str | None:
    """The code from the first of the sources (keys of EXTRACTORS) that has any which parses; None without.

    Of several pieces in a source the last counts that defines the entry point, or, where none is asked for, that prints
    something: what follows a program is often its output. Else the last that parses."""
    text = completion.replace("\r\n", "\n")
    for source in sources:
        fallback = None
        for piece in reversed(EXTRACTORS[source](text)):
            tree = parse(piece)
            if tree is None:
                continue
            if entry_point in bound_names(tree.body) if entry_point else _prints(tree):
                return piece
            fallback = fallback or piece
        if fallback is not None:
            return fallback
    return None


def _prints(tree: ast.Module) -> bool:
    """Whether the code calls print, or write on something."""
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any(
        function.id == "print" if isinstance(function, ast.Name) else getattr(function, "attr", "").startswith("write")
        for function in functions
    )


def parse(source: str) -> ast.Module | None:
    """The syntax tree, or None for what is not Python, is empty, or is more than a person's program would hold."""
    if len(source) > MAX_CODE_CHARACTERS or not source.strip():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # null bytes; nested or large beyond the parser
        return None


def bound_names(body: Sequence[ast.stmt]) -> set[str]:
    """The names that statements bind at their own level: definitions, assignments, imports, also under if and try."""
    names: set[str] = set()
    for statement in _at_this_level(body):
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(statement.name)
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            names.update((alias.asname or alias.name).split(".")[0] for alias in statement.names)
        elif isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.For, ast.With)):
            names.update(
                node.id
                for target in _targets(statement)
                for node in ast.walk(target)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            )
    return names


def _targets(statement: ast.Assign | ast.AnnAssign | ast.AugAssign | ast.For | ast.With) -> list[ast.expr]:
    if isinstance(statement, ast.Assign):
        return statement.targets
    if isinstance(statement, ast.With):
        return [item.optional_vars for item in statement.items if item.optional_vars is not None]
    return [statement.target]


def _at_this_level(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    waiting = list(body)
    while waiting:
        statement = waiting.pop()
        yield statement
        if isinstance(statement, (ast.If, ast.Try, ast.For, ast.While, ast.With)):
            for field in ("body", "orelse", "finalbody"):
                waiting.extend(getattr(statement, field, ()))
            waiting.extend(inner for handler in getattr(statement, "handlers", ()) for inner in handler.body)


def fenced_blocks(text: str) -> list[str]:
    """The contents of the fenced blocks that name Python or no language, in order."""
    blocks: list[str] = []
    lines: list[str] | None = None
    fence, indent, is_python = "", 0, False
    for line in text.split("\n"):
        opening = _opening(line)
        if lines is not None and not _closes(line, fence=fence, indent=indent):
            lines.append(line)
            continue
        if lines is not None:
            if is_python:
                blocks.append(textwrap.dedent("\n".join(lines)))
            lines = None
            if opening is None or not opening[1]:
                continue
        if opening is not None:
            fence, language = opening
            lines, indent, is_python = [], _indent(line), language in PYTHON_NAMES or not language
    if lines is not None and is_python:
        blocks.append(textwrap.dedent("\n".join(lines)))
    return blocks


def _opening(line: str) -> tuple[str, str] | None:
    """The fence that a line opens, and the language it names; None when it opens none.

    Text before the fence is let pass where the fence names Python: `<answer>```python`."""
    bare = line.strip()
    if bare.startswith(("```", "~~~")):
        fence = bare[: len(bare) - len(bare.lstrip(bare[0]))]
        words = bare[len(fence) :].strip().strip("{}.").lower().split()
        return None if "`" in bare[len(fence) :] else (fence, words[0] if words else "")
    start = bare.rfind("```")
    if start > 0 and bare[start + 3 :].strip().lower() in PYTHON_NAMES:
        return "```", "python"
    return None


def _closes(line: str, *, fence: str, indent: int) -> bool:
    return line.lstrip().startswith(fence) and _indent(line) <= indent + 3


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


EXTRACTORS: Mapping[str, Callable[[str], list[str]]] = MappingProxyType(
    {
        "last_block": fenced_blocks,
        "all_blocks": lambda text: ["\n\n".join(block for block in fenced_blocks(text) if parse(block) is not None)],
        "whole": lambda text: [textwrap.dedent(text).strip("\n")],
    }
)
