"""What is compared: pools of problems, the curricula that practise them, and where all of it lies."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = Path("configs/curricula.yaml")
COLD_START = Path("configs/quickstart.yaml")
START = (
    # Traces of every length that is practised: what is compared is how practice is chosen, not how far it reaches.
    "sft.traces.options={num_rows: 4000, operations: {1: 3, 2: 3, 3: 3, 4: 2, 5: 1}}",
    "data.train.options={num_rows: 1000, operations: {2: 1, 3: 1, 4: 1, 5: 1}}",
    "reward.workers=0",
)


@dataclass(frozen=True)
class Pool:
    """Problems to practise, and the policy that practice starts from."""

    rows: Mapping[str, Any]  # options of the task
    arms: tuple[str, ...]
    reference: str
    changes: tuple[str, ...] = ()  # fields of every arm
    after_stage_one: bool = False  # else after the cold start


@dataclass(frozen=True)
class Arm:
    """What one curriculum changes in the common config."""

    changes: tuple[str, ...] = ()
    other_rows: bool = False  # practises rows of the same kind that no earlier stage has seen


EVEN = {2: 1, 3: 1, 4: 1, 5: 1}
POOLS: Mapping[str, Pool] = {
    # One problem in ten is worth practising; the others are soon solved every time (1 operation), or never, since 7 to
    # 9 operations need more tokens than a completion may have.
    "hopeless": Pool(
        rows={"num_rows": 2128, "operations": {1: 15, 2: 2.5, 3: 2.5, 4: 2.5, 5: 2.5, 7: 25, 8: 25, 9: 25}},
        arms=(
            *("uniform", "uniform, 1 refill", "uniform, no refill", "online", "online, 1 refill", "online, no refill"),
            *("tiers", "weighted"),
        ),
        reference="uniform",
    ),
    "mild": Pool(
        rows={"num_rows": 2128, "operations": EVEN},
        arms=(
            *("uniform", "uniform, 1 refill", "uniform, no refill", "online", "online, 1 refill", "online, no refill"),
            *("tiers", "adaptive", "T = 1.0", "T = 1.5"),
        ),
        reference="uniform",
    ),
    # Stage one has practised moderate problems of the same rows; every arm goes on from its last policy.
    "stage two": Pool(
        # Half as many, since labels of extreme problems take up to 64 rollouts each, and half as many tokens again.
        rows={"num_rows": 1128, "operations": EVEN},
        arms=("moderate on", "fresh moderate", "online", "extreme", "extreme, groups of 64"),
        reference="moderate on",
        changes=(
            "data.heldout.options={num_rows: 2048, operations: {4: 1, 5: 1}}",
            "data.heldout_problems=2048",
            "train.max_tokens=1200000",
        ),
        after_stage_one=True,
    ),
}
FOLLOWING = "curriculum.stages=[{name: moderate, tiers: [moderate], follow_moves: true}]"
TO_64 = ("profile.max_rollouts=64", "profile.relabel_rollouts=16")
ARMS: Mapping[str, Arm] = {
    "uniform": Arm(),
    "uniform, no refill": Arm(("curriculum.max_refill_waves=0",)),
    "uniform, 1 refill": Arm(("curriculum.max_refill_waves=1",)),
    "weighted": Arm(("curriculum.kind=weighted",)),
    "online": Arm(("curriculum.kind=online",)),
    "online, no refill": Arm(("curriculum.kind=online", "curriculum.max_refill_waves=0")),
    "online, 1 refill": Arm(("curriculum.kind=online", "curriculum.max_refill_waves=1")),
    "tiers": Arm(("curriculum.kind=two_stages", FOLLOWING)),
    "T = 1.0": Arm(("temperature.value=1.0",)),
    "T = 1.5": Arm(("temperature.value=1.5",)),
    "adaptive": Arm(
        (
            "temperature={kind: adaptive, value: 1.0, grid: [1.0, 1.15, 1.3, 1.5], counterfactual: true,"
            " window_steps: 20, window_rise: 0.15, max_standard_error: 0.015, cooldown_steps: 10}",
        )
    ),
    "moderate on": Arm(("curriculum.kind=two_stages", FOLLOWING)),
    "fresh moderate": Arm(("curriculum.kind=two_stages", FOLLOWING), other_rows=True),
    "extreme": Arm(
        (
            "curriculum.kind=two_stages",
            *TO_64,
            "curriculum.stages=[{name: extreme, tiers: [extreme], mix_tiers: [moderate], mix_fraction: 0.25}]",
        )
    ),
    "extreme, groups of 64": Arm(
        (
            "curriculum.kind=two_stages",
            *TO_64,
            "curriculum.stages=[{name: extreme, tiers: [extreme], mix_tiers: [moderate], mix_fraction: 0.25,"
            " group_size: 64, problems_per_step: 8, failures_per_group: 16}]",
        )
    ),
}
LABELS = "labels"
"""A job of its own, before a pool's arms: the tiers of the held-out problems."""
STAGE_ONE = ("curriculum.kind=two_stages", FOLLOWING, "train.max_tokens=800000")


def start_path(seed: int, *, folder: Path, after_stage_one: bool = False) -> Path:
    """Where the policy lies that a pool's arms start from."""
    return folder / f"{'stage_one_policy' if after_stage_one else 'start'}_{seed}"


def result_path(seed: int, pool: str, arm: str, *, folder: Path) -> Path:
    """Where the result of a job is written once it is finished."""
    return folder / "results" / f"{file_name(f'{pool}_{arm}_{seed}')}.json"


def tiers_path(seed: int, *, folder: Path) -> Path:
    """Where the tiers of a seed's held-out problems are written."""
    return folder / f"tiers_{seed}.json"


def log_path(seed: int, pool: str, arm: str, *, folder: Path) -> Path:
    """Where a job's output goes."""
    return folder / "logs" / f"{file_name(f'{pool}_{arm}_{seed}')}.log"


def file_name(text: str) -> str:
    """A name for a pool, an arm or a job that a file can have."""
    return text.replace(" = ", "_").replace(" ", "_").replace(",", "")
