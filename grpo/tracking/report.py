"""One or several runs' folders as one HTML file: what a person looks at to decide about a run, offline.

Owns how the page is put together: its style, its scripts and the data in one file, whose policy lets only these
scripts run and nothing be fetched. Everything in a folder may be hostile (rollouts are): it reaches the page as JSON
that holds no `<`, and the document as text nodes."""

import base64
import gzip
import hashlib
import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from grpo.tracking.page_data import run_data
from grpo.tracking.recorded_run import RecordedRun, Row, choose_rollouts, read_json_list, read_run
from grpo.tracking.rollout_index import RolloutIndex, choices, read_row

MAX_ROLLOUTS = 2000
MAX_ROLLOUT_BYTES = 24_000_000
"""Of the rollouts as JSON, all runs together: what still goes into a mail when it is compressed."""
SCRIPTS = (
    *("core.js", "charts.js", "overview.js", "curves.js", "tables.js", "tiers.js", "compare.js", "tokens.js"),
    *("rollouts.js", "main.js"),
)
LIBRARY = "vendor/uPlot.iife.min.js"
STYLES = ("vendor/uPlot.min.css", "style.css")


def write_report(*run_dirs: Path, output: Path | None = None) -> Path:
    """Write the page, whole or not at all, and return its path: `output`, or report.html in the folder of a single run
    and comparison.html beside the first of several.

    Raises FileNotFoundError where a folder has no config.yaml, and ValueError where that file holds no mapping, where
    no folder is given, or one twice."""
    if not run_dirs:
        raise ValueError("a report needs at least one run's folder")
    if len({path.resolve() for path in run_dirs}) < len(run_dirs):
        raise ValueError(f"each folder once; got {', '.join(map(str, run_dirs))}")
    runs = [read_run(run_dir) for run_dir in run_dirs]
    target = output or (
        run_dirs[0] / "report.html" if len(runs) == 1 else run_dirs[0].resolve().parent / "comparison.html"
    )
    text = page(data=embedded([_run(run, share=len(runs)) for run in runs]))
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8", errors="replace")  # names can hold half a surrogate pair
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def page(*, data: str | None) -> str:
    """The page as HTML: with its data in it, or where that is None with leave to ask its own server for them."""
    environment = Environment(
        loader=PackageLoader("grpo.tracking", package_path="page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        policy=policy(is_live=data is None),
        style=Markup(_style()),
        library=Markup(_asset(LIBRARY)),
        script=Markup(_script()),
        data=data,
    )


def policy(*, is_live: bool) -> str:
    """The page's content security policy: its own scripts and style by their hashes, and of the network nothing, or
    its own server alone."""
    server = "'self'" if is_live else "'none'"
    scripts = " ".join(_content_hash(text) for text in (_asset(LIBRARY), _script()))
    return (
        f"default-src 'none'; script-src {scripts}; style-src {_content_hash(_style())}; img-src data:; "
        f"connect-src {server}; base-uri 'none'; form-action 'none'"
    )


def embedded(runs: Sequence[Row]) -> str:
    """Runs as text for the page: JSON, compressed, in letters that mean nothing to HTML."""
    text = json.dumps({"runs": runs}, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("ascii"), compresslevel=9, mtime=0)).decode("ascii")


def read_vocabulary(run_dir: Path) -> list[Any]:
    """What each token id reads as; empty where the run has not written it."""
    return read_json_list(run_dir / "vocabulary.json")


def _run(run: RecordedRun, *, share: int) -> Row:
    """A run's data with its share of the rollouts that a page holds."""
    index = RolloutIndex(run.folder / "rollouts")
    index.refresh()
    run.notes.extend(index.notes())
    data = run_data(run, index.entries)
    return {"id": str(run.folder), **data, "rollouts": _rollouts(run, index, share=share)}


def _rollouts(run: RecordedRun, index: RolloutIndex, *, share: int) -> Row | None:
    """Rows spread evenly over the files, as many as fit. A prompt is stored once, and the rows hold its number."""
    entries = index.entries
    if not entries:
        return None
    chosen = choose_rollouts([len(of_file) for of_file in index.by_file], limit=MAX_ROLLOUTS // share)
    picked = [of_file[line] for of_file, lines in zip(index.by_file, chosen, strict=True) for line in lines]
    prompts: dict[str, int] = {}
    rows: list[Row] = []
    for entry in picked:
        row = read_row(entry)
        if row is not None:
            row["prompt"] = prompts.setdefault(str(row["prompt"] or ""), len(prompts))
            rows.append(row)
    rows = _within(rows, max_bytes=MAX_ROLLOUT_BYTES // share)
    texts = read_vocabulary(run.folder)
    used = sorted({token for row in rows for token in row.get("token_ids", ())})
    return {
        "prompts": list(prompts),
        "rows": rows,
        "vocabulary": {token: str(texts[token]) for token in used if isinstance(token, int) and token < len(texts)},
        "choices": choices(entries),
        "shown": len(rows),
        "total": len(entries),
        "num_files": len(index.by_file),
    }


def _within(rows: Sequence[Row], *, max_bytes: int) -> list[Row]:
    """The rows, or as many of them, evenly spread, as their sizes allow."""
    size = sum(len(json.dumps(row)) for row in rows)
    if size <= max_bytes:
        return list(rows)
    number = max(1, len(rows) * max_bytes // size)
    return [rows[(2 * index + 1) * len(rows) // (2 * number)] for index in range(number)]


def _asset(name: str) -> str:
    return (files("grpo.tracking") / "page").joinpath(*name.split("/")).read_text(encoding="utf-8")


def _style() -> str:
    return "\n".join(_asset(name) for name in STYLES)


def _script() -> str:
    """The page's scripts as one, in a scope of its own."""
    return '(() => {\n"use strict";\n' + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();\n"


def _content_hash(text: str) -> str:
    """A script or style as a content security policy names it, so that the browser takes that text and no other."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
