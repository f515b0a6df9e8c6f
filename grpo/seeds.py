"""Every random choice of a run as a pure function of its seed and of where in the run it is made.

Nothing here draws: it makes 64-bit keys from names. The same names give the same key on every machine, in every
process and after a resume, and two different tuples of names practically never share one (blake2b)."""

import hashlib


def key(*parts: int | str) -> int:
    """A 64-bit key for a place in the run, e.g. ``key(seed, "train", step, problem_id, attempt)``."""
    # The type is part of the text, so that key(1) and key("1") differ; the separator cannot occur in an int.
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def torch_seed(*parts: int | str) -> int:
    """A key that `torch.manual_seed` and numpy's generators take: 0 <= seed < 2**63."""
    return key(*parts) >> 1
