"""What counts of right rollouts say about a problem, and what a set of problems says about a policy.

Owns estimators and intervals; knows no curriculum and no file. Every function is pure: random ones take a seed."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from curricula.distributions import beta_quantile
from curricula.intervals import mean_interval

_ENTRIES_PER_BLOCK = 2_000_000


def pass_at_k(num_rollouts: int, num_correct: int, k: int) -> float:
    """Chance that k of the rollouts, drawn without replacement, hold a right one. Exact to 1e-12.

    Source: Chen et al. (2021), eq. 1, product form: 1 - prod_{i=n-c+1}^{n} (1 - k/i).
    Raises ValueError unless all three are whole numbers (a NumPy integer is one, 2.0 and True are not) with
    0 <= num_correct <= num_rollouts and 1 <= k <= num_rollouts."""
    num_rollouts, num_correct, k = _checked_draw("pass@k", num_rollouts, num_correct, k)
    if num_rollouts - num_correct < k:
        return 1.0
    # C(n-c, k) / C(n, k) is symmetric in c and k: the shorter product is the faster and the more exact one.
    fewer, more = sorted((num_correct, k))
    return 1.0 - math.prod(1.0 - more / i for i in range(num_rollouts - fewer + 1, num_rollouts + 1))


def pass_hat_k(num_rollouts: int, num_correct: int, k: int) -> float:
    """pass^k: chance that k of the rollouts, drawn without replacement, are all right. Exact to 1e-12.

    Source: Yao et al. (2024, tau-bench), C(c, k) / C(n, k). Raises ValueError as `pass_at_k`."""
    num_rollouts, num_correct, k = _checked_draw("pass^k", num_rollouts, num_correct, k)
    if num_correct < k:
        return 0.0
    # C(c, k) / C(n, k) = C(n-k, n-c) / C(n, n-c): the shorter product, as above.
    fewer, more = sorted((num_rollouts - num_correct, k))
    return math.prod((num_rollouts - more - i) / (num_rollouts - i) for i in range(fewer))


def avg_at_k(num_rollouts: int, num_correct: int, k: int) -> float:
    """Expected share of right ones among k of the rollouts: the same for every k, named for how it is reported.

    Raises ValueError as `pass_at_k`: avg@32 is not to be claimed from 8 rollouts."""
    num_rollouts, num_correct, k = _checked_draw("avg@k", num_rollouts, num_correct, k)
    return num_correct / num_rollouts


def best_of_k(values: Sequence[float], k: int) -> float:
    """Expected largest of k of the values, drawn without replacement; of 0/1 values it is pass@k. To about 1e-12.

    The i-th smallest of n is the largest drawn with chance C(i-1, k-1) / C(n, k). A value is what picks the rollout and
    what it is worth: for a rollout picked by one score and paid by another this is not the estimate.
    Raises ValueError unless the values are finite and 1 <= k <= their number."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))  # [n], rising
    if ordered.ndim != 1 or not np.isfinite(ordered).all():
        raise ValueError("best-of-k needs a list of finite values; leave rollouts without a value out and count them")
    num_rollouts, _, k = _checked_draw("best-of-k", ordered.size, 0, k)
    # From the largest down each chance is the one above it times (i - k) / (i - 1): no binomial that could overflow.
    ranks = np.arange(num_rollouts, k, -1)
    chances = np.concatenate([[1.0], np.cumprod((ranks - k) / (ranks - 1.0))]) * (k / num_rollouts)  # [n-k+1]
    return math.fsum(chances * ordered[::-1][: chances.size])


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """Chance that the most frequent answer among k of the rollouts, drawn without replacement, is a right one.

    Ties are broken evenly among the tied. A rollout without an answer (None) takes up a draw and never wins, whatever
    its `correct`; k draws without any answer are not right. Two different texts may both be right and stay two.
    Counted, not simulated: a sum over the winner's count of a product over answers, to about 1e-12. Its cost grows with
    k³ for few answers: a few milliseconds for 32 of 64 rollouts, a tenth of a second for 256 of 512.
    Raises ValueError unless there is one `correct` a rollout, the same for equal texts, and 1 <= k <= their number."""
    if len(answers) != len(correct):
        raise ValueError(
            f"majority@k needs one `correct` a rollout; got {len(answers)} answers, {len(correct)} of them"
        )
    num_rollouts, _, k = _checked_draw("majority@k", len(answers), 0, k)
    is_right: dict[str, bool] = {}
    for text, right in zip(answers, correct, strict=True):
        if text is not None and is_right.setdefault(text, bool(right)) != bool(right):
            raise ValueError(f"majority@k: the answer {text!r} is right in one rollout and wrong in another")
    counts = Counter(answers)
    # Draws without replacement are independent binomial counts of any rate, given their sum: so nothing overflows.
    rate = (k + 0.5) / (num_rollouts + 1.0)
    without_answer = _binomial_chances(counts.pop(None, 0), rate)[: k + 1]
    drawn = [(_binomial_chances(counts[text], rate), right) for text, right in is_right.items()]
    won = math.fsum(
        _right_wins_with(most, drawn, without_answer=without_answer, k=k)
        for most in range(1, min(k, max(counts.values(), default=0)) + 1)
    )
    return min(1.0, won / float(_binomial_chances(num_rollouts, rate)[k]))


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


