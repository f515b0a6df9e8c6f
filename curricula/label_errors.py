"""How sure are tier labels? The pass rates that a tier stands for, how often a label misses its tier, and the chance
that each label of a profile is wrong.

A tier stands for an interval of pass rates. Its bounds are the pass rates at which a profile by the same rules lands
on either side equally often. A label is wrong when the pass rate lies outside its tier's interval. Knows labels and
counts: no file, no model."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from curricula.distributions import beta_quantile
from curricula.store import TierRow
from curricula.types import TIERS, Tier

HARDEST_FIRST = (Tier.unsolved, Tier.extreme, Tier.moderate, Tier.trivial)

# Pass rates at even steps of the log-odds, with the ends: fine where profiles can tell pass rates apart. Below 1e-5
# a problem is as good as hopeless to thousands of rollouts.
_LOG_ODDS = np.linspace(np.log(1e-5), np.log(1e3), 199)
GRID: NDArray[np.float64] = np.concatenate([[0.0], 1.0 / (1.0 + np.exp(-_LOG_ODDS)), [1.0]])  # [201]
NUM_FIT_STEPS = 200
SMOOTHING = 0.2
"""Share of a grid point's mass that a step of the fit hands to its two neighbours."""
PRIOR_PROBLEMS = 1.0
"""What the prior's own prior weighs, in problems: it speaks where a profile holds a handful of them."""


@dataclass(frozen=True, slots=True)
class LabelRules:
    """The rules by which `curricula.store.label` names a tier; the defaults are its own.

    Raises ValueError unless 1 <= first_rollouts <= min(relabel_rollouts, max_rollouts) and 0 < trivial_rate <= 1."""

    first_rollouts: int = 8
    relabel_rollouts: int = 32
    max_rollouts: int = 512
    trivial_rate: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.first_rollouts <= min(self.relabel_rollouts, self.max_rollouts):
            raise ValueError(
                "labels need 1 <= first_rollouts <= relabel_rollouts and max_rollouts; "
                f"got {self.first_rollouts}, {self.relabel_rollouts} and {self.max_rollouts}"
            )
        if not 0.0 < self.trivial_rate <= 1.0:
            raise ValueError(f"trivial_rate = {self.trivial_rate}: must lie in (0, 1]")

    @property
    def trivial_from(self) -> int:
        """Right ones among the first rollouts that make a problem trivial."""
        return next(c for c in range(1, self.first_rollouts + 1) if c >= self.trivial_rate * self.first_rollouts)

    @property
    def moderate_rollouts(self) -> int:
        """Rollouts up to which a first success makes a problem moderate."""
        return min(self.relabel_rollouts, self.max_rollouts)


def label_probabilities(pass_rates: ArrayLike, *, rules: LabelRules) -> NDArray[np.float64]:
    """P(label | pass rate) of a finished profile, exact: [N, 4], the columns in the order of `TIERS`.

    With q = 1 - p and the defaults: trivial p⁸, moderate 1 - p⁸ - q³², extreme q³² - q⁵¹², unsolved q⁵¹². So p = 0.1
    fails 8 times in 43 % of cases (q⁸) and gets past 32 in 3.4 % (q³²)."""
    rates = np.asarray(pass_rates, dtype=np.float64)  # [N]
    trivial = _at_least(rules.trivial_from, rules.first_rollouts, rates=rates)
    past_moderate = (1.0 - rates) ** rules.moderate_rollouts
    unsolved = (1.0 - rates) ** rules.max_rollouts
    moderate = np.maximum(1.0 - trivial - past_moderate, 0.0)
    return np.stack([trivial, moderate, past_moderate - unsolved, unsolved], axis=-1)


