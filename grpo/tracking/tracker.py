"""Where a run's numbers go: metrics.jsonl, events.jsonl and rollouts always, wandb and others where they are asked for.

The JSONL files belong to the run's state: a checkpoint holds their lengths, and a resume cuts off what came after.
wandb, TensorBoard and trackio are guests (`grpo.tracking.sinks`)."""

import json
import math
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.config import RunConfig, TrackingConfig
from grpo.folder import RunFolder, named_disk_errors, write_text
from grpo.tracking import wandb_sink
from grpo.tracking.sinks import Guest, Sink
from grpo.tracking.tensorboard_sink import TensorboardSink
from grpo.tracking.trackio_sink import TrackioSink

MAX_SKIPPED_FILES = 20


class Tracker:
    """Writes a run's metrics, events and rollouts. The main rank has one; others have a `SilentTracker`."""

    def __init__(self, folder: RunFolder, config: RunConfig, *, say: Callable[[str], None]) -> None:
        """`say` is told what fails in wandb and the like."""
        self._folder = folder
        self._config: TrackingConfig = config.tracking
        self._guests = _guests(folder, config, say=say)
        self._shown: list[Mapping[str, Any]] = []  # rollouts of the step whose metrics are logged next

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl. A number that is not finite is written as null, which JSON has."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        _append(self._folder.metrics, {"step": step, **row})
        for guest in self._guests:
            guest.log(step, metrics, self._shown)
        self._shown = []

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
        """The step's rollouts as a file of their own; the oldest files beyond the limit go.

        Some of them, where they are due, go with the step's metrics to wandb and the like."""
        if self._guests and step % self._config.shown_every_steps == 0:
            rows = list(rows)
            self._shown = _whole_groups(rows, at_most=self._config.shown_rollouts)
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
        """End the runs in wandb and the like."""
        for guest in self._guests:
            guest.close()

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


def _guests(folder: RunFolder, config: RunConfig, *, say: Callable[[str], None]) -> list[Guest]:
    """The places that the config asks for, none of them opened."""
    tracking = config.tracking
    wanted: list[tuple[str, bool, Callable[[], Sink | None]]] = [
        ("wandb", tracking.wandb != "off", lambda: wandb_sink.begin(folder, config, run_id=_run_id(folder), say=say)),
        ("TensorBoard", tracking.tensorboard, lambda: TensorboardSink(folder, config)),
        ("trackio", tracking.trackio, lambda: TrackioSink(config, run_id=_run_id(folder))),
    ]
    return [Guest(name, begin, say=say) for name, is_wanted, begin in wanted if is_wanted]


def _run_id(folder: RunFolder) -> str:
    """What a run is called in wandb and the like: kept in its folder, so that a resume goes on in the same one, and
    with a part by chance, so that nobody's run of the same name in the same project is gone on with."""
    if not folder.tracking_id.is_file():
        write_text(folder.tracking_id, f"{folder.path.name}-{secrets.token_hex(4)}\n")
    return folder.tracking_id.read_text(encoding="utf-8").strip()


def _whole_groups(rows: Sequence[Mapping[str, Any]], *, at_most: int) -> list[Mapping[str, Any]]:
    """The first groups, as many as `at_most` rollouts hold; some rollouts of the first where it alone is larger."""
    end = at_most
    while 0 < end < len(rows) and rows[end]["problem_id"] == rows[end - 1]["problem_id"]:
        end -= 1
    return list(rows[: end or at_most])


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with named_disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _synced_bytes(path: Path) -> int:
    with named_disk_errors(path), path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size
