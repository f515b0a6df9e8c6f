"""What a curriculum over very many problems costs, and how many of the groups that it asks for have variance.

    python scripts/bench_curricula.py --problems 1000000 --steps 200
    python scripts/bench_curricula.py online_seen weighted_at_floor --problems 100000
    python scripts/bench_curricula.py --yield

A step is what a trainer asks: 32 problems, refills of 10 and of 5, what their rollouts said after each, the end of the
step, and the metrics. Memory is what the curriculum holds beyond the ids and tiers that it is handed, as tracemalloc
counts it after two steps. Times are CPU time, so that a busy machine does not count; of the steps the median and the
longest. State is state_dict and json.dumps, load is json.loads and load_state_dict.

The yield is that of a policy that does not learn, on pools of 1,200 problems of which a share is hopeless (p = 0), half
as many trivial (p = 1), and the rest have p even between 0.05 and 0.95: 80 steps of 32 groups of 16 with two refills.
It says what a memory is worth in tokens, and nothing about what the policy learns from them."""

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from curricula import (
    Curriculum,
    Mixture,
    Online,
    Outcome,
    StageRule,
    Tier,
    TwoStages,
    Uniform,
    Weighted,
    next_wave,
)

REQUESTS = (32, 10, 5)
GROUP_SIZE = 8
GOAL_MEGABYTES = 200.0
GOAL_MILLISECONDS = 5.0

Right = Callable[[int], int]
"""Right rollouts of a group of the problem with this index."""


@dataclass(frozen=True, slots=True)
class Case:
    """A curriculum and what was said of its problems before its steps are timed; None: nothing."""

    build: Callable[[Sequence[str]], Curriculum]
    told: Right | None = None
    groups_told: int = 1


def half_right(index: int) -> int:
    return 2 + index % 5


def one_in_ten(index: int) -> int:
    """90 % of the problems are hopeless or trivial."""
    return half_right(index) if index % 10 == 0 else GROUP_SIZE * (index % 2)


def one_in_ten_thousand(index: int) -> int:
    return half_right(index) if index % 10_000 == 0 else GROUP_SIZE


def two_stages(problem_ids: Sequence[str]) -> Curriculum:
    tiers = {name: (Tier.moderate, Tier.extreme)[index % 2] for index, name in enumerate(problem_ids)}
    stages = [StageRule("moderate", (Tier.moderate,), steps=10_000), StageRule("extreme", (Tier.extreme,))]
    return TwoStages(tiers, stages=stages, seed=0)


def all_moderate(problem_ids: Sequence[str]) -> Curriculum:
    tiers = dict.fromkeys(problem_ids, Tier.moderate)
    return TwoStages(tiers, stages=[StageRule("moderate", (Tier.moderate,))], seed=0)


def mixture(problem_ids: Sequence[str]) -> Curriculum:
    tiers = {name: list(Tier)[index % 4] for index, name in enumerate(problem_ids)}
    return Mixture(tiers, shares={Tier.moderate: 0.7, Tier.extreme: 0.2, Tier.trivial: 0.1}, seed=0)


CASES = {
    "uniform": Case(lambda ids: Uniform(ids, seed=0)),
    "two_stages": Case(two_stages),
    "two_stages_few_left": Case(all_moderate, one_in_ten_thousand, groups_told=2),
    "mixture": Case(mixture),
    "mixture_seen": Case(mixture, one_in_ten, groups_told=2),
    "weighted": Case(lambda ids: Weighted(ids, seed=0)),
    "weighted_at_floor": Case(lambda ids: Weighted(ids, seed=0), one_in_ten_thousand, groups_told=4),
    "online": Case(lambda ids: Online(ids, seed=0)),
    "online_seen": Case(lambda ids: Online(ids, seed=0), one_in_ten),
    "online_few_left": Case(lambda ids: Online(ids, seed=0), one_in_ten_thousand),
}


def play_step(curriculum: Curriculum, *, index_of: dict[str, int], right: Right) -> float:
    """Seconds that the curriculum takes for a step; making the outcomes is the trainer's and not counted."""
    seconds = 0.0
    for request in REQUESTS:
        start = time.process_time()
        chosen = curriculum.next(request)
        seconds += time.process_time() - start
        outcomes = [Outcome(name, GROUP_SIZE, right(index_of[name])) for name in chosen]
        start = time.process_time()
        curriculum.observe(outcomes)
        seconds += time.process_time() - start
    start = time.process_time()
    curriculum.end_step()
    curriculum.metrics()
    return seconds + time.process_time() - start