def tier_intervals(rules: LabelRules) -> dict[Tier, tuple[float, float]]:
    """The pass rates that each tier stands for, [low, high); trivial holds 1 too.

    Each bound is where that tier or an easier one is the label in half of all profiles. With the defaults: unsolved
    below 1 - 2^(-1/512) = 0.00135, extreme below 1 - 2^(-1/32) = 0.0214, moderate below 2^(-1/8) = 0.917. Almost
    everywhere this is also the likeliest label; unlike that it leaves a tier its interval whenever the rules can give
    it (were max_rollouts 64, extreme would never be the likeliest label). With max_rollouts <= relabel_rollouts no
    label is extreme, and its interval is empty."""
    below_extreme = 1.0 - 0.5 ** (1.0 / rules.max_rollouts)
    below_moderate = 1.0 - 0.5 ** (1.0 / rules.moderate_rollouts)
    needed = rules.trivial_from
    below_trivial = beta_quantile(0.5, a=needed, b=rules.first_rollouts - needed + 1.0)
    bounds = (0.0, below_extreme, below_moderate, max(below_moderate, below_trivial), 1.0)
    return dict(zip(HARDEST_FIRST, pairwise(bounds), strict=True))


def right_tiers(pass_rates: ArrayLike, *, rules: LabelRules) -> NDArray[np.int64]:
    """The tier in whose interval each pass rate lies, as an index into `TIERS`. [N]"""
    bounds = [low for low, _ in tier_intervals(rules).values()][1:]
    place = np.searchsorted(bounds, np.asarray(pass_rates, dtype=np.float64), side="right")
    return np.array([TIERS.index(tier) for tier in HARDEST_FIRST])[place]


def expected_confusion(
    pass_rates: Sequence[float], *, rules: LabelRules, weights: Sequence[float] | None = None
) -> dict[Tier, dict[Tier, float]]:
    """P(label | right tier) over problems of these pass rates, by right tier, then by label; each row sums to 1.

    `weights` says how many problems of each pass rate there are (default: one). A tier without any is left out.
    Raises ValueError when the lengths differ, or a weight is negative."""
    mass = np.ones(len(pass_rates)) if weights is None else np.asarray(weights, dtype=np.float64)
    if mass.shape != (len(pass_rates),) or (mass < 0.0).any():
        raise ValueError(f"a confusion needs a weight >= 0 for each of {len(pass_rates)} pass rates; got {weights}")
    right = right_tiers(pass_rates, rules=rules)
    labels = label_probabilities(pass_rates, rules=rules)
    table: dict[Tier, dict[Tier, float]] = {}
    for code, tier in enumerate(TIERS):
        of_tier = np.where(right == code, mass, 0.0)
        if of_tier.sum() > 0.0:
            row = of_tier @ labels / of_tier.sum()
            table[tier] = dict(zip(TIERS, row.tolist(), strict=True))
    return table


def label_errors(
    rows: Sequence[TierRow], *, first_rollouts: int, relabel_rollouts: int, max_rollouts: int, trivial_rate: float
) -> list[float]:
    """How likely each row's label is wrong: its pass rate outside its tier's interval, in the order of `rows`.

    Empirical Bayes: the prior is the distribution of pass rates that is fitted to these very rows (`fit_pass_rates`),
    and each row's chance is its posterior mass outside the interval. Over all problems of a profile the mean is the
    expected share of wrong labels. What it rests on: a smooth distribution, and problems that are like each other.
    Where many problems share one pass rate next to a bound, rollouts cannot tell on which side they are, and the mean
    errs (docs/profiling_statistics.md measures it); it is no guarantee for a single label either. An unfinished row's
    chance is right as it stands: little is known, so it is high.
    Raises ValueError as `LabelRules`."""
    rules = LabelRules(first_rollouts, relabel_rollouts, max_rollouts, trivial_rate)
    if not rows:
        return []
    keys, counts = _pooled(rows)
    likelihoods = _likelihoods(keys)
    posteriors = likelihoods * _fit(likelihoods, counts=counts)
    posteriors /= posteriors.sum(axis=1, keepdims=True)  # [E, 201]
    tiers = right_tiers(GRID, rules=rules)
    outside = {tier: posteriors[:, tiers != code].sum(axis=1) for code, tier in enumerate(TIERS)}  # each [E]
    position = {key: index for index, key in enumerate(keys)}
    return [float(min(1.0, outside[row.tier][position[row.num_rollouts, row.num_correct]])) for row in rows]


