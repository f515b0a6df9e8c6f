"""Where a run's numbers go: metrics.jsonl and events.jsonl always, wandb where it is asked for, rollouts by step.

The JSONL files belong to the run's state: a checkpoint holds their lengths, and a resume cuts off what came after.
wandb is a guest: whatever fails in it is said in one line, and the run goes on without it."""

import json
import math
import netrc
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from grpo.config import RunConfig, TrackingConfig
from grpo.folder import RunFolder, named_disk_errors, write_text

SECRET = "WANDB_API_KEY"
WANDB_HOST = "api.wandb.ai"
MAX_SKIPPED_FILES = 20
TRY_OFFLINE = "trying wandb offline"
GO_ON = "the run goes on without it, and metrics.jsonl holds every number"


class Tracker:
    """Writes a run's metrics, events and rollouts. The main rank has one; others have a `SilentTracker`."""

    def __init__(self, folder: RunFolder, config: RunConfig, *, fresh: bool, say: Callable[[str], None]) -> None:
        """`fresh` begins the wandb run anew where its name is known already. `say` is told what fails in wandb."""
        self._folder = folder
        self._config: TrackingConfig = config.tracking
        self._wandb = None if config.tracking.wandb == "off" else _Wandb(folder, config, fresh=fresh, say=say)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl. A number that is not finite is written as null, which JSON has."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        _append(self._folder.metrics, {"step": step, **row})
        if self._wandb is not None:
            self._wandb.log(step, metrics)

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """One line of events.jsonl: a stage that begins, a temperature that is chosen, a step without an update."""
        _append(self._folder.events, {"step": step, "event": name, **details})

    def forget_events(self, name: str) -> None:
        """Take the events of this name out: what they tell of is done again."""
        path = self._folder.events
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A kill can tear the last line, which is then of what is done again as well.
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["event"] != name]
        if len(kept) < len(lines):
            write_text(path, "".join(kept))

    def rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """The step's rollouts as a file of their own; the oldest files beyond the limit go."""
        if self._config.rollout_files == 0:
            return
        path = self._rollout_file(step)
        with named_disk_errors(path):
            self._folder.rollouts.mkdir(exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            self._rollout_file(step - self._config.rollout_files).unlink(missing_ok=True)

    def skipped(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """The rollouts of an update that was skipped, as a file of their own; the oldest files beyond a limit go."""
        folder = self._folder.skipped
        with named_disk_errors(folder):
            folder.mkdir(exist_ok=True)
            number = len(list(folder.glob(f"step_{step:06d}_*.jsonl")))
            with (folder / f"step_{step:06d}_{number}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            for path in sorted(folder.glob("step_*.jsonl"))[:-MAX_SKIPPED_FILES]:
                path.unlink()

    def state_dict(self) -> dict[str, int]:
        """Lengths of the files, in bytes, which are on the disk when this returns."""
        lengths = {}
        for name, path in (("metrics", self._folder.metrics), ("events", self._folder.events)):
            lengths[name] = _synced_bytes(path) if path.is_file() else 0
        return lengths

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Cut the files to the lengths that they had."""
        for name, path in (("metrics", self._folder.metrics), ("events", self._folder.events)):
            # Never longer: a file that someone shortened would be filled up with zero bytes.
            if path.is_file() and path.stat().st_size > state[name]:
                with named_disk_errors(path):
                    os.truncate(path, state[name])

    def close(self) -> None:
        """End the wandb run, if there is one."""
        if self._wandb is not None:
            self._wandb.close()

    def _rollout_file(self, step: int) -> Path:
        return self._folder.rollouts / f"step_{step:06d}.jsonl"


class SilentTracker(Tracker):
    """The tracker of a rank that writes nothing: it takes everything, and keeps none of it."""

    def __init__(self) -> None:
        """Of no folder."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        pass

    def forget_events(self, name: str) -> None:
        pass

    def rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        pass

    def skipped(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        pass

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        pass

    def close(self) -> None:
        pass


class _Wandb:
    """A run in wandb that its first metrics open, so that phases without any open none.

    What raises in it is said once, and ends it: the JSONL files hold everything."""

    def __init__(self, folder: RunFolder, config: RunConfig, *, fresh: bool, say: Callable[[str], None]) -> None:
        self._folder, self._config = folder, config
        self._fresh, self._say = fresh, say
        self._run: Any = None
        self._has_failed = False
        self._is_over = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._run is None and not self._is_over:
            self._open()
        if self._run is None:
            return
        try:
            self._run.log(dict(metrics), step=step)
        except Exception as error:
            self._give_up("does not take metrics any more", error)

    def close(self) -> None:
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:
            self._give_up("did not end its run", error)

    def _open(self) -> None:
        mode = self._config.tracking.wandb
        if mode == "online" or (mode == "auto" and self._has_key()):
            self._try("online", remedy=TRY_OFFLINE if mode == "auto" else GO_ON)
        if self._run is None and mode != "online":
            self._try("offline", remedy=GO_ON)
        self._is_over = self._run is None

    def _try(self, mode: Literal["online", "offline"], *, remedy: str) -> None:
        try:
            self._run = self._begun(mode)
        except Exception as error:  # wandb has a family of its own for keys, networks, services and settings
            self._say(f"wandb cannot begin a run {mode} ({_in_one_line(error)}); {remedy}")
            self._has_failed = True

    def _begun(self, mode: Literal["online", "offline"]) -> Any:
        import wandb

        if self._has_failed:
            # Its process holds the id of the run that did not begin, and would refuse it to this one.
            wandb.teardown()
        # An id that is known is gone on with: phases are run one by one, and a run is resumed.
        resume: Literal["allow"] | None = None if self._fresh else "allow"
        return wandb.init(
            project=self._config.tracking.wandb_project,
            name=self._config.run.name,
            id=self._config.run.name,
            dir=str(self._folder.path),
            mode=mode,
            resume=resume,
            config=self._config.model_dump(mode="json"),
        )

    def _has_key(self) -> bool:
        try:
            return has_key()
        except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
            self._say(f"wandb: {netrc_path()} cannot be read ({_in_one_line(error)}); {TRY_OFFLINE}")
            return False

    def _give_up(self, what: str, error: Exception) -> None:
        self._run, self._is_over = None, True
        self._say(f"wandb {what} ({_in_one_line(error)}); {GO_ON}")


def has_key() -> bool:
    """Whether wandb finds a key without asking: in the environment, or where `wandb login` puts it."""
    if os.environ.get(SECRET):
        return True
    path = netrc_path()
    return path.is_file() and netrc.netrc(path).authenticators(WANDB_HOST) is not None


def netrc_path() -> Path:
    """Where `wandb login` puts a key."""
    return Path(os.environ.get("NETRC") or Path.home() / ".netrc")


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with named_disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _synced_bytes(path: Path) -> int:
    with named_disk_errors(path), path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size
