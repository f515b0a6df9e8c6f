"""A trait as a file: what it is, instructions that bring it out and that hold it back, questions, and who scores it.

Chen et al. 2025 (arXiv 2507.21509): a description, five pairs of contrastive system instructions, 40 questions (20 to
extract with, 20 to evaluate with) and a judge's rubric. A trait that a program can tell has a reward of `rewards` in
the judge's place."""

from importlib.resources import files
from pathlib import Path
from typing import Self

import yaml
from pydantic import Field, ValidationError, model_validator

from grpo.config import RewardConfig, Source
from grpo.config.base import Section
from grpo.errors import ConfigError

SHIPPED = files("grpo.persona") / "traits"
NAME = r"^[a-z][a-z0-9_]*$"


class Instructions(Section):
    """A contrastive pair of system instructions."""

    positive: str = Field(min_length=1)
    """Brings the trait out."""
    negative: str = Field(min_length=1)
    """Holds it back."""


class Questions(Section):
    """What the model is asked: texts, or rows of a source with answers that a reward can check."""

    extract: list[str] | Source
    """Asked under each instruction, to find the vector."""
    evaluate: list[str] | Source
    """Asked without instructions, to measure what steering does. Nothing is extracted from these."""

    @model_validator(mode="after")
    def _are_apart(self) -> Self:
        if isinstance(self.extract, list) and isinstance(self.evaluate, list):
            both = sorted(set(self.extract) & set(self.evaluate))
            if both:
                raise ValueError(f"evaluate: {both[0]!r} is among extract too; what a vector is judged by must be new")
        for name in ("extract", "evaluate"):
            if getattr(self, name) == []:
                raise ValueError(f"{name}: names no question")
        return self


class Trait(Section):
    """One trait."""

    name: str = Field(pattern=NAME)
    """Names the vector's file and the metrics persona/<name>/..."""
    description: str = Field(min_length=1)
    """What it is, in a sentence or two: for people, and for the judge's rubric."""
    instructions: list[Instructions] = Field(min_length=1)
    """Pairs; each question is asked under both of every pair."""
    questions: Questions
    """What is asked to extract and to evaluate."""
    scorer: RewardConfig
    """How much of the trait a completion shows, from 0 to 1: a programmatic reward, or the judge."""
    coherence: RewardConfig | None = None
    """How coherent a completion is, from 0 to 1; null counts every completion as coherent."""


def load_trait(name: str) -> Trait:
    """The trait of a YAML file, or a shipped one by its name. Raises ConfigError, which names file, field and rule."""
    shipped = sorted(path.name.removesuffix(".yaml") for path in SHIPPED.iterdir() if path.name.endswith(".yaml"))
    is_file = name.endswith((".yaml", ".yml"))
    if not is_file and name not in shipped:
        raise ConfigError(
            f"trait {name!r}: no such trait is shipped ({', '.join(shipped)}), and it names no .yaml file"
        )
    source = Path(name) if is_file else SHIPPED / f"{name}.yaml"
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
        return Trait.model_validate(content)
    except FileNotFoundError as error:
        raise ConfigError(f"trait {name}: there is no such file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"trait {name}: not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"trait {name}: {place}: {first['msg']}") from error