def fit_pass_rates(rows: Sequence[TierRow]) -> NDArray[np.float64]:
    """The distribution of pass rates behind a profile: a weight for each point of `GRID`, [201], summing to 1.

    Maximum likelihood of a mixing distribution by EM, smoothed at every step (EMS: Silverman, Jones, Wilson and Nychka
    1990), with Jeffreys' Beta(1/2, 1/2) in the weight of one problem. Whatever the stopping rule, a row's likelihood is
    p^c (1-p)^(n-c), times what does not depend on p. Raises ValueError without a row."""
    if not rows:
        raise ValueError("a distribution of pass rates needs at least one row")
    keys, counts = _pooled(rows)
    return _fit(_likelihoods(keys), counts=counts)


def fit_evidence(evidence: Mapping[tuple[int, int], int]) -> NDArray[np.float64]:
    """As `fit_pass_rates`, from how many problems have shown so many right ones in so many rollouts, (n, c)."""
    keys = sorted(evidence)
    return _fit(_likelihoods(keys), counts=np.array([evidence[key] for key in keys], dtype=np.float64))


def _pooled(rows: Sequence[TierRow]) -> tuple[list[tuple[int, int]], NDArray[np.float64]]:
    """The distinct (num_rollouts, num_correct), [E] of them, and how many rows have each, [E]."""
    evidence = Counter((row.num_rollouts, row.num_correct) for row in rows)
    keys = sorted(evidence)
    return keys, np.array([evidence[key] for key in keys], dtype=np.float64)


def _likelihoods(keys: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """Likelihood of each (num_rollouts, num_correct) at each point of the grid, scaled to at most 1: [E, 201]."""
    num_rollouts, num_correct = np.array(keys, dtype=np.float64).T[..., None]  # each [E, 1]
    num_wrong = num_rollouts - num_correct
    shape = (len(keys), GRID.size)
    with np.errstate(divide="ignore"):
        log_right, log_wrong = np.log(GRID), np.log1p(-GRID)
    logs = np.multiply(num_correct, log_right, where=num_correct > 0.0, out=np.zeros(shape))
    logs += np.multiply(num_wrong, log_wrong, where=num_wrong > 0.0, out=np.zeros(shape))
    return np.asarray(np.exp(logs - logs.max(axis=1, keepdims=True)))


def _fit(likelihoods: NDArray[np.float64], *, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    edges = np.concatenate([[0.0], 0.5 * (GRID[1:] + GRID[:-1]), [1.0]])
    jeffreys = np.diff(2.0 / np.pi * np.arcsin(np.sqrt(edges)))  # [201]
    weights = np.full(GRID.size, 1.0 / GRID.size)
    for _ in range(NUM_FIT_STEPS):
        expected = weights * ((counts / (likelihoods @ weights)) @ likelihoods)
        weights = _smoothed((expected + PRIOR_PROBLEMS * jeffreys) / (counts.sum() + PRIOR_PROBLEMS))
    return weights


def _smoothed(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pass rates of exactly 0 and 1 stay apart: hopeless problems are a kind of their own."""
    inner = np.pad(weights[1:-1], 1, mode="edge")
    mixed = (1.0 - SMOOTHING) * inner[1:-1] + 0.5 * SMOOTHING * (inner[:-2] + inner[2:])
    return np.concatenate([weights[:1], mixed * (weights[1:-1].sum() / mixed.sum()), weights[-1:]])


def _at_least(num_correct: int, num_rollouts: int, *, rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(Binomial(num_rollouts, rate) >= num_correct). [N]"""
    counts = range(num_correct, num_rollouts + 1)
    terms = [math.comb(num_rollouts, c) * rates**c * (1.0 - rates) ** (num_rollouts - c) for c in counts]
    return np.asarray(np.sum(terms, axis=0))
