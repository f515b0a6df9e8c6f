"""Who is steered when: the steering of each half of a step.

Steering is a property of a phase and not of the policy: the loop puts it in place while a step samples and while it
trains, and everything else (profile, validation, evaluation, decisions on the temperature) runs without."""

from collections.abc import Mapping
from typing import Any

from grpo.config import SteeringConfig
from grpo.fingerprints import PolicyPrint
from grpo.persona.applied import Applied, applied_to
from grpo.persona.coefficient import Coefficient, coefficient_of
from grpo.persona.vectors import PersonaVectors
from grpo.policy import Policy
from grpo.steering import Steering


class Steerer:
    """The steering of each step. The same on every rank."""

    def __init__(self, applied: Applied, config: SteeringConfig, *, coefficient: Coefficient) -> None:
        self._applied, self._config, self._coefficient = applied, config, coefficient
        self._in_file = applied

    @classmethod
    def of(cls, config: SteeringConfig, policy: Policy, *, seed: int) -> "Steerer":
        """As the section steering says, at its first step. Raises ConfigError as `applied_to`."""
        applied = applied_to(policy, config, seed=seed, field="steering")
        return cls(applied, config, coefficient=coefficient_of(config, trait=applied.origin.trait))

    def check_start(self, policy: PolicyPrint) -> str:
        """As `Applied.check_start`, of the policy that training starts from."""
        return self._applied.check_start(policy)

    def steering_of_sampling(self, step: int, stage: str) -> Steering | None:
        """What the rollouts of step `step` (from 0), in the curriculum's stage of that name, are drawn under."""
        return None if self._config.mode == "train_only" else self._steering(step, stage)

    def steering_of_training(self, step: int, stage: str) -> Steering | None:
        """What the updates of step `step` score and train under."""
        return None if self._config.mode == "sample_only" else self._steering(step, stage)

    def steering_of_evaluation(self) -> Steering:
        """What evaluation.steered scores policies under: the config's own coefficient, and the vectors of its file."""
        return self._in_file.at(self._config.coefficient)

    @property
    def trait(self) -> str:
        """What the vectors are of."""
        return self._applied.origin.trait

    @property
    def first_block(self) -> int:
        """The first one that is steered: up to its output nothing is moved."""
        return min(self._applied.vectors)

    def renew(self, newest: PersonaVectors) -> None:
        """Steer by these vectors from here on, where they are of the same trait."""
        if newest.origin.trait == self.trait:
            self._applied = self._applied.renewed(newest)

    def observe(self, step: int, stage: str, measures: Mapping[str, float]) -> None:
        """The metrics of a step that is done, from which a coefficient may learn; nothing where it steered nothing."""
        if self._is_steered(stage):
            self._coefficient.observe(step, measures)

    def metrics(self, step: int, stage: str) -> dict[str, float]:
        """The coefficient that step `step` is steered with: 0 in a stage that is not steered."""
        return {f"persona/{self._applied.origin.trait}/coefficient": self._value(step, stage)}

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as JSON can hold it."""
        return {"coefficient": self._coefficient.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._coefficient.load_state_dict(state["coefficient"])

    def _value(self, step: int, stage: str) -> float:
        return self._coefficient.value(step) if self._is_steered(stage) else 0.0

    def _is_steered(self, stage: str) -> bool:
        return not self._config.stages or stage in self._config.stages

    def _steering(self, step: int, stage: str) -> Steering | None:
        value = self._value(step, stage)
        return self._applied.at(value) if value else None


class Unsteered:
    """What stands for a steerer in a run that steers nothing."""

    def steering_of_sampling(self, step: int, stage: str) -> Steering | None:
        return None

    def steering_of_training(self, step: int, stage: str) -> Steering | None:
        return None

    def observe(self, step: int, stage: str, measures: Mapping[str, float]) -> None:
        """Nothing is learned."""

    def metrics(self, step: int, stage: str) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is nothing to take up."""
