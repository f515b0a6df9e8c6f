"""From measured steps to the numbers of the tables. Pure: dictionaries as `play` returns them in, numbers out.

Medians over steps; a ratio is of two sides in one turn, and its spread is over turns."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance
from typing import Any

from cases import Case, Shape

Step = Mapping[str, Any]
Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the least and the largest of what it is of."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Raises ValueError without values."""
        listed = list(values)
        if not listed:
            raise ValueError("a spread needs at least one value; run at least one turn")
        return cls(median(listed), min(listed), max(listed))


def sampled_tokens(step: Step) -> int:
    """Tokens of all completions, end tokens included."""
    return sum(map(sum, step["lengths"]))


def unique_tokens(step: Step) -> int:
    """Tokens that any way of sampling or training has to see once: each group's prompt, and all completions."""
    return sum(step["prompt_lengths"]) + sampled_tokens(step)


def mean_length(steps: Sequence[Step]) -> float:
    """Of a completion, in tokens."""
    return sum(map(sampled_tokens, steps)) / sum(len(group) for step in steps for group in step["lengths"])


def length_gap(first: Sequence[Step], second: Sequence[Step]) -> float:
    """How far the mean lengths of two sides are apart, in standard errors of their difference."""
    sides = [[length for step in steps for group in step["lengths"] for length in group] for steps in (first, second)]
    gap = abs(fmean(sides[0]) - fmean(sides[1]))
    error = math.sqrt(sum(variance(lengths) / len(lengths) for lengths in sides))
    return gap / error if error else (math.inf if gap else 0.0)


def tokens_per_second(step: Step, part: str, *, clock: str) -> float:
    """Sampled tokens over the time of a part: sampling, training, or step for all of it. `clock`: cpu or wall."""
    seconds = (step if part == "step" else step[part])[f"{clock}_seconds"]
    return sampled_tokens(step) / max(seconds, 1e-9)


def sampling_flops(step: Step, shape: Shape) -> float:
    """Two a weight and token: blocks for prompts (once a group) and completions, the head for completions."""
    return 2.0 * (shape.block_weights * unique_tokens(step) + shape.head_weights * sampled_tokens(step))


def training_flops(step: Step, case: Case) -> float:
    """Six a weight and token, as `sampling_flops` counts tokens; four where the weights have no gradient (LoRA)."""
    return sampling_flops(step, case.shape) * (2.0 if case.lora_rank is not None else 3.0)


def sampling_bytes(step: Step, shape: Shape) -> float:
    """What decoding has to read: all weights for each position, and each row's own cache; a group's prompt once.

    Every position is decoded for all rows at once, so there are as many readings as the longest completion has."""
    longest = max(map(max, step["lengths"]))
    weights = (shape.block_weights + shape.head_weights) * shape.bytes_per_weight * longest
    own = sum(length * (length + 1) / 2 for group in step["lengths"] for length in group)
    prompts = sum(prompt * max(group) for prompt, group in zip(step["prompt_lengths"], step["lengths"], strict=True))
    return weights + (own + prompts) * shape.cache_bytes_per_token


def sampling_limit_fraction(step: Step, limits: Mapping[str, float], case: Case, *, threads: int) -> float:
    """The time that products and reads take at the machine's limits, whichever is longer, in the time that it took."""
    rate = matrix_rate(limits, case)
    seconds = max(
        sampling_flops(step, case.shape) / rate, sampling_bytes(step, case.shape) / limits["copied_bytes_per_second"]
    )
    return seconds / _seconds_at_the_limit(step["sampling"], case, threads=threads)


def matrix_fraction(step: Step, limits: Mapping[str, float], case: Case, *, threads: int) -> float:
    """Useful flops of training a second, in the matrix rate that the machine reached in the same turn."""
    flops = training_flops(step, case)
    return flops / _seconds_at_the_limit(step["training"], case, threads=threads) / matrix_rate(limits, case)


def matrix_rate(limits: Mapping[str, float], case: Case) -> float:
    """The machine's, in flops a second, in the type of the weights."""
    return limits[f"{case.shape.dtype}_flops_per_second"]


