"""The run in wandb: metrics under their own names, a table of rollouts, charts of tiers and temperature, the config.

wandb is imported here alone. A run that is resumed goes on in the same wandb run, by an id that lies in its folder."""

import json
import math
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from grpo.config import RunConfig
from grpo.folder import RunFolder
from grpo.tracking.sinks import GO_ON, Row, in_one_line

SECRET = "WANDB_API_KEY"
WANDB_HOST = "api.wandb.ai"
TRY_OFFLINE = "trying wandb offline"
CHARTS_EVERY_STEPS = 50
"""A chart is a table of all steps so far, so it is not sent with every one of them."""
TIER = "curriculum/tier_"
TEMPERATURE = ("sampling/temperature", "reward/pass_rate", "policy/entropy")
COLUMNS = (
    *("step", "problem_id", "attempt", "stage", "tier", "reward", "status", "advantage", "num_tokens", "stop_reason"),
    *("temperature", "prompt", "completion", "answer", "detail"),
)


class WandbSink:
    """One run in wandb."""

    def __init__(self, run: Any, folder: RunFolder) -> None:
        """`run` is what `wandb.init` gave; the charts are made of the metrics in `folder`."""
        self._run, self._folder = run, folder
        self._last_step = self._charted_step = 0

    def log(self, step: int, metrics: Mapping[str, float], rollouts: Sequence[Row]) -> None:
        """One step; with it the table and the charts where they are due."""
        self._last_step = step
        shown = dict(metrics) | ({"rollouts": _table(rollouts)} if rollouts else {})
        self._run.log(shown | (self._charts() if step % CHARTS_EVERY_STEPS == 0 else {}), step=step)

    def close(self) -> None:
        """The charts of the whole run, and its end."""
        charts = self._charts() if self._charted_step < self._last_step else {}
        if charts:
            self._run.log(charts, step=self._last_step)
        self._run.finish()

    def _charts(self) -> dict[str, Any]:
        import wandb

        self._charted_step = self._last_step
        lines = self._folder.metrics.read_text(encoding="utf-8").splitlines() if self._folder.metrics.is_file() else []
        rows = [json.loads(line) for line in lines]
        tiers = sorted({name for row in rows for name in row if name.startswith(TIER)})
        named = {"tiers": tiers, "temperature": [name for name in TEMPERATURE if any(name in row for row in rows)]}
        return {
            f"charts/{title}": wandb.plot.line_series(
                xs=[row["step"] for row in rows],
                ys=[[math.nan if row.get(name) is None else row[name] for row in rows] for name in names],
                keys=[name.removeprefix(TIER) for name in names],
                title=title,
                xname="step",
            )
            for title, names in named.items()
            if names and len(rows) > 1
        }


def begin(folder: RunFolder, config: RunConfig, *, run_id: str, say: Callable[[str], None]) -> WandbSink | None:
    """Open the run in wandb: online, offline, or with `auto` online where there is a key and a network.

    None where wandb begins none, after a line that says why."""
    mode = config.tracking.wandb
    has_failed, run = False, None
    if mode == "online" or (mode == "auto" and _has_key(say)):
        run = _tried("online", folder, config, run_id, say, remedy=TRY_OFFLINE if mode == "auto" else GO_ON)
        has_failed = run is None
    if run is None and mode != "online":
        run = _tried("offline", folder, config, run_id, say, remedy=GO_ON, has_failed=has_failed)
    return None if run is None else WandbSink(run, folder)


def _tried(
    mode: Literal["online", "offline"],
    folder: RunFolder,
    config: RunConfig,
    run_id: str,
    say: Callable[[str], None],
    *,
    remedy: str,
    has_failed: bool = False,
) -> Any:
    try:
        return _run(mode, folder, config, run_id, has_failed=has_failed)
    except Exception as error:  # wandb has a family of its own for keys, networks, services and settings
        say(f"wandb cannot begin a run {mode} ({in_one_line(error)}); {remedy}")
        return None


def _run(
    mode: Literal["online", "offline"], folder: RunFolder, config: RunConfig, run_id: str, *, has_failed: bool
) -> Any:
    import wandb

    if has_failed:
        # Its process holds the id of the run that did not begin, and would refuse it to this one.
        wandb.teardown()
    return wandb.init(
        project=config.tracking.wandb_project,
        name=config.run.name,
        id=run_id,
        dir=str(folder.path),
        mode=mode,
        # An id that is known is gone on with: phases are run one by one, and a run is resumed.
        resume="allow",
        config=config.model_dump(mode="json"),
    )


def _table(rollouts: Sequence[Row]) -> Any:
    import wandb

    rows = [[_cell(rollout.get(name)) for name in COLUMNS] for rollout in rollouts]
    return wandb.Table(columns=list(COLUMNS), data=rows, allow_mixed_types=True)


def _cell(value: Any) -> Any:
    """A text that can be sent: half a surrogate pair, which a policy can write, cannot."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _has_key(say: Callable[[str], None]) -> bool:
    try:
        return has_key()
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        say(f"wandb: {netrc_path()} cannot be read ({in_one_line(error)}); {TRY_OFFLINE}")
        return False


def has_key() -> bool:
    """Whether wandb finds a key without asking: in the environment, or where `wandb login` puts it."""
    if os.environ.get(SECRET):
        return True
    path = netrc_path()
    return path.is_file() and netrc.netrc(path).authenticators(WANDB_HOST) is not None


def netrc_path() -> Path:
    """Where `wandb login` puts a key."""
    return Path(os.environ.get("NETRC") or Path.home() / ".netrc")
