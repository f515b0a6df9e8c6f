"""Where a run's numbers can go beside its folder: what such a place offers, and how one that fails is left behind.

The folder holds every number. A sink is a guest: it is opened by the first metrics, so that phases without any open
none, and whatever raises in it is said in one line and ends it, and not the run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

GO_ON = "the run goes on without it, and metrics.jsonl holds every number"
Row = Mapping[str, Any]


class Sink(Protocol):
    """A place for numbers."""

    def log(self, step: int, metrics: Mapping[str, float], rollouts: Sequence[Row]) -> None:
        """The metrics of a step, and those of its rollouts that are to be shown; often none."""

    def close(self) -> None:
        """Everything is logged."""


class Guest:
    """A sink that may fail."""

    def __init__(self, name: str, begin: Callable[[], Sink | None], *, say: Callable[[str], None]) -> None:
        """`begin` opens the sink called `name`; None where it could not, and has said so itself."""
        self._name, self._begin, self._say = name, begin, say
        self._sink: Sink | None = None
        self._is_over = False

    def log(self, step: int, metrics: Mapping[str, float], rollouts: Sequence[Row]) -> None:
        """As the sink's own, as long as there is one."""
        if self._is_over:
            return
        if self._sink is None:
            self._sink = self._begun()
            self._is_over = self._sink is None
        if self._sink is not None:
            try:
                self._sink.log(step, metrics, rollouts)
            except Exception as error:
                self._give_up("does not take metrics any more", error)

    def close(self) -> None:
        """As the sink's own, where one was opened."""
        if self._sink is None:
            return
        try:
            self._sink.close()
        except Exception as error:
            self._give_up("did not end its run", error)

    def _begun(self) -> Sink | None:
        try:
            return self._begin()
        except Exception as error:  # each package has a family of its own for networks, disks and settings
            self._give_up("cannot begin a run", error)
            return None

    def _give_up(self, what: str, error: Exception) -> None:
        self._sink, self._is_over = None, True
        self._say(f"{self._name} {what} ({in_one_line(error)}); {GO_ON}")


def in_one_line(error: Exception) -> str:
    """What was raised, short."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