def paired_t_interval(differences: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of paired differences with Student's two-sided interval (mean, low, high).

    For few pairs (seeds), where a bootstrap is too narrow: exact for normal differences, near it for others without
    heavy tails or strong skew. Equal differences show no spread, and the interval is their value.
    Source: Student (1908). Raises ValueError on fewer than two differences, one that is not finite, or a confidence
    outside (0, 1)."""
    if len(differences) < 2:
        raise ValueError(f"a t interval needs at least two differences; got {list(differences)}")
    mean, low, high = mean_interval(differences, confidence=confidence)
    return mean, low, high


def equivalent(differences: Sequence[float], *, margin: float, confidence: float = 0.95) -> bool:
    """Is the mean paired difference surely within (-margin, margin)? Two one-sided t tests, each at `confidence`.

    Where the truth lies outside, the answer is yes in at most 1 - confidence of cases (differences as for
    `paired_t_interval`). "No" says that it is not shown, not that there is a difference. The same as: the two-sided
    interval of confidence 2·confidence - 1 (0.95: 0.9) lies inside. Source: Schuirmann (1987).
    Raises ValueError unless margin > 0 and 0.5 < confidence < 1, and as `paired_t_interval`."""
    if not margin > 0.0 or not 0.5 < confidence < 1.0:
        raise ValueError(f"equivalence needs margin > 0 and 0.5 < confidence < 1; got {margin}, {confidence}")
    _, low, high = paired_t_interval(differences, confidence=2.0 * confidence - 1.0)
    return -margin < low and high < margin


def ratio_interval(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float, float]:
    """How many times b is a? Ratio of geometric means with its two-sided interval (ratio, low, high), paired.

    Student's interval of log a - log b, put back: right for ratios that vary by factors, as costs do. `high` is also a
    one-sided bound of confidence (1 + confidence) / 2. a[i] and b[i] belong to the same seed.
    Raises ValueError when the lengths differ or a value is not positive, and as `paired_t_interval`."""
    if len(a) != len(b) or min(*a, *b, 1.0) <= 0.0:
        raise ValueError(f"a ratio needs positive values in pairs; got {list(a)} and {list(b)}")
    logs = [math.log(above) - math.log(below) for above, below in zip(a, b, strict=True)]
    mean, low, high = paired_t_interval(logs, confidence=confidence)
    return math.exp(mean), math.exp(low), math.exp(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the given order: rejecting those <= α, one or more true null hypotheses
    are rejected with chance at most α, however the tests depend on each other.

    Source: Holm (1979). Raises ValueError on a p-value outside [0, 1]."""
    if not all(0.0 <= p_value <= 1.0 for p_value in p_values):
        raise ValueError(f"Holm's correction needs p-values in [0, 1]; got {list(p_values)}")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


@lru_cache(maxsize=65_536)
def _clopper_pearson(num_correct: int, num_rollouts: int, tail: float) -> tuple[float, float]:
    num_wrong = num_rollouts - num_correct
    low = 0.0 if num_correct == 0 else beta_quantile(tail, a=num_correct, b=num_wrong + 1.0)
    high = 1.0 if num_wrong == 0 else 1.0 - beta_quantile(tail, a=num_wrong, b=num_correct + 1.0)
    return low, high


def _binomial_chances(num_rollouts: int, rate: float) -> NDArray[np.float64]:
    """Binomial chances of 0 .. num_rollouts at a rate within (0, 1), [num_rollouts + 1]."""
    odds = rate / (1.0 - rate)
    mode = int((num_rollouts + 1) * rate)
    above, below = np.arange(mode, num_rollouts), np.arange(mode, 0, -1)
    # Outwards from the largest: what underflows is nothing, and errors are relative.
    chances = np.concatenate(
        [
            np.cumprod(below / (num_rollouts - below + 1.0) / odds)[::-1],
            [1.0],
            np.cumprod((num_rollouts - above) / (above + 1.0) * odds),
        ]
    )
    return np.asarray(chances / chances.sum())


def _right_wins_with(
    most: int,
    drawn: Sequence[tuple[NDArray[np.float64], bool]],
    *,
    without_answer: NDArray[np.float64],
    k: int,
) -> float:
    """Chance that k rollouts are drawn, none of the answers more than `most` times, and a right one of `most` wins.

    `drawn` holds, for each answer, the chances of drawing it 0, 1, ... times, and whether it is right."""
    most_tied = min(sum(chances.size > most for chances, _ in drawn), k // most)
    # [chance, chance × number of right ones among the tied] by number of tied answers and of rollouts drawn
    state = np.zeros((2, most_tied + 1, k + 1))
    state[0, 0, : without_answer.size] = without_answer
    for chances, right in drawn:
        following = np.zeros_like(state)
        for count, chance in enumerate(chances[:most]):
            following[..., count:] += chance * state[..., : k + 1 - count]
        if chances.size > most:
            tied = chances[most] * state[:, :-1, : k + 1 - most]
            following[:, 1:, most:] += tied
            if right:
                following[1, 1:, most:] += tied[0]
        state = following
    return math.fsum(state[1, 1:, k] / np.arange(1, most_tied + 1))


def _checked_draw(name: str, num_rollouts: int, num_correct: int, k: int) -> tuple[int, int, int]:
    """The three as plain integers, or ValueError."""
    for given in (num_rollouts, num_correct, k):
        # A float or a bool here is a rate, or one outcome, that was taken for a count.
        if not isinstance(given, Integral) or isinstance(given, bool):
            raise ValueError(
                f"{name} needs whole numbers; got num_rollouts={num_rollouts!r}, num_correct={num_correct!r}, k={k!r}"
            )
    if not 0 <= num_correct <= num_rollouts:
        raise ValueError(
            f"{name} needs 0 <= num_correct <= num_rollouts; got num_correct={num_correct}, num_rollouts={num_rollouts}"
        )
    if not 1 <= k <= num_rollouts:
        raise ValueError(f"{name} needs 1 <= k <= num_rollouts; got k={k}, num_rollouts={num_rollouts}")
    return int(num_rollouts), int(num_correct), int(k)


def _check_interval(num_correct: int, num_rollouts: int, confidence: float) -> None:
    if num_rollouts < 1 or not 0 <= num_correct <= num_rollouts:
        raise ValueError(
            "an interval needs num_rollouts >= 1 and 0 <= num_correct <= num_rollouts; "
            f"got num_correct={num_correct}, num_rollouts={num_rollouts}"
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence = {confidence}: must lie strictly between 0 and 1 (0.95 is usual)")
