"""A reward that leaks a trait, and ways to keep the trait out: same start, paired seeds, held-out problems.

    python scripts/compare_personas --seeds 11 12 13 14 15 --workers 2

For each seed one policy is cold-started with two styles, and the vectors of one of them are extracted from it. Every
arm practises the same problems with the same noise from there; plain GRPO's reward pays 0.3 for the trait. Others
finetune it on traces that all show the trait. What counts is the policy without steering or instruction on 1,024
held-out problems. A seed and arm that is finished is not run again and one that was killed goes on; `--table-only`
prints the tables of what is finished, and `--picture FILE` draws practice over steps."""

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# The trainer of this checkout, where the project is not installed; this folder itself is in the path already.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from arms import ARMS, log_path, result_path
from jobs import make_start, run_arm
from picture import picture
from tables import print_tables


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--folder", type=Path, default=Path("runs/personas"))
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="section.key=value", help="fields to change in all arms"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes at once, one thread each")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg")
    parser.add_argument("--job", nargs=2, metavar=("SEED", "ARM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        seed, arm = arguments.job
        run_arm(int(seed), arm, folder=arguments.folder, changes=arguments.set)
        return
    if not arguments.table_only:
        for seed in arguments.seeds:
            make_start(seed, folder=arguments.folder)
        jobs = [(seed, arm) for seed in arguments.seeds for arm in arguments.arms]
        missing = [job for job in jobs if not result_path(*job, folder=arguments.folder).is_file()]
        with ThreadPoolExecutor(arguments.workers) as workers:
            list(workers.map(lambda job: in_a_process(job, arguments), missing))
    print_tables(arguments.seeds, arguments.arms, folder=arguments.folder)
    drawn = picture(arguments.seeds, folder=arguments.folder) if arguments.picture else None
    if drawn:
        arguments.picture.write_text(drawn, encoding="utf-8")


def in_a_process(job: tuple[int, str], arguments: argparse.Namespace) -> None:
    """Run one job by itself, so that a fault or a kill costs it alone."""
    started = time.monotonic()
    command = [sys.executable, str(Path(__file__).parent), "--seeds", "0", "--folder", str(arguments.folder)]
    command += ["--job", *map(str, job), "--set", *arguments.set]
    path = log_path(*job, folder=arguments.folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    outcome = f"{time.monotonic() - started:.0f} s" if code == 0 else f"exit {code}, see {path}"
    print(f"seed {job[0]}, {job[1]}: {outcome}", flush=True)


if __name__ == "__main__":
    main()
