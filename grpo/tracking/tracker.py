"""Where a run's numbers go: metrics.jsonl and events.jsonl always, wandb where it is asked for, rollouts by step.

The JSONL files belong to the run's state: a checkpoint holds their lengths, and a resume cuts off what came after."""

import json
import math
import netrc
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grpo.config import RunConfig, TrackingConfig
from grpo.folder import RunFolder, named_disk_errors

SECRET = "WANDB_API_KEY"
WANDB_HOST = "api.wandb.ai"


class Tracker:
    """Writes a run's metrics, events and rollouts. One process writes."""

    def __init__(self, folder: RunFolder, config: RunConfig, *, resumed: bool) -> None:
        self._folder = folder
        self._config: TrackingConfig = config.tracking
        self._wandb = _wandb_run(folder, config, resumed=resumed)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl. A number that is not finite is written as null, which JSON has."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        _append(self._folder.metrics, {"step": step, **row})
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """One line of events.jsonl: a stage that begins, a temperature that is chosen, a step without an update."""
        _append(self._folder.events, {"step": step, "event": name, **details})

    def rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """The step's rollouts as a file of their own; the oldest files beyond the limit go."""
        if self._config.rollout_files == 0:
            return
        self._folder.rollouts.mkdir(exist_ok=True)
        path = self._rollout_file(step)
        with named_disk_errors(path), path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self._rollout_file(step - self._config.rollout_files).unlink(missing_ok=True)

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
                os.truncate(path, state[name])

    def close(self) -> None:
        """End the wandb run, if there is one."""
        if self._wandb is not None:
            self._wandb.finish()

    def _rollout_file(self, step: int) -> Path:
        return self._folder.rollouts / f"step_{step:06d}.jsonl"


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with named_disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _synced_bytes(path: Path) -> int:
    with named_disk_errors(path), path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _wandb_run(folder: RunFolder, config: RunConfig, *, resumed: bool) -> Any:
    mode = config.tracking.wandb
    if mode == "off":
        return None
    import wandb

    if mode == "auto":
        mode = "online" if _has_key() else "offline"
    return wandb.init(
        project=config.tracking.wandb_project,
        name=config.run.name,
        id=config.run.name,
        dir=str(folder.path),
        mode=mode,
        resume="allow" if resumed else None,
        config=config.model_dump(mode="json"),
    )


def _has_key() -> bool:
    """Whether wandb finds a key without asking: in the environment, or where `wandb login` puts it."""
    if os.environ.get(SECRET):
        return True
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    return path.is_file() and netrc.netrc(path).authenticators(WANDB_HOST) is not None
