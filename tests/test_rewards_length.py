"""The soft overlong penalty."""

from __future__ import annotations

import pytest

from rewards import soft_overlong_penalty


@pytest.mark.parametrize(
    ("num_tokens", "penalty"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (95, -0.75), (100, -1.0), (101, -1.0), (1000, -1.0)],
)
def test_the_penalty_falls_linearly_over_the_buffer(num_tokens, penalty):
    assert soft_overlong_penalty(num_tokens, limit_tokens=100, buffer_tokens=20) == pytest.approx(penalty)


@pytest.mark.parametrize(("num_tokens", "limit", "buffer"), [(1, 100, 0), (1, 100, 101), (1, 0, 0), (-1, 100, 10)])
def test_impossible_lengths_are_refused(num_tokens, limit, buffer):
    with pytest.raises(ValueError, match="tokens"):
        soft_overlong_penalty(num_tokens, limit_tokens=limit, buffer_tokens=buffer)
