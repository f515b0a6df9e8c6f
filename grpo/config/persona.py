"""Persona vectors: how a trait's vectors are extracted and tried out, and which traits are watched in training."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from grpo.config.base import Section


class WatchConfig(Section):
    """A trait whose direction is watched in training."""

    vectors: str
    """File of the trait's vectors, as `grpo persona extract` writes it."""
    name: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]*$")
    """Names the metrics persona/<name>/...; null takes the trait's own. A trait watched twice needs two names."""
    block: int | None = Field(None, ge=0)
    """Block at whose output projections are read; null takes the first one that is steered where the trait is, else
    the file's recommended one, or the one at 0.55 of the depth."""
    over: Literal["response", "prompt", "last_prompt"] = "response"
    """What the vector is a difference of means over: completion tokens, prompt tokens or the last prompt token."""
    trait: str | None = None
    """The trait's YAML file, or the name of a shipped trait; null takes the trait as it was when the vectors were
    extracted. Read where the trait is measured or extracted again."""
    penalty: float = 0.0
    """Reward that a rollout loses for a completion that lies one whole vector further along the trait than those of its
    group; below 0 it is paid for that. Read by a forward of its own before the update; 0 needs none."""
    measure: bool = False
    """Score the step's completions for the trait with the trait's own scorer."""


class PersonaConfig(Section):
    """How vectors of traits are extracted, chosen and used (`grpo persona`), and which are watched while training."""

    rollouts_per_question: int = Field(10, ge=1)
    """Rollouts of each question under each instruction, to extract with, and of each evaluation question in a sweep."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of these rollouts."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """A pair of rollouts is kept where the trait's score is at or above it under the positive instruction and below it
    under the negative one."""
    coherence_threshold: float = Field(0.5, ge=0, le=1)
    """Both rollouts of a kept pair, and a rollout that a sweep calls coherent, are at or above it in coherence."""
    min_pairs: int = Field(8, ge=2)
    """Fewer kept pairs than this make no vector: it would be noise."""
    instruction_role: Literal["system", "user"] = "system"
    """Where the instructions of a trait stand: a system turn, or, for a chat template without one, before the
    question."""
    judge: dict[str, Any] = {}
    """Options of the reward judge that every trait's judge takes where it does not set them itself: base_url, model,
    api_key_env, cache_folder."""
    watch: list[WatchConfig] = []
    """Traits that are watched in training, with random directions as control."""
    measure_rollouts_per_step: int | None = Field(None, ge=1)
    """At most so many rollouts of a step are scored for a trait, whole groups at a time; null scores all of them. A
    judge is asked once for each."""
    drift_alarm: float | None = Field(None, gt=0)
    """Shift of a trait's projection since training began, in spreads of the first step's rollouts, that is warned of;
    null is off."""
    drift_alarm_steps: int | None = Field(None, ge=1)
    """Steps in a row above drift_alarm that end the run; null ends nothing."""
    reextract_every_steps: int | None = Field(None, ge=1)
    """Steps between extractions of the watched vectors with the policy as it stands; null keeps those of the files."""
    reextract_steers: bool = False
    """Steer with the newest vectors too, where the trait that is steered is extracted again."""

    @model_validator(mode="after")
    def _is_read(self) -> Self:
        if not self.watch:
            self.refuse_unread(
                "measure_rollouts_per_step",
                "drift_alarm",
                "drift_alarm_steps",
                "reextract_every_steps",
                "reextract_steers",
                because="nothing is watched",
                remedy="name a vectors file under watch",
            )
        if not any(watched.measure for watched in self.watch):
            self.refuse_unread(
                "measure_rollouts_per_step",
                because="no watched trait is measured",
                remedy="set measure: true for one",
            )
        if self.drift_alarm is None:
            self.refuse_unread("drift_alarm_steps", because="drift_alarm is null", remedy="set drift_alarm")
        if self.reextract_every_steps is None:
            self.refuse_unread(
                "reextract_steers", because="reextract_every_steps is null", remedy="set reextract_every_steps"
            )
        for index, watched in enumerate(self.watch):
            if self.reextract_every_steps is None and not watched.measure and watched.trait is not None:
                raise ValueError(
                    f"watch.{index}.trait = {watched.trait!r} is not read where the trait is neither measured nor "
                    "extracted again; drop it or set measure: true or reextract_every_steps"
                )
        return self
