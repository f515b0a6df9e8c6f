"""Profiles of problems whose pass rates are known: do intervals cover, labels err as computed, and what does it cost?

    python scripts/simulate_profiles.py --problems 100000 --seed 0

Every attempt of every problem is drawn as a right or a wrong one; the stopping rule of `SequentialProfile` is applied
to all problems at once (tests/test_simulate_profiles.py holds it to the class, rollout for rollout), and labels and
intervals are those of `curricula.store.label`. Prints the tables of docs/profiling_statistics.md."""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from curricula.attempts import Attempts
from curricula.label_errors import LabelRules, expected_confusion, label_errors, right_tiers
from curricula.profiling import expected_rollouts, wave_boundaries
from curricula.store import TierRow, label
from curricula.types import TIERS

RULES = LabelRules()
CONFIDENCE = 0.95
PROBLEMS_PER_BLOCK = 4096
FEW_PROBLEMS = 1000
SHOWN_RATES = (0.001, 0.005, 0.02, 0.1)
STOPPING_RULES = ("fixed", "first_success", "exhausted")

Rates = NDArray[np.float64]
Parts = Sequence[tuple[float, Callable[[np.random.Generator, int], Rates]]]


def beta(a: float, b: float, *, low: float = 0.0) -> Callable[[np.random.Generator, int], Rates]:
    """Pass rates low + (1 - low) · Beta(a, b)."""
    return lambda generator, size: low + (1.0 - low) * generator.beta(a, b, size=size)


def point(rate: float) -> Callable[[np.random.Generator, int], Rates]:
    """One pass rate for all."""
    return lambda generator, size: np.full(size, rate)


MIXTURES: Mapping[str, tuple[str, Parts]] = {
    "mild": (
        "70 % Beta(2, 2), 20 % Beta(0.7, 3), 10 % Beta(12, 1)",
        [(0.7, beta(2, 2)), (0.2, beta(0.7, 3)), (0.1, beta(12, 1))],
    ),
    "80 % solvable": (
        "80 % 0.02 + 0.98 Beta(1, 2), 20 % hopeless (p = 0)",
        [(0.8, beta(1, 2, low=0.02)), (0.2, point(0.0))],
    ),
    "90 % hopeless or trivial": (
        "60 % Beta(0.2, 200), 30 % Beta(60, 1), 10 % Beta(1, 3)",
        [(0.6, beta(0.2, 200)), (0.3, beta(60, 1)), (0.1, beta(1, 3))],
    ),
    "hard": ("Beta(0.3, 6)", [(1.0, beta(0.3, 6))]),
    "adversarial": ("a quarter each at p = .001, .005, .02, .1", [(0.25, point(rate)) for rate in SHOWN_RATES]),
}


@dataclass(frozen=True, slots=True)
class Stopped:
    """What the stopping rule sees of P problems; each [P]."""

    num_first_correct: NDArray[np.int64]
    num_until_success: NDArray[np.int64]  # rollouts up to the first right one; 0 where there is none

    def evidence(self, rules: LabelRules) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(num_rollouts, num_correct) of each problem's row."""
        solved_at_once, solved = self.num_first_correct > 0, self.num_until_success > 0
        late = np.where(solved, self.num_until_success, rules.max_rollouts)
        return (
            np.where(solved_at_once, rules.first_rollouts, late),
            np.where(solved_at_once, self.num_first_correct, solved.astype(np.int64)),
        )

    def num_drawn(self, boundaries: Sequence[int]) -> NDArray[np.int64]:
        """Rollouts drawn when every wave that began is drawn to its end."""
        ends = np.asarray(boundaries)
        last = np.where(self.num_until_success > 0, self.num_until_success, ends[-1])
        return ends[np.searchsorted(ends, last)]


@dataclass(frozen=True, slots=True)
class Simulated:
    """A profile of problems with known pass rates; lists and arrays by problem."""

    rates: Rates
    stopped: Stopped
    rows: list[TierRow]

    @property
    def covered(self) -> NDArray[np.bool_]:
        low = np.array([row.low for row in self.rows])
        high = np.array([row.high for row in self.rows])
        return (low <= self.rates) & (self.rates <= high)

    @property
    def labels(self) -> NDArray[np.int64]:
        codes = {tier: code for code, tier in enumerate(TIERS)}
        return np.array([codes[row.tier] for row in self.rows])


