"""What is measured: the models, the cases with their goals, and where a case's files lie. Knows no framework."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

LEARNING_RATE = 1e-9
"""Moves nothing that would change a length: every step of every side samples from the same policy."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Qwen3 with weights drawn at random. Its head is a matrix of its own."""

    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_size: int = 64
    vocabulary: int = 512
    dtype: str = "float32"

    @property
    def block_weights(self) -> int:
        """Weights of the matrices of all blocks: what a token is multiplied with."""
        attention = self.hidden_size * self.head_size * (2 * self.num_heads + 2 * self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head_weights(self) -> int:
        """Weights of the head: what a token whose next one is chosen or scored is multiplied with."""
        return self.hidden_size * self.vocabulary

    @property
    def bytes_per_weight(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * self.bytes_per_weight


@dataclass(frozen=True, slots=True)
class Goal:
    """At least `factor`, of a measure of `arithmetic.MEASURES`."""

    measure: str
    factor: float


@dataclass(frozen=True, slots=True)
class Case:
    """One step's work, the same for every side: P problems, G rollouts each, prompts and lengths in tokens."""

    name: str
    prompt_tokens: int
    num_problems: int
    group_size: int
    limit_tokens: int
    mean_tokens: float  # of a completion; the limit where no completion ends before it
    sides: tuple[str, ...] = ("ours", "trl")
    goals: tuple[Goal, ...] = ()
    shape: Shape = Shape()
    threads: tuple[int, ...] = (1, 2)
    trl_rows: int = 32  # of one forward and backward pass of TRL, each padded to the step's longest
    our_micro_batch_tokens: int = 4096  # train.tokens_per_micro_batch
    lora_rank: int | None = None
    device: str = "cpu"
    most_turns: int | None = None  # where more would say nothing more
    is_exact_memory: bool = False  # see turns.CpuMemory: peaks are exact, times a little longer
    group: str = "step"  # cases of a group share a table

    @property
    def num_rollouts(self) -> int:
        """Of a step."""
        return self.num_problems * self.group_size

    @property
    def is_ragged(self) -> bool:
        return self.mean_tokens < self.limit_tokens

    @property
    def what(self) -> str:
        """The case in words."""
        lengths = f"mean {self.mean_tokens:g} of at most" if self.is_ragged else "all"
        lora = f", LoRA of rank {self.lora_rank}" if self.lora_rank else ""
        words = f"prompt {self.prompt_tokens}, {self.num_problems} × {self.group_size}, {lengths} {self.limit_tokens}"
        dtype = f", {self.shape.dtype}" if self.shape.dtype != "float32" else ""
        return f"{words}, vocabulary {self.shape.vocabulary:,}{dtype}{lora}"


WIDE = Shape(hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, num_kv_heads=1, head_size=16)
HALF_BILLION = Shape(
    hidden_size=896,
    intermediate_size=4864,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    head_size=64,
    vocabulary=151_936,
    dtype="bfloat16",
)

GPU = Case(
    "gpu",
    *(256, 8, 16, 1024, 512),
    shape=HALF_BILLION,
    threads=(1,),
    trl_rows=16,
    our_micro_batch_tokens=16384,
    device="cuda",
    goals=(Goal("sampling", 5.0), Goal("matrix_fraction", 0.45)),
)

MAIN_CASES = (
    Case("ragged-0.6", 36, 16, 16, 64, 38.4, goals=(Goal("step", 3.0), Goal("matrix_fraction", 0.75))),
    Case("ragged-0.2", 36, 8, 16, 256, 51.2, trl_rows=16, goals=(Goal("step", 6.0),)),
    Case("at-limit", 36, 16, 16, 64, 64, goals=(Goal("step", 1.4),)),
    Case("long-prompt", 512, 1, 64, 64, 32, trl_rows=8, goals=(Goal("step", 10.0),)),
    Case("lora", 36, 16, 16, 64, 38.4, lora_rank=16),
    Case("bfloat16", 36, 16, 16, 64, 38.4, shape=Shape(dtype="bfloat16"), threads=(1,)),
    Case(
        "head-memory",
        *(36, 1, 8, 512, 512),
        shape=replace(WIDE, vocabulary=151_936),
        goals=(Goal("full_logits_memory", 20.0), Goal("head_memory", 12.0)),
        threads=(1,),
        trl_rows=8,
        our_micro_batch_tokens=16384,  # the whole step's, as TRL's
        most_turns=1,
        is_exact_memory=True,
        group="memory",
    ),
    Case("vllm", 36, 16, 16, 64, 64, sides=("ours", "vllm"), goals=(Goal("sampling", 1.2),), group="sampler"),
    GPU,
    replace(
        GPU,
        name="gpu-256-rows",
        num_problems=16,
        limit_tokens=512,
        mean_tokens=512,
        goals=(Goal("sampling_limit", 0.5),),
    ),
)


# A few seconds: that everything runs, not how fast.
SMOKE = Case("smoke", 8, 2, 4, 8, 4, shape=replace(WIDE, vocabulary=32), trl_rows=4)


def _scaling() -> Iterator[Case]:
    base = Case("scaling", 36, 4, 8, 16, 16, sides=("ours",), threads=(1,), most_turns=2, group="scaling")
    for factor in (1, 2, 4, 8, 16):
        yield replace(base, name=f"scaling-problems-{factor}", num_problems=4 * factor)
    for factor in (2, 4, 8, 16):
        yield replace(base, name=f"scaling-group-{factor}", group_size=8 * factor)
        length = 16 * factor
        yield replace(base, name=f"scaling-length-{factor}", limit_tokens=length, mean_tokens=length)


CASES = {case.name: case for case in (*MAIN_CASES, *_scaling(), SMOKE)}
# What --cases takes beside smoke: a case, or scaling for all of its sizes.
CHOICES = (*(case.name for case in MAIN_CASES), "scaling")


def chosen(names: list[str]) -> list[Case]:
    """The cases of these choices, in order."""
    return [case for case in CASES.values() if choice_of(case) in names]


def choice_of(case: Case) -> str:
    """What of `CHOICES` a case belongs to."""
    return case.group if case.group == "scaling" else case.name


def result_path(case: Case, *, threads: int, folder: Path) -> Path:
    """What was measured of a case."""
    return folder / "results" / f"{case.name}_threads_{threads}.json"


def profile_path(case: Case, *, folder: Path) -> Path:
    """Where a case's time goes, as Markdown."""
    return folder / "profiles" / f"{case.name}.md"


def policy_path(case: Case, *, folder: Path) -> Path:
    """The model that every side of a case loads. Cases of equal shape and lengths share one."""
    shape = case.shape
    sizes = f"{shape.hidden_size}x{shape.num_layers}_{shape.vocabulary}_{shape.dtype}"
    lengths = f"{case.mean_tokens:g}_of_{case.limit_tokens}" if case.is_ragged else "endless"
    return folder / "policies" / f"{sizes}_{lengths}"


def rows_path(case: Case, *, folder: Path) -> Path:
    """The problems that every side of a case practises."""
    name = f"prompts_{case.prompt_tokens}_{case.num_problems}_{case.shape.vocabulary}.jsonl"
    return folder / "policies" / name
