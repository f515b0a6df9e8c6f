"""Vectors for tests: random ones in a file, as if extracted from the policy that a small run starts from."""

from pathlib import Path
from typing import Any

import torch

from grpo import checkpoint
from grpo.config import RunConfig
from grpo.fingerprints import policy_print
from grpo.model import base_of, initial_model, load_tokenizer
from grpo.persona.vectors import OVERS, Origin, PersonaVectors, save

TRAIT = "loud"


def save_vectors(
    path: Path,
    config: RunConfig,
    *,
    seed: int = 0,
    scale: float = 1.0,
    recommended: tuple[int | None, float | None] = (None, None),
    **origin: Any,
) -> str:
    """Write random vectors of the config's own initial policy; returns the path as a config has it.

    `origin` are fields of the file's Origin that say something else, `recommended` is a block and a coefficient."""
    model = initial_model(config.model, tokenizer=load_tokenizer(config.model), seed=config.run.seed)
    text = base_of(model).config.get_text_config()
    found = policy_print(checkpoint.weights_of(model))
    fields: dict[str, Any] = {
        "trait": TRAIT,
        "description": "Shouts.",
        "definition": {},
        "policy": found.content,
        "family": found.family,
        "model_type": text.model_type,
        "num_blocks": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "checkpoint": "start",
        "num_instructions": 1,
        "num_questions": 1,
        "rollouts_per_question": 1,
        "num_positive": 1,
        "num_negative": 1,
        "num_drawn": 2,
        "num_tokens": 0,
        "dropped": {},
        "threshold": 0.5,
        "coherence_threshold": 0.5,
        "temperature": 1.0,
        "seed": seed,
    }
    of_blocks = ("separation", "random_separation", "agreement", "hidden_norm")
    fields |= dict.fromkeys(of_blocks, (1.0,) * text.num_hidden_layers)
    made = Origin(**fields | origin)
    noise = torch.Generator().manual_seed(seed)
    shape = (made.num_blocks, made.hidden_size)
    of = {over: scale * torch.randn(shape, generator=noise) for over in OVERS}
    block, coefficient = recommended
    save(PersonaVectors(made, of=of, recommended_block=block, recommended_coefficient=coefficient), path)
    return str(path)