def pass_rates(parts: Parts, *, num_problems: int, generator: np.random.Generator) -> Rates:
    """Pass rates of a mixture. [P]"""
    part = generator.choice(len(parts), p=[share for share, _ in parts], size=num_problems)
    rates = np.empty(num_problems)
    for index, (_, draw) in enumerate(parts):
        chosen = part == index
        rates[chosen] = draw(generator, int(chosen.sum()))
    return rates


def stop(right: NDArray[np.bool_], *, rules: LabelRules) -> Stopped:
    """The stopping rule on whole attempt records, [P, max_rollouts]: what it does not look at plays no part."""
    return Stopped(
        num_first_correct=right[:, : rules.first_rollouts].sum(axis=1),
        num_until_success=np.where(right.any(axis=1), right.argmax(axis=1) + 1, 0),
    )


def simulate(rates: Rates, *, rules: LabelRules, generator: np.random.Generator) -> Simulated:
    """Draw every attempt, stop, and label."""
    blocks = [
        stop(generator.random((block.size, rules.max_rollouts)) < block[:, None], rules=rules)
        for block in np.split(rates, range(PROBLEMS_PER_BLOCK, rates.size, PROBLEMS_PER_BLOCK))
    ]
    stopped = Stopped(
        num_first_correct=np.concatenate([block.num_first_correct for block in blocks]),
        num_until_success=np.concatenate([block.num_until_success for block in blocks]),
    )
    return Simulated(rates=rates, stopped=stopped, rows=rows_of(stopped, rules=rules))


def rows_of(stopped: Stopped, *, rules: LabelRules) -> list[TierRow]:
    """The product's own row for each problem, made once for each distinct evidence."""
    made: dict[tuple[int, int], TierRow] = {}
    keys = [(int(n), int(c)) for n, c in zip(*stopped.evidence(rules), strict=True)]
    for key in keys:
        if key not in made:
            made[key] = row_of(*key, rules=rules)
    return [made[key] for key in keys]


def row_of(num_rollouts: int, num_correct: int, *, rules: LabelRules) -> TierRow:
    """`label` of a problem with these counts; a single success after the first rollouts is the last one."""
    attempts = Attempts()
    attempts.add(0, [False] * (num_rollouts - num_correct) + [True] * num_correct, [1] * num_rollouts)
    row = label(
        "simulated",
        attempts,
        first_rollouts=rules.first_rollouts,
        relabel_rollouts=rules.relabel_rollouts,
        trivial_rate=rules.trivial_rate,
        confidence=CONFIDENCE,
    )
    assert row is not None
    return row


def miss_probability(rates: Rates, *, rules: LabelRules) -> Rates:
    """P(the interval does not hold the pass rate | pass rate) of a finished profile, summed over all outcomes. [N]"""
    first, most = rules.first_rollouts, rules.max_rollouts
    outcomes = [(first, c, math.comb(first, c)) for c in range(1, first + 1)]
    outcomes += [(n, 1, 1) for n in range(first + 1, most + 1)] + [(most, 0, 1)]
    missed = np.zeros_like(rates)
    for num_rollouts, num_correct, num_ways in outcomes:
        row = row_of(num_rollouts, num_correct, rules=rules)
        chance = num_ways * rates**num_correct * (1.0 - rates) ** (num_rollouts - num_correct)
        missed += np.where((row.low <= rates) & (rates <= row.high), 0.0, chance)
    return missed


def mean_stopped_share(rate: float, *, rules: LabelRules) -> float:
    """E[c/n | pass rate], c right ones of the n rollouts up to where the stopping rule ends."""
    first, most = rules.first_rollouts, rules.max_rollouts
    return rate + sum(rate * (1.0 - rate) ** (n - 1) / n for n in range(first + 1, most + 1))


