"""Tails and quantiles of the beta and Student distributions, in plain Python: what exact intervals are made of."""

import math

_TINY = 1e-300


def incomplete_beta(x: float, *, a: float, b: float) -> float:
    """Regularised incomplete beta I_x(a, b): the chance that a Beta(a, b) variable is at most x. About 1e-10 exact.

    Source: Lentz's evaluation of the continued fraction, Press et al., Numerical Recipes (3rd ed.), 6.4.
    Raises ValueError unless 0 <= x <= 1, a > 0 and b > 0."""
    if not (0.0 <= x <= 1.0 and a > 0.0 and b > 0.0):
        raise ValueError(f"incomplete_beta needs 0 <= x <= 1, a > 0 and b > 0; got x={x}, a={a}, b={b}")
    if x in (0.0, 1.0):
        return x
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    # The fraction converges fast on this side of the mean only; the other side follows by symmetry.
    if x < (a + 1.0) / (a + b + 2.0):
        return math.exp(log_front) * _continued_fraction(x, a=a, b=b) / a
    return 1.0 - math.exp(log_front) * _continued_fraction(1.0 - x, a=b, b=a) / b


def beta_quantile(probability: float, *, a: float, b: float) -> float:
    """The x with I_x(a, b) = probability, by bisection. Raises ValueError unless 0 <= probability <= 1."""
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"beta_quantile needs 0 <= probability <= 1; got {probability}")
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if incomplete_beta(middle, a=a, b=b) < probability:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def student_quantile(probability: float, *, degrees: int) -> float:
    """The t below which a Student variable with `degrees` degrees of freedom falls with this probability.

    Raises ValueError unless 0 < probability < 1 and degrees >= 1."""
    if not (0.0 < probability < 1.0 and degrees >= 1):
        raise ValueError(f"student_quantile needs 0 < probability < 1 and degrees >= 1; got {probability}, {degrees}")
    if probability < 0.5:
        return -student_quantile(1.0 - probability, degrees=degrees)
    x = beta_quantile(2.0 * (1.0 - probability), a=0.5 * degrees, b=0.5)
    return math.sqrt(degrees * (1.0 - x) / x)


def student_p_value(t: float, *, degrees: int) -> float:
    """Chance that a Student variable with `degrees` degrees of freedom is at least as far from 0 as t: two-sided.

    Half of it is the one-sided p-value where t has the sign that was asked for. An infinite t gives 0.
    Raises ValueError where t is not a number or degrees < 1."""
    if math.isnan(t) or degrees < 1:
        raise ValueError(f"student_p_value needs a number and degrees >= 1; got {t}, {degrees}")
    return incomplete_beta(degrees / (degrees + t * t), a=0.5 * degrees, b=0.5)


def _continued_fraction(x: float, *, a: float, b: float) -> float:
    c = 1.0
    d = 1.0 / _nonzero(1.0 - (a + b) * x / (a + 1.0))
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for step in (even, odd):
            d = 1.0 / _nonzero(1.0 + step * d)
            c = _nonzero(1.0 + step / c)
            fraction *= c * d
        if abs(c * d - 1.0) < 1e-15:
            return fraction
    raise AssertionError(f"the continued fraction of I_x(a, b) did not converge at x={x}, a={a}, b={b}")


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
