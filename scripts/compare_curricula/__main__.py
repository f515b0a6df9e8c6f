"""Curricula against each other at an equal budget of tokens: same start, paired seeds, held-out problems.

    python scripts/compare_curricula --seeds 1 2 3 4 5 6 7 8 9 10 --pools hopeless mild --workers 2

For each seed one policy is cold-started as the quick start does and exported; for each pool its problems are written
once. Every arm of a pair begins with both, has the same noise keys and the same held-out problems, and ends when its
budget is spent: profile, practice, refills, evaluations of temperatures and new profiles all count. A seed, pool and
arm that is finished is not run again and one that was killed goes on, so the script can be stopped and started; the
tables are printed from what is finished (`--table-only` prints them alone)."""

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# The trainer of this checkout, where the project is not installed; this folder itself is in the path already.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from arms import ARMS, LABELS, POOLS, log_path, result_path, tiers_path
from jobs import label_heldout, make_stage_one, make_start, run_arm
from tables import print_table


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--pools", nargs="+", choices=list(POOLS), default=list(POOLS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="all that the pool is for, without it")
    parser.add_argument("--folder", type=Path, default=Path("runs/curricula"))
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="section.key=value", help="fields to change in all arms"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes at once, one thread each")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--job", nargs=3, metavar=("SEED", "POOL", "ARM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        seed, pool, arm = arguments.job
        if arm == LABELS:
            label_heldout(int(seed), pool, folder=arguments.folder, changes=arguments.set)
        else:
            run_arm(int(seed), pool, arm, folder=arguments.folder, changes=arguments.set)
        return
    jobs = [
        (seed, pool, arm)
        for seed in arguments.seeds
        for pool in arguments.pools
        for arm in POOLS[pool].arms
        if arguments.arms is None or arm in arguments.arms
    ]
    if not arguments.table_only:
        for seed in arguments.seeds:
            make_start(seed, folder=arguments.folder)
            if any(POOLS[pool].after_stage_one for pool in arguments.pools):
                make_stage_one(seed, folder=arguments.folder, changes=arguments.set)
        labelled = [pool for pool in arguments.pools if POOLS[pool].after_stage_one]
        unlabelled = [seed for seed in arguments.seeds if not tiers_path(seed, folder=arguments.folder).is_file()]
        labels = [(seed, pool, LABELS) for pool in labelled for seed in unlabelled]
        missing = [job for job in jobs if not result_path(*job, folder=arguments.folder).is_file()]
        for wave in (labels, missing):  # an arm reads its labels when it is measured
            with ThreadPoolExecutor(arguments.workers) as workers:
                list(workers.map(lambda job: in_a_process(job, arguments), wave))
    for pool in arguments.pools:
        print_table(pool, jobs, folder=arguments.folder)


def in_a_process(job: tuple[int, str, str], arguments: argparse.Namespace) -> None:
    """Run one job by itself, so that a fault or a kill costs it alone."""
    started = time.monotonic()
    command = [sys.executable, str(Path(__file__).parent), "--seeds", "0", "--folder", str(arguments.folder)]
    command += ["--job", *map(str, job), "--set", *arguments.set]
    path = log_path(*job, folder=arguments.folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    outcome = f"{time.monotonic() - started:.0f} s" if code == 0 else f"exit {code}, see {path}"
    print(f"seed {job[0]}, {job[1]}, {job[2]}: {outcome}", flush=True)


if __name__ == "__main__":
    main()