def main(arguments_given: Sequence[str] | None = None) -> int:
    """Simulate each mixture and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--problems", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(arguments_given)
    profiles = {}
    for index, (name, (_, parts)) in enumerate(MIXTURES.items()):
        generator = np.random.Generator(np.random.PCG64([arguments.seed, index]))
        rates = pass_rates(parts, num_problems=arguments.problems, generator=generator)
        profiles[name] = simulate(rates, rules=RULES, generator=generator)
    print(f"{arguments.problems:,} problems in each mixture, seed {arguments.seed}; ± is one standard error")
    sections = {
        "Mixtures": mixtures_table(profiles),
        f"Coverage of the {100 * CONFIDENCE:g} % intervals": coverage_table(profiles),
        "Worst coverage over all pass rates, exact": worst_coverage_table(),
        "Labels by right tier: computed % (simulated %)": confusion_table(profiles),
        "label_error against the share of wrong labels": error_table(profiles),
        "Share of wrong labels by size of label_error": reliability_table(profiles),
        f"The first {FEW_PROBLEMS:,} problems alone": few_problems_table(profiles),
        "Rollouts a problem, and how many times fewer than 512": cost_table(profiles),
        "The same where 80 % have one pass rate and 20 % are hopeless, exact": worst_cost_table(),
        "Estimates after stopping: mean over problems": bias_table(profiles),
        "The same at one pass rate, exact": exact_bias_table(),
    }
    for title, lines in sections.items():
        print(f"\n### {title}\n")
        print("\n".join(lines), flush=True)
    return 0


def table(columns: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def mixtures_table(profiles: Mapping[str, Simulated]) -> list[str]:
    def rows() -> Iterator[list[str]]:
        for name, profile in profiles.items():
            right = right_tiers(profile.rates, rules=RULES)
            yield [name, MIXTURES[name][0], *(percent((right == code).mean()) for code in range(len(TIERS)))]

    return table(["mixture", "pass rates", *(f"{tier} %" for tier in TIERS)], rows())


def coverage_table(profiles: Mapping[str, Simulated]) -> list[str]:
    def rows() -> Iterator[list[str]]:
        for name, profile in profiles.items():
            rule = np.array([STOPPING_RULES.index(row.stopping_rule) for row in profile.rows])
            by_rule = [share_with_error(profile.covered[rule == code]) for code in range(len(STOPPING_RULES))]
            yield [name, share_with_error(profile.covered), *by_rule]

    return table(["mixture", "all", *STOPPING_RULES], rows())


def worst_coverage_table() -> list[str]:
    def rows() -> Iterator[list[str]]:
        for first, most in ((8, 512), (8, 128), (8, 32), (16, 512), (1, 512)):
            rules = LabelRules(first, max(first, 32), most)
            # Coverage is lowest next to an interval's end: look just outside of each.
            bounds = {row_of(first, c, rules=rules) for c in range(1, first + 1)} | {row_of(most, 0, rules=rules)}
            bounds |= {row_of(n, 1, rules=rules) for n in range(first + 1, most + 1)}
            edges = [edge for row in bounds for edge in (row.low * (1 - 1e-9), row.high * (1 + 1e-9)) if 0 < edge < 1]
            rates = np.unique(np.concatenate([np.geomspace(1e-5, 0.999, 2000), edges]))
            missed = miss_probability(rates, rules=rules)
            worst = int(missed.argmax())
            yield [f"{first} / {most}", percent(1.0 - missed[worst], digits=2), f"{rates[worst]:.4g}"]

    return table(["first / most rollouts", "coverage %", "at p ="], rows())


def confusion_table(profiles: Mapping[str, Simulated]) -> list[str]:
    def rows() -> Iterator[list[str]]:
        for name, profile in profiles.items():
            right, labels = right_tiers(profile.rates, rules=RULES), profile.labels
            for tier, computed in expected_confusion(profile.rates.tolist(), rules=RULES).items():
                of_tier = labels[right == TIERS.index(tier)]
                shares = [(of_tier == code).mean() for code in range(len(TIERS))]
                cells = [f"{percent(computed[TIERS[i]])} ({percent(share)})" for i, share in enumerate(shares)]
                yield [name, tier, str(of_tier.size), *cells]

    return table(["mixture", "right tier", "problems", *(f"→ {tier}" for tier in TIERS)], rows())


def errors_and_wrong(rows: Sequence[TierRow], rates: Rates) -> tuple[Rates, NDArray[np.bool_]]:
    """label_error of each row, and whether its label is wrong."""
    errors = label_errors(
        rows,
        first_rollouts=RULES.first_rollouts,
        relabel_rollouts=RULES.relabel_rollouts,
        max_rollouts=RULES.max_rollouts,
        trivial_rate=RULES.trivial_rate,
    )
    labels = np.array([TIERS.index(row.tier) for row in rows])
    return np.array(errors), labels != right_tiers(rates, rules=RULES)


def error_table(profiles: Mapping[str, Simulated]) -> list[str]:
    def rows() -> Iterator[list[str]]:
        for name, profile in profiles.items():
            errors, wrong = errors_and_wrong(profile.rows, profile.rates)
            cells = [
                f"{percent(errors[chosen].mean())} against {percent(wrong[chosen].mean())}" if chosen.any() else "–"
                for chosen in (np.ones_like(wrong), *(profile.labels == code for code in range(len(TIERS))))
            ]
            yield [name, *cells]

    return table(["mixture", "all labels", *(f"label {tier}" for tier in TIERS)], rows())


def reliability_table(profiles: Mapping[str, Simulated]) -> list[str]:
    edges = (0.0, 0.05, 0.2, 0.4, 0.6, 1.0)
    names = [f"{low:g}–{high:g}" for low, high in pairwise(edges)]

    def rows() -> Iterator[list[str]]:
        for name, profile in profiles.items():
            errors, wrong = errors_and_wrong(profile.rows, profile.rates)
            size = np.clip(np.searchsorted(edges, errors, side="right") - 1, 0, len(names) - 1)
            cells = [
                f"{percent(errors[size == i].mean())} against {percent(wrong[size == i].mean())} ({(size == i).sum()})"
                if (size == i).any()
                else "–"
                for i in range(len(names))
            ]
            yield [name, *cells]

    return table(["mixture", *names], rows())


def few_problems_table(profiles: Mapping[str, Simulated]) -> list[str]:
    def rows() -> Iterator[list[str]]:
        for name, profile in profiles.items():
            errors, wrong = errors_and_wrong(profile.rows[:FEW_PROBLEMS], profile.rates[:FEW_PROBLEMS])
            yield [name, percent(errors.mean()), share_with_error(wrong)]

    return table(["mixture", "mean label_error %", "wrong labels %"], rows())


COST_COLUMNS = ("waves × 2", "waves × 4", "one at a time")


def _boundaries() -> list[Sequence[int]]:
    waves = [wave_boundaries(RULES.first_rollouts, max_rollouts=RULES.max_rollouts, wave_growth=g) for g in (2, 4)]
    return [*waves, range(RULES.first_rollouts, RULES.max_rollouts + 1)]


def cost_table(profiles: Mapping[str, Simulated]) -> list[str]:
    def rows() -> Iterator[list[str]]:
        for name, profile in profiles.items():
            yield [name, *(cost(profile.stopped.num_drawn(ends).mean()) for ends in _boundaries())]

    return table(["mixture", *COST_COLUMNS], rows())


def worst_cost_table() -> list[str]:
    def rows() -> Iterator[list[str]]:
        for rate in (0.02, 0.03, 0.05, 0.1, 0.3):
            costs = [
                0.8 * expected_rollouts(rate, boundaries=ends) + 0.2 * RULES.max_rollouts for ends in _boundaries()
            ]
            yield [f"{rate:g}", *(cost(value) for value in costs)]

    return table(["p of the 80 %", *COST_COLUMNS], rows())


def bias_table(profiles: Mapping[str, Simulated]) -> list[str]:
    def rows() -> Iterator[list[str]]:
        for name, profile in profiles.items():
            num_rollouts, num_correct = profile.stopped.evidence(RULES)
            means = (profile.rates, np.array([row.estimate for row in profile.rows]), num_correct / num_rollouts)
            unseen = profile.stopped.num_first_correct == 0
            yield [name, *(f"{values.mean():.4f}" for values in means), *(f"{v[unseen].mean():.4f}" for v in means)]

    columns = ("true", "estimate", "c/n")
    return table(["mixture", *columns, *(f"{column}, 0 of the first 8" for column in columns)], rows())


def exact_bias_table() -> list[str]:
    def rows() -> Iterator[list[str]]:
        for rate in SHOWN_RATES:
            share = mean_stopped_share(rate, rules=RULES)
            yield [f"{rate:g}", f"{rate:g}", f"{share:.4f}", f"{share / rate:.2f}"]

    return table(["p", "E[estimate]", "E[c/n]", "times too high"], rows())


def percent(share: float, *, digits: int = 1) -> str:
    return f"{100.0 * share:.{digits}f}"


def share_with_error(values: NDArray[np.bool_]) -> str:
    if values.size == 0:
        return "–"
    share = values.mean()
    return f"{percent(share, digits=2)} ± {percent(math.sqrt(share * (1.0 - share) / values.size), digits=2)}"


def cost(rollouts: float) -> str:
    return f"{rollouts:.1f} ({RULES.max_rollouts / rollouts:.1f}×)"


if __name__ == "__main__":
    raise SystemExit(main())
