"""The run in trackio: metrics and a table of rollouts in its own local store, which `trackio show` reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from grpo.config import RunConfig
from grpo.tracking.sinks import Row

COLUMNS = ("step", "problem_id", "attempt", "tier", "reward", "status", "num_tokens", "prompt", "completion", "answer")


class TrackioSink:
    """One run in trackio; a run that is resumed goes on in it."""

    def __init__(self, config: RunConfig, *, run_id: str) -> None:
        """Raises ModuleNotFoundError where trackio is not installed."""
        import trackio

        self._trackio: Any = trackio
        fields = config.model_dump(mode="json")
        trackio.init(project=config.tracking.wandb_project, name=run_id, config=fields, resume="allow", embed=False)

    def log(self, step: int, metrics: Mapping[str, float], rollouts: Sequence[Row]) -> None:
        """One step; with it the table where it is due."""
        rows = [
            [str(rollout.get(name)).encode("utf-8", "replace").decode() for name in COLUMNS] for rollout in rollouts
        ]
        table = {"rollouts": self._trackio.Table(columns=list(COLUMNS), data=rows)} if rows else {}
        self._trackio.log(dict(metrics) | table, step=step)

    def close(self) -> None:
        """Hand over what is not stored yet."""
        self._trackio.finish()


def _text(value: Any) -> str:
    """That can be stored: half a surrogate pair, which a policy can write, cannot."""
    return str(value).encode("utf-8", "replace").decode()
