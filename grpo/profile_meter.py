"""How fast a profile draws, and how long it will take: what a person wants to know before and while it runs.

The speed is measured from the first wave on and kept beside the store, so that the next profile of the same kind of
policy on the same kind of machine can say it at once."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curricula import Expected, ProfileStore
from grpo.distributed.world import World
from grpo.folder import write_json
from grpo.rollout import Sampled

SPEED_FILE = "speed.json"


@dataclass(frozen=True, slots=True)
class Speed:
    """Of all ranks together, judging included."""

    rollouts_per_second: float
    tokens_per_second: float


class Meter:
    """Counts what is drawn and the seconds that it takes (as a context manager), and says what is still to come."""

    def __init__(self, store: ProfileStore, world: World, *, say: Callable[[str], None]) -> None:
        self._store, self._world, self._say = store, world, say
        self._seconds = 0.0
        self.num_rollouts, self.num_tokens = 0, 0
        self._has_said_time = False

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds += time.perf_counter() - self._entered

    def count(self, sampled: Sampled) -> None:
        self.num_rollouts += sum(len(group.rollouts) for group in sampled.groups)
        self.num_tokens += sampled.num_tokens

    def announce(self, expected: Expected, *, num_known: int) -> None:
        """What is to be drawn, before anything is."""
        others = self._store.others()
        if not num_known and others:
            folder, fingerprint = others[-1]
            own = self._store.fingerprint
            names = sorted(k for k in own.keys() | fingerprint.keys() if own.get(k) != fingerprint.get(k))
            self._say(
                f"profile: nothing is known of this policy with these settings; of {len(others)} other profiles in "
                f"{self._store.root} the newest ({folder.name}) differs in {', '.join(names)}"
            )
        if not expected.most:
            self._say(f"profile: all {num_known:,} problems are known; nothing is to be drawn")
            return
        known = f"{num_known:,} problems are known; " if num_known else ""
        line = f"profile: {known}about {expected.typical:,.0f} rollouts are to be drawn, at most {expected.most:,}"
        speed = _earlier_speed(self._store, self._world)
        if speed is None:
            self._say(f"{line}; the first batch will tell how long that takes")
        else:
            self._say(f"{line}; at the speed of an earlier profile {_times(expected, speed)}")

    def say_time(self, expected: Expected) -> None:
        """How long the rest takes, once the first wave has told the speed."""
        if self._has_said_time or not expected.most:
            return
        self._has_said_time = True
        speed = self.speed
        self._say(
            f"profile: {speed.rollouts_per_second:,.0f} rollouts/s, {speed.tokens_per_second:,.0f} tokens/s: "
            f"{_times(expected, speed)} for about {expected.typical:,.0f} more rollouts, at most {expected.most:,}"
        )

    def keep(self) -> None:
        """Leave the speed beside the store, for who profiles there next."""
        if self._world.is_main and self.num_rollouts:
            machine = _machine(self._store, self._world)
            write_json(self._store.folder / SPEED_FILE, machine | asdict(self.speed))

    @property
    def speed(self) -> Speed:
        """Of all that was drawn so far."""
        seconds = max(self._seconds, 1e-9)
        return Speed(rollouts_per_second=self.num_rollouts / seconds, tokens_per_second=self.num_tokens / seconds)


def _times(expected: Expected, speed: Speed) -> str:
    typical, most = (number / speed.rollouts_per_second for number in (expected.typical, expected.most))
    return f"about {duration(typical)}, at most {duration(most)}"


def duration(seconds: float) -> str:
    """A time span as a person says it: 40 s, 12 min, 3 h 05 min, 2.5 days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 2880 else f"{minutes / 1440:.1f} days"


def _machine(store: ProfileStore, world: World) -> dict[str, Any]:
    """What a speed is of: the policy's family (its shapes), the limits, the device and the number of ranks."""
    kept = {name: store.fingerprint.get(name) for name in ("family", "sampling")}
    return {**kept, "device": world.device.type, "ranks": world.size}


def _earlier_speed(store: ProfileStore, world: World) -> Speed | None:
    """The newest speed in the store's root that was measured under the same conditions."""
    wanted = _machine(store, world)
    paths = sorted(store.root.glob(f"*/{SPEED_FILE}"), key=lambda path: (path.stat().st_mtime, str(path)))
    for found in map(_read, reversed(paths)):
        if all(found.get(name) == value for name, value in wanted.items()):
            return Speed(rollouts_per_second=found["rollouts_per_second"], tokens_per_second=found["tokens_per_second"])
    return None


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