def measure(case: Case, *, problem_ids: Sequence[str], steps: int) -> list[str]:
    """The cells of the case's row."""
    right = case.told or half_right
    index_of = {name: index for index, name in enumerate(problem_ids)}
    tracemalloc.start()
    curriculum = case.build(problem_ids)
    for _ in range(2):
        play_step(curriculum, index_of=index_of, right=right)
    megabytes = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    if case.told is not None:
        for _ in range(case.groups_told):
            curriculum.observe([Outcome(name, GROUP_SIZE, right(index)) for name, index in index_of.items()])
            curriculum.end_step()
    taken = [1e3 * play_step(curriculum, index_of=index_of, right=right) for _ in range(steps)]
    start = time.process_time()
    text = json.dumps(curriculum.state_dict())
    saved = time.process_time() - start
    resumed = case.build(problem_ids)
    start = time.process_time()
    resumed.load_state_dict(json.loads(text))
    loaded = time.process_time() - start
    if resumed.next(32) != curriculum.next(32):
        raise RuntimeError("a curriculum that was saved and loaded goes on otherwise")
    good = megabytes < GOAL_MEGABYTES and median(taken) < GOAL_MILLISECONDS
    times = [f"{median(taken):.2f}", f"{max(taken):.1f}"]
    return [
        f"{megabytes:.0f}",
        *times,
        f"{len(text) / 1e6:.1f}",
        f"{saved:.2f}",
        f"{loaded:.2f}",
        "yes" if good else "NO",
    ]


# --- yield ------------------------------------------------------------------------------------------------------------

KNOWING_NOTHING: dict[str, Callable[[Sequence[str], int], Curriculum]] = {
    "uniform": lambda ids, seed: Uniform(ids, seed=seed),
    "weighted": lambda ids, seed: Weighted(ids, seed=seed),
    "online": lambda ids, seed: Online(ids, seed=seed),
}


def yield_of(curriculum: Curriculum, *, rates: dict[str, float], seed: int) -> tuple[float, float, int]:
    """Share of the groups that are kept (32 a step, with variance), of the 32 wanted those kept, problems with one."""
    random = np.random.Generator(np.random.PCG64(seed))
    num_groups = num_kept = 0
    useful: set[str] = set()
    for _ in range(80):
        tried: list[tuple[str, bool]] = []
        waves = 0
        while chosen := next_wave(curriculum, num_wanted=32, tried=tried, waves_done=waves, max_waves=3):
            outcomes = [Outcome(name, 16, int(random.binomial(16, rates[name]))) for name in chosen]
            curriculum.observe(outcomes)
            tried += [(outcome.problem_id, 0 < outcome.num_correct < 16) for outcome in outcomes]
            waves += 1
        curriculum.end_step()
        kept = [problem_id for problem_id, varied in tried if varied][:32]
        num_groups += len(tried)
        num_kept += len(kept)
        useful |= set(kept)
    return num_kept / num_groups, num_kept / (80 * 32), len(useful)


def print_yields(*, num_problems: int = 1200, num_seeds: int = 5) -> None:
    print("| hopeless + trivial | curriculum | groups kept | of the 32 wanted | different problems |")
    print("|---|---|---|---|---|")
    for share in (0.0, 0.3, 0.6, 0.8, 0.9, 0.95):
        for name, build in KNOWING_NOTHING.items():
            rows = []
            for seed in range(num_seeds):
                random = np.random.Generator(np.random.PCG64([seed, 1]))
                names = [f"p{index:04d}" for index in random.permutation(num_problems)]
                rates = dict(zip(names, random.uniform(0.05, 0.95, num_problems).tolist(), strict=True))
                num_flat = round(share * num_problems)
                rates |= {other: float(place >= num_flat * 2 / 3) for place, other in enumerate(names[:num_flat])}
                rows.append(yield_of(build(names, seed), rates=rates, seed=seed))
            kept, filled, different = np.mean(rows, axis=0)
            print(f"| {share:.0%} | `{name}` | {kept:.0%} | {filled:.0%} | {different:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], default=[], help="which cases; all of them if none")
    parser.add_argument("--problems", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--yield", action="store_true", dest="yields", help="the groups with variance instead")
    arguments = parser.parse_args()
    if arguments.yields:
        print_yields()
        return
    problem_ids = [f"problem-{index:08d}" for index in range(arguments.problems)]
    goals = f"under {GOAL_MEGABYTES:.0f} MB and {GOAL_MILLISECONDS:.0f} ms"
    print(
        f"| {arguments.problems:,} problems | MB | ms a step | longest | state, MB | saved, s | loaded, s | {goals} |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.cases or CASES:
        cells = measure(CASES[name], problem_ids=problem_ids, steps=arguments.steps)
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
