"""What counts of right rollouts say about a problem, and what a set of problems says about a policy.

Owns estimators and intervals; knows no curriculum and no file. Every function is pure: random ones take a seed."""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from curricula.distributions import beta_quantile

_ENTRIES_PER_BLOCK = 2_000_000


def pass_at_k(num_rollouts: int, num_correct: int, k: int) -> float:
    """Chance that k of the rollouts, drawn without replacement, hold a right one. Exact to 1e-12.

    Source: Chen et al. (2021), eq. 1, product form: 1 - prod_{i=n-c+1}^{n} (1 - k/i).
    Raises ValueError unless 0 <= num_correct <= num_rollouts and 1 <= k <= num_rollouts."""
    _check_draw("pass@k", num_rollouts, num_correct, k)
    if num_rollouts - num_correct < k:
        return 1.0
    # C(n-c, k) / C(n, k) is symmetric in c and k: the shorter product is the faster and the more exact one.
    fewer, more = sorted((num_correct, k))
    return 1.0 - math.prod(1.0 - more / i for i in range(num_rollouts - fewer + 1, num_rollouts + 1))


def pass_hat_k(num_rollouts: int, num_correct: int, k: int) -> float:
    """pass^k: chance that k of the rollouts, drawn without replacement, are all right.

    Source: Yao et al. (2024, tau-bench), C(c, k) / C(n, k). Raises ValueError as `pass_at_k`."""
    _check_draw("pass^k", num_rollouts, num_correct, k)
    if num_correct < k:
        return 0.0
    return math.prod((num_correct - i) / (num_rollouts - i) for i in range(k))


def avg_at_k(num_rollouts: int, num_correct: int, k: int) -> float:
    """Expected share of right ones among k of the rollouts: the same for every k, named for how it is reported.

    Raises ValueError as `pass_at_k`: avg@32 is not to be claimed from 8 rollouts."""
    _check_draw("avg@k", num_rollouts, num_correct, k)
    return num_correct / num_rollouts


