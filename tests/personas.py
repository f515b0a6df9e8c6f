"""Vectors and traits of tiny models, made here: random directions that say what they are of."""

from pathlib import Path
from typing import Any

import torch
import yaml

from grpo.persona.vectors import OVERS, Origin, PersonaVectors, save

SCORER = """
def ones(completion, problem):
    return float("1" in completion)


def broken(completion, problem):
    raise RuntimeError("no verdict here")
"""


def made_vectors(
    *,
    trait: str = "ones",
    seed: int = 0,
    num_blocks: int = 2,
    hidden_size: int = 32,
    definition: dict[str, Any] | None = None,
) -> PersonaVectors:
    """Vectors of standard normal numbers at every block."""
    noise = torch.Generator().manual_seed(seed)
    origin = Origin(
        trait=trait,
        description="shows the digit 1",
        definition=definition or {"name": trait},
        num_tokens=0,
        policy="of no weights",
        family="of no weights",
        model_type="llama",
        num_blocks=num_blocks,
        hidden_size=hidden_size,
        checkpoint="start",
        num_instructions=1,
        num_questions=1,
        rollouts_per_question=1,
        num_positive=1,
        num_negative=1,
        num_drawn=2,
        dropped={},
        threshold=0.5,
        coherence_threshold=0.5,
        temperature=1.0,
        seed=seed,
        separation=(1.0,) * num_blocks,
        random_separation=(1.0,) * num_blocks,
        agreement=(1.0,) * num_blocks,
        hidden_norm=(1.0,) * num_blocks,
    )
    return PersonaVectors(origin, {over: torch.randn(num_blocks, hidden_size, generator=noise) for over in OVERS})


def vectors_file(folder: Path, **fields: Any) -> Path:
    """`made_vectors` as a file."""
    path = folder / f"{fields.get('trait', 'ones')}.safetensors"
    save(made_vectors(**fields), path)
    return path


def trait_file(folder: Path, *, name: str = "ones", scorer: str = "ones") -> Path:
    """A trait whose scorer is a function of a file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scorer.py").write_text(SCORER, encoding="utf-8")
    path = folder / f"{name}.yaml"
    fields = {
        "name": name,
        "description": "shows the digit 1",
        "instructions": [{"positive": "Show it.", "negative": "Do not show it."}],
        "questions": {"extract": ["11111r?"], "evaluate": ["12345r?"]},
        "scorer": {"file": str(folder / "scorer.py"), "function": scorer},
    }
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path
