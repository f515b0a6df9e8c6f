"""How much of a trait a policy shows on its evaluation questions, steered or not, and how coherent and right it is."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from curricula.intervals import share_interval
from grpo.config import RewardConfig
from grpo.data import at_most
from grpo.evaluation import Estimate, evaluate
from grpo.persona.asking import coherence_of, judge_of, questions_of
from grpo.persona.traits import Trait
from grpo.rollout import Attempts, check_lost, lost_verdicts
from grpo.seeds import torch_seed
from grpo.starts import Run
from grpo.steering import Steering
from grpo.types import Problem

PHASE = "persona sweep"


@dataclass(frozen=True, slots=True)
class Measured:
    """What the completions of one policy, under one steering, came to. Estimates have 95 % intervals over questions."""

    rate: Estimate  # share of completions with a trait score at persona.threshold or above
    score: float  # mean trait score
    coherent: float  # share at persona.coherence_threshold or above
    accuracy: Estimate | None  # pass@1 on validation problems of the run; None where none was asked for
    num_completions: int
    num_without_verdict: int

    def as_row(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Measured":
        """What `as_row` gave."""
        accuracy = row["accuracy"] and Estimate(**row["accuracy"])
        return cls(**{**row, "rate": Estimate(**row["rate"]), "accuracy": accuracy})


class Meter:
    """Measures the policy as it stands, always on the same questions, problems and noise."""

    def __init__(self, run: Run, trait: Trait, *, num_problems: int, rollouts_per_question: int | None = None) -> None:
        """Accuracy is that on `num_problems` validation problems at most; 0 leaves it out. Raises ConfigError and
        DataError for a scorer or questions that cannot be had."""
        self._run, self._trait = run, trait
        self._judge: RewardConfig = judge_of(trait, run.config)
        self._num_rollouts = rollouts_per_question or run.config.persona.rollouts_per_question
        self.questions: Sequence[Problem] = questions_of(trait, run.config).evaluate
        seed = torch_seed(run.config.run.seed, PHASE)
        self.problems = at_most(run.validation, num_problems, seed=seed) if num_problems else []

    def measure(self, steering: Steering | None) -> Measured:
        """Under `steering`, which is off again afterwards. Raises RewardError for too many lost verdicts."""
        self._run.rollouts.steer(steering)
        try:
            return self._measured()
        finally:
            self._run.rollouts.steer(None)

    def _measured(self) -> Measured:
        config = self._run.config
        groups = self._run.rollouts.run(
            [Attempts(question, first_attempt=0, num_rollouts=self._num_rollouts) for question in self.questions],
            temperature=config.persona.temperature,
            phase=PHASE,
            step=0,
        ).groups
        lost, limit = lost_verdicts(groups), self._judge.max_error_fraction
        verdicts = [reward for group in groups for reward in group.rewards]
        place = f"trait {self._trait.name}"
        check_lost(lost, num_verdicts=len(verdicts), max_error_fraction=limit, place=place)
        valued = [group.values for group in groups if group.values]
        shares = [fmean(value >= config.persona.threshold for value in values) for values in valued]
        coherent = [coherence_of(reward) >= config.persona.coherence_threshold for reward in verdicts]
        return Measured(
            # A steering that leaves the scorer nothing to say has shown nothing.
            rate=Estimate(*share_interval(shares or [0.0])),
            score=fmean(value for values in valued for value in values) if valued else 0.0,
            coherent=fmean(coherent),
            accuracy=self._accuracy() if self.problems else None,
            num_completions=len(verdicts),
            num_without_verdict=sum(reward.value is None for reward in verdicts),
        )

    def _accuracy(self) -> Estimate:
        config = self._run.config
        result = evaluate(
            self._run.rollouts,
            self.problems,
            num_rollouts=config.evaluation.validation_rollouts,
            temperature=config.persona.temperature,
            k=[1],
            max_error_fraction=config.reward.max_error_fraction,
            place=f"accuracy beside {self._trait.name}",
        )
        return result.overall.metrics["pass@1"]