def clopper_pearson(num_correct: int, num_rollouts: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a pass rate from a number of rollouts that was fixed beforehand.

    It covers the truth with at least `confidence`. Source: Clopper and Pearson (1934).
    Raises ValueError unless 0 <= num_correct <= num_rollouts, num_rollouts >= 1 and 0 < confidence < 1."""
    _check_interval(num_correct, num_rollouts, confidence)
    return _clopper_pearson(num_correct, num_rollouts, (1.0 - confidence) / 2.0)


def wilson(num_correct: int, num_rollouts: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a pass rate, number of rollouts fixed beforehand: shorter than Clopper-Pearson, right on
    average over pass rates only. Source: Wilson (1927). Raises ValueError as `clopper_pearson`."""
    _check_interval(num_correct, num_rollouts, confidence)
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    rate = num_correct / num_rollouts
    denominator = 1.0 + z * z / num_rollouts
    centre = (rate + z * z / (2.0 * num_rollouts)) / denominator
    half = z * math.sqrt(rate * (1.0 - rate) / num_rollouts + (z / (2.0 * num_rollouts)) ** 2) / denominator
    low = 0.0 if num_correct == 0 else max(0.0, centre - half)
    high = 1.0 if num_correct == num_rollouts else min(1.0, centre + half)
    return low, high


def first_success_interval(num_rollouts: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a pass rate when sampling stopped at the first success, at rollout `num_rollouts`.

    Inverse binomial (geometric) sampling: P(N <= n) = 1 - (1-p)^n and P(N >= n) = (1-p)^(n-1) are set to half of
    1 - confidence. Raises ValueError unless num_rollouts >= 1 and 0 < confidence < 1."""
    _check_interval(1, num_rollouts, confidence)
    tail = (1.0 - confidence) / 2.0
    low = -math.expm1(math.log1p(-tail) / num_rollouts)
    high = 1.0 if num_rollouts == 1 else -math.expm1(math.log(tail) / (num_rollouts - 1))
    return low, high


def no_success_interval(num_rollouts: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """One-sided interval of a pass rate after `num_rollouts` rollouts without a success: (0, 1 - (1-confidence)^(1/n)).

    0 of 8 gives 0.3123, 0 of 512 gives 0.005834. Raises ValueError unless num_rollouts >= 1, 0 < confidence < 1."""
    _check_interval(0, num_rollouts, confidence)
    return 0.0, -math.expm1(math.log1p(-confidence) / num_rollouts)


def clustered_bootstrap(
    per_problem_values: Sequence[float], *, confidence: float = 0.95, num_resamples: int = 2000, seed: int
) -> tuple[float, float, float]:
    """Mean over problems with a percentile interval (mean, low, high); whole problems are resampled.

    One value a problem (its pass@k, its avg@k): rollouts of one problem are not independent evidence about a set of
    problems. One problem alone has no spread to see, and its interval is its value.
    Source: Efron and Tibshirani (1993), ch. 13. Raises ValueError on no value, a value that is not finite,
    num_resamples < 1 or a confidence outside (0, 1)."""
    values = np.asarray(per_problem_values, dtype=np.float64)  # [P]
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"the bootstrap needs one value a problem and at least one problem; got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("the bootstrap needs finite values; leave problems without a value out and count them")
    if num_resamples < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"the bootstrap needs num_resamples >= 1 and 0 < confidence < 1; got {num_resamples}, {confidence}"
        )
    generator = np.random.Generator(np.random.PCG64(seed))
    num_problems = values.size
    means = np.empty(num_resamples)
    rows_per_block = max(1, _ENTRIES_PER_BLOCK // num_problems)
    for start in range(0, num_resamples, rows_per_block):
        rows = min(rows_per_block, num_resamples - start)
        chosen = generator.integers(num_problems, size=(rows, num_problems))
        means[start : start + rows] = values[chosen].mean(axis=1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(values.mean()), float(low), float(high)


def paired_difference(
    a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95, num_resamples: int = 2000, seed: int
) -> tuple[float, float, float]:
    """Mean of a - b over problems with its interval (mean, low, high); a[i] and b[i] belong to the same problem.

    Raises ValueError when the lengths differ, and as `clustered_bootstrap`."""
    if len(a) != len(b):
        raise ValueError(f"a paired difference needs the same problems on both sides; got {len(a)} and {len(b)} values")
    differences = [float(left) - float(right) for left, right in zip(a, b, strict=True)]
    return clustered_bootstrap(differences, confidence=confidence, num_resamples=num_resamples, seed=seed)


@lru_cache(maxsize=65_536)
def _clopper_pearson(num_correct: int, num_rollouts: int, tail: float) -> tuple[float, float]:
    num_wrong = num_rollouts - num_correct
    low = 0.0 if num_correct == 0 else beta_quantile(tail, a=num_correct, b=num_wrong + 1.0)
    high = 1.0 if num_wrong == 0 else 1.0 - beta_quantile(tail, a=num_wrong, b=num_correct + 1.0)
    return low, high


def _check_draw(name: str, num_rollouts: int, num_correct: int, k: int) -> None:
    if not 0 <= num_correct <= num_rollouts:
        raise ValueError(
            f"{name} needs 0 <= num_correct <= num_rollouts; got num_correct={num_correct}, num_rollouts={num_rollouts}"
        )
    if not 1 <= k <= num_rollouts:
        raise ValueError(f"{name} needs 1 <= k <= num_rollouts; got k={k}, num_rollouts={num_rollouts}")


def _check_interval(num_correct: int, num_rollouts: int, confidence: float) -> None:
    if num_rollouts < 1 or not 0 <= num_correct <= num_rollouts:
        raise ValueError(
            "an interval needs num_rollouts >= 1 and 0 <= num_correct <= num_rollouts; "
            f"got num_correct={num_correct}, num_rollouts={num_rollouts}"
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence = {confidence}: must lie strictly between 0 and 1 (0.95 is usual)")
