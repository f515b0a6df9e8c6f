"""What ends a run that hangs: a thread that knows when something was last done, and says what was being done."""

from pathlib import Path
from types import TracebackType

from grpo.errors import RunError


class Watchdog:
    """A placeholder of the interface; the thread follows."""

    def __init__(self, *, rank: int, size: int, seconds: float) -> None:
        self._rank, self._size, self._seconds = rank, size, seconds

    def progress(self, phase: str, *, step: int | None = None) -> None:
        """Something got done in `phase`; `step` where it is another one than before."""

    def log_to(self, path: Path) -> None:
        """Where this rank's last words go, beside standard error."""

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the other ranks what this one failed of; raises what another one failed of first."""
        assert error is None or isinstance(error, BaseException | RunError)
