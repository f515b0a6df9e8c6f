"""Bounds that tell a run that diverges, before its rewards do."""

from collections.abc import Mapping

from grpo.config import GuardConfig
from grpo.errors import DivergenceError


class Guards:
    """Watches the metrics of each step against the section guard. Its state is the steps in a row above a bound."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._steps_in_a_row = 0

    def observe(self, step: int, metrics: Mapping[str, float]) -> str:
        """What is above its bound in `step`, for people to read; empty where nothing is.

        Raises DivergenceError after max_steps_in_a_row such steps in a row."""
        bounds = {
            "max_ratio": ("policy/ratio_max", self._config.max_ratio),
            "max_sampler_gap": ("policy/sampler_logprob_gap_max", self._config.max_sampler_gap),
        }
        above = [
            f"{metric} = {metrics[metric]:.4g} is above guard.{field} = {bound}"
            for field, (metric, bound) in bounds.items()
            if bound is not None and metric in metrics and not metrics[metric] <= bound
        ]
        self._steps_in_a_row = self._steps_in_a_row + 1 if above else 0
        if self._steps_in_a_row >= self._config.max_steps_in_a_row:
            raise DivergenceError(
                f"step {step}: {'; '.join(above)}, for {self._steps_in_a_row} steps in a row "
                f"(guard.max_steps_in_a_row = {self._config.max_steps_in_a_row}); lower optim.learning_rate or "
                "train.epochs_per_step under another run.name, or raise the bound and add --resume"
            )
        return "; ".join(above)

    def state_dict(self) -> dict[str, int]:
        """Steps in a row above a bound."""
        return {"steps_in_a_row": self._steps_in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """What `state_dict` gave."""
        self._steps_in_a_row = state["steps_in_a_row"]
