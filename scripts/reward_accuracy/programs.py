"""How often `code_tests` is right on MBPP and HumanEval: on their solutions, and on these with one thing changed."""

from __future__ import annotations

from code_cases import (
    CodeProblem,
    first_wrong_mutant,
    passes_plainly,
    read_humaneval,
    read_mbpp,
    shared_folder,
)
from table import Score

from rewards import build

ANCHOR = "plain Python, tests and code in one process"
TIMEOUT_SECONDS = 60.0  # MBPP/123's solution takes ten seconds by itself


def measure() -> list[Score]:
    """Two scores for each set. Raises OSError without the rows, ValueError where a verdict is an error.

    The wrong ones are those that the anchor finds wrong: of them it is right by definition."""
    folder = shared_folder()
    scores = []
    for title, problems in (
        ("MBPP", read_mbpp(folder / "mbpp" / "mbpp.jsonl")),
        ("HumanEval", read_humaneval(folder / "humaneval" / "HumanEval.jsonl.gz")),
    ):
        right = sum(_value(problem, problem.solution) == 1.0 for problem in problems)
        anchor_right = sum(
            passes_plainly(problem.solution, problem.tests, timeout_seconds=TIMEOUT_SECONDS) is True
            for problem in problems
        )
        scores.append(Score(f"code_tests: {title}, solutions", len(problems), right, ANCHOR, anchor_right))
        wrong = [(problem, mutant) for problem in problems if (mutant := first_wrong_mutant(problem)) is not None]
        right = sum(_value(problem, mutant) == 0.0 for problem, mutant in wrong)
        scores.append(Score(f"code_tests: {title}, changed solutions", len(wrong), right, ANCHOR, len(wrong)))
    return scores


def _value(problem: CodeProblem, source: str) -> float:
    reward = build("code_tests", {"timeout_seconds": TIMEOUT_SECONDS})(
        f"```python\n{source}\n```", {"tests": problem.tests}
    )
    if reward.value is None:
        raise ValueError(f"{problem.name}: {reward.detail}")
    return reward.value
