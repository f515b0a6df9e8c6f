"""Rewards that look at a completion's length in tokens. Pure arithmetic: the trainer knows the number of tokens."""

from __future__ import annotations


def soft_overlong_penalty(num_tokens: int, *, limit_tokens: int, buffer_tokens: int) -> float:
    """0 up to limit - buffer, then falling linearly to -1 at the limit, and -1 beyond it.

    Source: Yu et al. (2025), DAPO, arXiv 2503.14476, eq. 13. Raises ValueError unless
    0 < buffer_tokens <= limit_tokens and num_tokens >= 0."""
    if not 0 < buffer_tokens <= limit_tokens:
        raise ValueError(
            f"the overlong penalty needs 0 < buffer_tokens <= limit_tokens; got buffer_tokens={buffer_tokens}, "
            f"limit_tokens={limit_tokens}"
        )
    if num_tokens < 0:
        raise ValueError(f"num_tokens = {num_tokens}: must be at least 0")
    free_tokens = limit_tokens - buffer_tokens
    if num_tokens <= free_tokens:
        return 0.0
    return max(-1.0, (free_tokens - num_tokens) / buffer_tokens)
