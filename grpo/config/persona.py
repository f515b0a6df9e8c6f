"""Persona vectors: how a trait's vectors are extracted and tried out."""

from typing import Any, Literal

from pydantic import Field

from grpo.config.base import Section


class PersonaConfig(Section):
    """How vectors of traits are extracted, chosen and used (`grpo persona`)."""

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
