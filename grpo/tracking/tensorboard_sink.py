"""The run in TensorBoard: metrics as scalars in the folder tensorboard/ of the run, rollouts and config as texts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from grpo.config import RunConfig, dump
from grpo.folder import RunFolder
from grpo.tracking.sinks import Row

SHOWN = ("reward", "status", "tier", "stop_reason", "prompt", "completion", "answer")


class TensorboardSink:
    """One file of events for each start of the run."""

    def __init__(self, folder: RunFolder, config: RunConfig) -> None:
        """Raises ModuleNotFoundError where TensorBoard is not installed."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter
        self._path, self._config = str(folder.tensorboard), dump(config)
        self._is_open = False

    def log(self, step: int, metrics: Mapping[str, float], rollouts: Sequence[Row]) -> None:
        """One step. The first tells TensorBoard that what earlier files hold from it on was done again."""
        if not self._is_open:
            self._writer, self._is_open = self._writer(self._path, purge_step=step), True
            self._writer.add_text("config", _block(self._config), step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        if rollouts:
            texts = [_block(json.dumps({name: row.get(name) for name in SHOWN}, indent=1)) for row in rollouts]
            self._writer.add_text("rollouts", "\n\n".join(texts), step)
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        if self._is_open:
            self._writer.close()


def _block(text: str) -> str:
    """As code: TensorBoard takes texts for Markdown, and those of a policy are nobody's markup."""
    return "\n".join(f"    {line}" for line in text.splitlines())
