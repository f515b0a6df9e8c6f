"""The generated reward: procedurally generated tasks of reasoning-gym, each judged by that task's own scorer.

Owns where the answer stands and which scorers are trusted; what is right is the scorer's to say. Partial scores are
where such scorers can be had, so that the value is 1 for a scorer's full score and 0 for anything less."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from rewards.generated_tasks import ALLOWED_TASKS, LEFT_OUT_TASKS
from rewards.maths.extract import boxed
from rewards.types import Reward, Verifier

MAX_ANSWER_CHARACTERS = 20_000
"""An answer that is longer, and more than twice as long as the row's own, is wrong without being read."""

_FAULTS_OF_A_TEXT = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class GeneratedOptions:
    """Where in the completion the answer stands: it is the `whole`, or between the last answer `tags`, or in the last
    `box`."""

    answer_in: Literal["whole", "tags", "box"] = "tags"
    answer_tag: str = "answer"

    def __post_init__(self) -> None:
        if not self.answer_tag or any(mark in self.answer_tag for mark in "<>/ \n"):
            raise ValueError(f"answer_tag = {self.answer_tag!r}: must be a tag's bare name, such as answer")


def build_generated(options: GeneratedOptions) -> Verifier:
    """The verifier: 1.0 when the task's scorer gives the answer its full score, else 0.0; the part `score` is its own.

    Reads the columns that a reasoning-gym entry has: problem["answer"], and problem["metadata"] with the task's name
    under `source_dataset`. A row whose task is not allowed, or whose own answer does not get the full score, is an
    error; a completion that its scorer cannot read is wrong."""

    def verifier(completion: str, problem: Mapping[str, Any], /) -> Reward:
        fault = _fault_of_row(problem)
        if fault:
            return Reward.error(fault)
        gold, metadata = problem["answer"], problem["metadata"]
        score = functools.partial(_score, metadata["source_dataset"], gold, metadata)
        try:
            score_of_gold = score(gold.strip())
        except _FAULTS_OF_A_TEXT as error:
            return Reward.error(_broken_row(problem, f"its scorer raises {type(error).__name__}: {error}"))
        if score_of_gold < 1.0:
            return Reward.error(_broken_row(problem, f"its own answer {gold[:100]!r} scores {score_of_gold:g}, not 1"))
        answer = _ANSWERS[options.answer_in](completion, options)
        if answer is None or len(answer) > max(MAX_ANSWER_CHARACTERS, 2 * len(gold)):
            why = "no answer in " + options.answer_in if answer is None else f"an answer of {len(answer)} characters"
            return Reward.scored(0.0, parts={"score": 0.0}, detail=why)
        try:
            value = score(answer)
        except _FAULTS_OF_A_TEXT as error:
            detail = f"unreadable: {type(error).__name__}: {error}"[:300]
            return Reward.scored(0.0, parts={"score": 0.0}, detail=detail, answer=answer)
        detail = f"{answer[:100]!r} scores {value:g}; gold {gold[:100]!r}"
        return Reward.scored(float(value >= 1.0), parts={"score": value}, detail=detail, answer=answer)

    return verifier


def prepare_generated() -> None:
    """Import reasoning-gym before the first call's clock starts. Raises ImportError where it is not installed."""
    _scorer(ALLOWED_TASKS[0])


@functools.lru_cache(maxsize=len(ALLOWED_TASKS))
def _scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    """The scorer of an allowed task: a method that reads nothing of its dataset's settings or drawn problems."""
    import reasoning_gym

    return reasoning_gym.create_dataset(task).score_answer


def _score(task: str, gold: str, metadata: Mapping[str, Any], answer: str) -> float:
    # A copy: a scorer may write into the row, and the next completion is judged by the same one.
    entry = {"question": "", "answer": gold.strip(), "metadata": deepcopy(dict(metadata))}
    return float(_scorer(task)(answer, entry))


def _fault_of_row(problem: Mapping[str, Any]) -> str:
    """What keeps the row from being judged, in words; empty when nothing does."""
    gold, metadata = problem.get("answer"), problem.get("metadata")
    if not isinstance(gold, str) or not gold.strip():
        return f"problem['answer'] = {gold!r}: must be the entry's answer, a text; keep it as reasoning-gym wrote it"
    if not isinstance(metadata, Mapping):
        return (
            f"problem['metadata'] = {str(metadata)[:100]!r}: must be the entry's metadata, a mapping; keep it as "
            f"reasoning-gym wrote it (a JSON text must be decoded)"
        )
    task = metadata.get("source_dataset")
    if task in ALLOWED_TASKS:
        return ""
    reason = LEFT_OUT_TASKS.get(task) if isinstance(task, str) else None
    return (
        f"problem['metadata']['source_dataset'] = {task!r}: "
        f"{reason or 'not a task that this reward knows'}; use rows of the tasks in rewards/generated_tasks.py"
    )


def _broken_row(problem: Mapping[str, Any], why: str) -> str:
    task = problem["metadata"]["source_dataset"]
    return f"the row is no entry of {task} as reasoning-gym makes them: {why}; keep answer and metadata unchanged"


def _whole(completion: str, options: GeneratedOptions) -> str | None:
    return completion.strip()


def _tagged(completion: str, options: GeneratedOptions) -> str | None:
    """What the last opening tag and the closing tag after it enclose."""
    _, opening, rest = completion.rpartition(f"<{options.answer_tag}>")
    content, closing, _ = rest.partition(f"</{options.answer_tag}>")
    return content.strip() if opening and closing else None


def _boxed(completion: str, options: GeneratedOptions) -> str | None:
    answers = boxed(completion)
    return answers[0].strip() if len(answers) == 1 else None


_ANSWERS = {"whole": _whole, "tags": _tagged, "box": _boxed}
