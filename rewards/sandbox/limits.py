"""What one sandboxed program may use. Knows nothing of how the limits are held."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

_MINIMA = {
    "cpu_seconds": 1,
    "memory_mb": 64,
    "processes": 1,
    "open_files": 16,
    "file_mb": 1,
    "scratch_mb": 1,
    "scratch_files": 16,
    "output_kb": 1,
}
"""What the program's own interpreter needs at the least, in each limit's unit."""


@dataclass(frozen=True)
class Limits:
    """The limits of one program; every one of them ends or refuses, none merely warns.

    `wall_seconds` counts from the start and kills everything; `cpu_seconds` and `memory_mb` (address space) hold for
    each process, `processes` counts processes and threads together; `open_files` holds for each process; `file_mb` is
    the largest file; `scratch_mb` and `scratch_files` bound the writable folder; `output_kb` is how much of stdout and
    stderr together is kept, more ends the program. Raises ValueError for a limit that is no number or too small."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_mb: int = 512
    processes: int = 16
    open_files: int = 64
    file_mb: int = 16
    scratch_mb: int = 32
    scratch_files: int = 1024
    output_kb: int = 256

    def __post_init__(self) -> None:
        seconds = self.wall_seconds
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
            raise ValueError(f"wall_seconds = {seconds!r}: must be a finite number above 0, such as 10.0")
        for name, minimum in _MINIMA.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < 2**31:
                raise ValueError(f"{name} = {value!r}: must be a whole number of at least {minimum}, below 2**31")

    def as_numbers(self) -> dict[str, float]:
        """Name to number, for the supervisor's request."""
        return asdict(self)