def _seconds_at_the_limit(part: Mapping[str, float], case: Case, *, threads: int) -> float:
    # On one thread of a busy machine the CPU's time is what the work took; several threads work at the same time.
    return part["cpu_seconds"] if case.device == "cpu" and threads == 1 else part["wall_seconds"]


def clock_of(case: Case, *, threads: int) -> str:
    """What ratios are taken of: CPU-seconds with one thread, which other work does not change, else wall-seconds."""
    return "cpu" if case.device == "cpu" and threads == 1 else "wall"


def speed_ratio(result: Result, part: str, *, clock: str, over: str) -> Spread:
    """Tokens a second of ours in those of the side `over`, turn by turn. Each side is normalised by its own tokens."""

    def speed(steps: Sequence[Step]) -> float:
        return median(tokens_per_second(step, part, clock=clock) for step in steps)

    pairs = zip(result["sides"]["ours"], result["sides"][over], strict=True)
    return Spread.of(speed(ours) / speed(other) for ours, other in pairs)


def head_bytes(steps: Sequence[Step]) -> float:
    """The peak of training above what was held when it began: gradients, activations and logits, in bytes."""
    return median(step["training"]["extra_bytes"] for step in steps)


def full_logits_bytes(step: Step, shape: Shape) -> float:
    """Logits of every completion token in float32, which a loss needs at least once where they are made at once."""
    return 4.0 * sampled_tokens(step) * shape.vocabulary


def peak_bytes(steps: Sequence[Step]) -> int:
    """The largest of all phases above what was held before the first step."""
    return max(step[phase]["peak_bytes"] for step in steps for phase in ("sampling", "training"))


def steps_of(result: Result, side: str) -> list[Step]:
    """All measured steps of a side."""
    return [step for of_turn in result["sides"][side] for step in of_turn]


def best_limits(result: Result) -> dict[str, float]:
    """The best of each limit over the turns."""
    return {name: max(limits[name] for limits in result["machine"]) for name in result["machine"][0]}


def limit_fraction(result: Result, case: Case, side: str, *, part: str) -> float:
    """Median share of the machine's limit over a side's steps: of sampling or of training."""
    of_step = {"sampling": sampling_limit_fraction, "training": matrix_fraction}[part]
    limits, threads = best_limits(result), int(result["threads"])
    return median(of_step(step, limits, case, threads=threads) for step in steps_of(result, side))


def _step_ratio(result: Result, case: Case) -> Spread:
    return speed_ratio(result, "step", clock=clock_of(case, threads=result["threads"]), over=case.sides[1])


def _sampling_ratio(result: Result, case: Case) -> Spread:
    return speed_ratio(result, "sampling", clock=clock_of(case, threads=result["threads"]), over=case.sides[1])


def _head_ratio(result: Result, case: Case) -> Spread:
    pairs = zip(result["sides"]["ours"], result["sides"]["trl"], strict=True)
    return Spread.of(head_bytes(trl) / head_bytes(ours) for ours, trl in pairs)


def _full_logits_ratio(result: Result, case: Case) -> Spread:
    turns = result["sides"]["ours"]
    return Spread.of(fmean(full_logits_bytes(s, case.shape) for s in turn) / head_bytes(turn) for turn in turns)


def _matrix_fraction(result: Result, case: Case) -> Spread:
    limits, threads = best_limits(result), int(result["threads"])
    steps = steps_of(result, "ours")
    return Spread.of(matrix_fraction(step, limits, case, threads=threads) for step in steps)


def _sampling_limit(result: Result, case: Case) -> Spread:
    limits, threads = best_limits(result), int(result["threads"])
    steps = steps_of(result, "ours")
    return Spread.of(sampling_limit_fraction(step, limits, case, threads=threads) for step in steps)


MEASURES: dict[str, Callable[[Result, Case], Spread]] = {
    "step": _step_ratio,
    "sampling": _sampling_ratio,
    "head_memory": _head_ratio,
    "full_logits_memory": _full_logits_ratio,
    "matrix_fraction": _matrix_fraction,
    "sampling_limit": _sampling_limit,
}
"""What a goal is of; in all of them more is better."""
