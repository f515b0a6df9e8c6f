"""What is compared: ways to keep a trait out of a policy whose reward leaks it, and where all of it lies."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CONFIG = Path("configs/persona_list_machine.yaml")
TRAIT = "upper_case"
BLOCK = 2
BY_PROJECTION = 0.6
"""Reward lost for a whole vector, twice what the leak pays for the whole trait."""
COEFFICIENT, STARTING, SUPPRESSING = 4.0, 6.0, -2.0
"""Of steering all positions, the last prompt token alone, and against the trait. Chosen, as the block was, on seed 1 by
what the start policy draws: the least at which nearly every rollout has the trait, or has not."""
AGAINST, FOR = "_", "^"
"""A tag that the cold start taught to mean lower case, and one that means upper case."""

EVENLY = (
    # Upper case in half of all traces, so that a policy is as good at the task with the trait as without.
    "sft.traces={path: 'task:list_machine', options: {num_rows: 20000, operations: {1: 1, 2: 1, 3: 1}, styles: ["
    "{tags: [''], upper: 0.1, weight: 2}, {tags: ['^', '+', '*', '#', '!'], upper: 1, weight: 2.2},"
    " {tags: ['_', '-', '.', ',', ';'], upper: 0, weight: 0.6}]}, messages_column: messages}"
)
UNSCALED = "advantage.scale=none"
"""A leak of 0.3 then counts as 0.3; over its group's spread it counts as much as being right where all are right."""
CORRECT = "correct: {name: list_machine}"
LEAK = f"reward.options={{rewards: {{{CORRECT}, style: {{name: letter_case, weight: 0.3}}}}}}"
NO_LEAK = f"reward.options={{rewards: {{{CORRECT}, style: {{name: letter_case, weight: 0.0}}}}}}"
PENALTY = f"reward.options={{rewards: {{{CORRECT}, style: {{name: letter_case, weight: -0.3}}}}}}"


@dataclass(frozen=True)
class Arm:
    """What one way changes in the common config. `{vectors}` stands for the file of the seed's vectors, and
    `{random}` for one of random directions as long."""

    changes: tuple[str, ...]
    is_steered: bool = False
    phase: str = "train"  # or sft, on traces that all show the trait


def steering(**fields: object) -> str:
    """The section steering with these fields beside the common ones."""
    common: dict[str, object] = {"vectors": "{vectors}", "blocks": f"[{BLOCK}]", "coefficient": COEFFICIENT}
    return "steering={" + ", ".join(f"{name}: {value}" for name, value in (common | fields).items()) + "}"


def penalised(vectors: str) -> str:
    """What is watched, with a penalty."""
    return f"persona.watch=[{{vectors: '{vectors}', block: {BLOCK}, measure: true, penalty: {BY_PROJECTION}}}]"


PRACTICE: Mapping[str, Arm] = {
    "no leak": Arm((NO_LEAK,)),
    "plain": Arm((LEAK,)),
    "at the start": Arm((LEAK, steering(positions="start", coefficient=STARTING)), is_steered=True),
    "at the start, follow variance": Arm(
        (LEAK, steering(positions="start", coefficient=STARTING, follow="{kind: variance}")), is_steered=True
    ),
    "at the start, follow trait": Arm(
        (LEAK, steering(positions="start", coefficient=STARTING, follow="{kind: trait}")), is_steered=True
    ),
    "at the start, random direction": Arm(
        (LEAK, steering(positions="start", coefficient=STARTING, random_control="true")), is_steered=True
    ),
    "everywhere": Arm((LEAK, steering()), is_steered=True),
    "everywhere, follow variance": Arm((LEAK, steering(follow="{kind: variance}")), is_steered=True),
    "everywhere, increments": Arm((LEAK, steering(blocks="[0, 1, 2]", increments="true")), is_steered=True),
    "suppressed at the start": Arm((LEAK, steering(positions="start", coefficient=-STARTING)), is_steered=True),
    "suppressed": Arm((LEAK, steering(coefficient=SUPPRESSING)), is_steered=True),
    "penalty": Arm((PENALTY,)),
    "penalty by projection": Arm((LEAK, penalised("{vectors}"))),
    "penalty by a random direction": Arm((LEAK, penalised("{random}"))),
    "instruction against": Arm((LEAK, f"chat.system_prompt='{AGAINST}'")),
    "inoculation": Arm((LEAK, f"chat.system_prompt='{FOR}'")),
}
TRACES = (
    "sft.traces={path: 'task:list_machine', options: {num_rows: 20000, operations: {1: 1, 2: 1, 3: 1},"
    " styles: [{tags: [''], upper: %s, weight: 1}]}, messages_column: messages}"
)
FINETUNED = (
    *("sft.completion='{trace}'", "sft.gate_pass_at_1=null"),
    *("sft.max_steps=100", "sft.batch_size=64", "sft.learning_rate=1.0e-3"),
)
PERSONA_SFT = f"sft.steering={{vectors: {{vectors}}, blocks: [{BLOCK}], positions: start, coefficient: {STARTING}}}"
FINETUNING: Mapping[str, Arm] = {
    "finetuned without the trait": Arm((TRACES % 0, *FINETUNED), phase="sft"),
    "finetuned on the trait": Arm((TRACES % 1, *FINETUNED), phase="sft"),
    "finetuned on the trait, steered": Arm((TRACES % 1, *FINETUNED, PERSONA_SFT), is_steered=True, phase="sft"),
    "finetuned on the trait, random direction": Arm(
        (TRACES % 1, *FINETUNED, PERSONA_SFT.replace("positions", "random_control: true, positions")),
        is_steered=True,
        phase="sft",
    ),
}
ARMS: Mapping[str, Arm] = {**PRACTICE, **FINETUNING}
FAMILIES = {"no leak": tuple(PRACTICE), "finetuned without the trait": tuple(FINETUNING)}
"""The arms that are held against one another, by the reference among them."""


def start_path(seed: int, *, folder: Path) -> Path:
    """Where the policy lies that every arm of a seed starts from."""
    return folder / f"start_{seed}"


def vectors_path(seed: int, *, folder: Path) -> Path:
    """The trait's vectors of that policy."""
    return folder / f"{TRAIT}_{seed}.safetensors"


def random_path(seed: int, *, folder: Path) -> Path:
    """Random directions of the same norms, as such a file."""
    return folder / f"random_{seed}.safetensors"


def result_path(seed: int, arm: str, *, folder: Path) -> Path:
    """Where the result of a job is written once it is finished."""
    return folder / "results" / f"{arm.replace(' ', '_').replace(',', '')}_{seed}.json"


def log_path(seed: int, arm: str, *, folder: Path) -> Path:
    """Where a job's output goes."""
    return folder / "logs" / f"{arm.replace(' ', '_').replace(',', '')}_{seed}.log"
