"""Speed and memory beside TRL's GRPOTrainer and vLLM's sampler, and beside what the machine can do at most.

    python scripts/bench                                  # every case that this machine can measure
    python scripts/bench --cases ragged-0.2 --threads 1   # one of them
    python scripts/bench --table-only --write-docs        # tables and picture from what is measured, into docs/
    python scripts/bench --profile ragged-0.2             # where the remaining time goes

Both sides load the same weights and problems, with the same group size, limits, optimizer and loss, and take turns step
by step in processes of their own. docs/performance.md says what each column means. A case that is measured is kept in
the folder and not measured again (`--again` does), so the script can be stopped and started."""

import argparse
import importlib
import json
import sys
from pathlib import Path

# The trainer of this checkout, where the project is not installed; this folder itself is in the path already.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from cases import CASES, CHOICES, SMOKE, Case, chosen, profile_path, result_path
from pages import as_json, report, write_docs
from play import Pace, SideError, play, reason_to_skip


def main() -> int:
    """Measure what is missing, then print what there is. Returns 1 where a side failed."""
    arguments = _arguments()
    if arguments.job:
        _work(arguments)
        return 0
    cases = chosen(arguments.cases)
    if arguments.profile:
        case = CASES[arguments.profile]
        _prepare(case, folder=arguments.folder)
        found = importlib.import_module("profiles").profiled(case, folder=arguments.folder.resolve())
        path = profile_path(case, folder=arguments.folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found, encoding="utf-8")
        print(found)
        return 0
    failed = False if arguments.table_only else _measure(cases, arguments)
    if arguments.json:
        print(json.dumps(as_json(cases, folder=arguments.folder), indent=1))
    else:
        print(report(cases, folder=arguments.folder))
    if arguments.write_docs:
        write_docs(cases, folder=arguments.folder)
    return int(failed)


def _measure(cases: list[Case], arguments: argparse.Namespace) -> bool:
    """Whether a side failed; what could be measured is written."""
    failed = False
    for case in cases:
        reason = reason_to_skip(case)
        for threads in case.threads if reason == "" else ():
            path = result_path(case, threads=threads, folder=arguments.folder)
            if threads not in arguments.threads or (path.is_file() and not arguments.again):
                continue
            _say(f"{case.name}, threads {threads}: {case.what}")
            _prepare(case, folder=arguments.folder)
            turns = min(arguments.repeats, case.most_turns or arguments.repeats)
            pace = Pace(warmup_steps=arguments.warmup_steps, turns=turns, steps=arguments.steps)
            try:
                result = play(case, threads=threads, pace=pace, folder=arguments.folder)
            except SideError as error:
                _say(f"{case.name}, threads {threads}: {error}")
                failed = True
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result), encoding="utf-8")
        if reason:
            _say(f"{case.name}: skipped: {reason}")
    return failed


def _prepare(case: Case, *, folder: Path) -> None:
    policies = importlib.import_module("policies")  # which imports torch
    policies.make_rows(case, folder=folder)
    policies.make_policy(case, folder=folder)


def _work(arguments: argparse.Namespace) -> None:
    """Be one side: what `play` starts."""
    side, name, *numbers = arguments.job
    threads, warmup_steps, turns, steps = map(int, numbers)
    work = importlib.import_module("worker").work
    work(side, name, folder=arguments.folder, threads=threads, warmup_steps=warmup_steps, turns=turns, steps=steps)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=(*CHOICES, SMOKE.name), default=list(CHOICES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--steps", type=int, default=1, help="steps of a turn")
    parser.add_argument("--warmup-steps", type=int, default=1, help="steps that do not count")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    parser.add_argument("--table-only", action="store_true", help="measure nothing")
    parser.add_argument("--json", action="store_true", help="print the numbers for a machine")
    parser.add_argument("--write-docs", action="store_true", help="put tables and picture into docs/performance.md")
    parser.add_argument("--profile", choices=CASES, metavar="CASE", help="say where a step's time goes, and no more")
    parser.add_argument("--job", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.repeats, arguments.steps, arguments.warmup_steps) < 1:
        parser.error("--repeats, --steps and --warmup-steps: each must be at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
