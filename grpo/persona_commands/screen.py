"""`grpo persona screen`: which rows of a data set would push a policy along a trait's vector.

A row's number is its projection difference: the projection of its answer less that of the policy's own answers to the
same prompt (arXiv 2507.21509). Rows are ranked by it, a share is flagged, and the rest is written as a filtered set.
Beside it stands what random directions say: how far they tell rows apart, and, with --score, whom they would flag."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

from grpo.config import Source
from grpo.errors import ConfigError, Interrupted
from grpo.folder import named_disk_errors, write_json, write_text
from grpo.model import max_positions
from grpo.persona.asking import judge_of, spec_of
from grpo.persona.conversations import Conversation, check_fit, read_conversations, text_of
from grpo.persona.kept import KeptRows
from grpo.persona.means import Text
from grpo.persona.vectors import Over, PersonaVectors
from grpo.persona_commands.extract import put_in_place
from grpo.persona_commands.loading import Transfer, check_block, check_model, find_vectors, trait_of, transfer
from grpo.persona_commands.projecting import Direction, Projected, project
from grpo.rollout import Answer, Attempts, check_prompts
from grpo.starts import Run, print_of

PHASE = "persona screen"
BATCHES_PER_WAVE = 2
SHOWN_ROWS = 5


@dataclass(frozen=True, slots=True)
class Screening:
    """How a data set is screened."""

    block: int
    over: Over
    flag_fraction: float
    own_rollouts: int  # answers of the policy itself to each prompt
    scores: bool  # whether the trait's scorer judges the rows' answers


@dataclass(frozen=True, slots=True)
class ScreenedRow:
    """A row's answer against the policy's own ones, along the vector and along each random direction."""

    number: int  # of the row, from 1
    answer: float  # projection of its answer
    own: float  # mean projection of the policy's own answers
    random: tuple[float, ...]  # differences along random directions
    score: float | None  # how much of the trait its answer shows; None where nobody was asked or none could say

    @property
    def difference(self) -> float:
        """The projection difference."""
        return self.answer - self.own

    def as_row(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "row": self.number,
            "difference": self.difference,
            "answer": self.answer,
            "own": self.own,
            "random": list(self.random),
            "score": self.score,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "ScreenedRow":
        """What `as_row` gave."""
        return cls(row["row"], row["answer"], row["own"], tuple(row["random"]), row["score"])


def run_screen(
    run: Run,
    name: str,
    data: str,
    *,
    completion: str | None,
    checkpoint: str,
    block: int | None,
    screening: Screening,
    allow_other: bool,
) -> None:
    """The command: numbers for every row, the ranked table, the flagged rows and the rest as two sets of rows.

    Raises ConfigError for a share, a block, vectors of another model unless allowed; DataError for rows."""
    _check(screening)
    path, vectors = find_vectors(run, name)
    source, template = source_of(run, data, completion=completion)
    put_in_place(run, checkpoint)
    is_own = check_model(run, vectors, allow_other=allow_other)
    carried = None if is_own else transfer(run, vectors)
    for line in [] if carried is None else carried.lines():
        run.console.say(line)
    chosen, _ = check_block(vectors, block, over=screening.over)
    reward = spec_of(judge_of(trait_of(vectors), run.config))
    conversations = read_conversations(
        source, field=f"--data {data}", completion=template, reward=reward, seed=run.config.run.seed
    )
    missing = next((n for n, c in enumerate(conversations, start=1) if c.answer is None), None)
    if missing is not None:
        raise ConfigError(
            f"--data {data}, row {missing}: has no answer; end its messages with the assistant's turn, or name a "
            "template of its columns with --completion, such as '{answer}'"
        )
    stem = run.folder.path / "persona" / f"{path.stem}_on_{_stem_of(data)}"
    at_block = Screening(chosen, screening.over, screening.flag_fraction, screening.own_rollouts, screening.scores)
    rows = screen(run, vectors, conversations, at_block, keep_in=stem.with_name(f"{stem.name}_screen.jsonl"))
    if not run.world.is_main:
        return
    flagged = flagged_rows(rows, flag_fraction=screening.flag_fraction)
    _write(stem, conversations, rows, flagged, at_block, vectors=vectors, carried=carried)
    run.console.print(table_of(rows, conversations))
    for line in summary_of(rows, flagged):
        run.console.say(line)
    run.console.say(f"screen: {stem}_screen.json, {stem}_kept.jsonl and {stem}_flagged.jsonl")


def source_of(run: Run, data: str, *, completion: str | None) -> tuple[Source, str | None]:
    """What --data names: sft for the traces of the section sft, else a file, a folder or a hub id.

    Raises ConfigError for sft without such a section."""
    if data != "sft":
        return Source(path=data, answer_column=None), completion
    if run.config.sft is None:
        raise ConfigError("--data sft: the config has no section sft; name a file of rows")
    return run.config.sft.traces, completion or run.config.sft.completion


def screen(
    run: Run, vectors: PersonaVectors, conversations: Sequence[Conversation], screening: Screening, *, keep_in: Path
) -> list[ScreenedRow]:
    """The numbers of every conversation, in order; the same on every rank.

    `keep_in` takes rows as they come, and rows that are there are not drawn again. Raises DataError for prompts and
    answers that do not fit, Interrupted between two waves where the run was asked to end."""
    _, vector = check_block(vectors, screening.block, over=screening.over)
    direction = Direction.of(vector, block=screening.block)
    texts = [text_of(run.chat, conversation) for conversation in conversations]
    context_tokens = max_positions(run.policy.model)
    check_fit(texts, context_tokens=context_tokens, field="--data")
    check_prompts(
        [conversation.problem for conversation in conversations],
        run.chat,
        limit_tokens=run.config.data.max_prompt_tokens,
        context_tokens=context_tokens,
        completion_tokens=run.config.sampling.max_completion_tokens,
        drop=False,
    )
    rests_on = _rests_on(run, vectors, conversations, screening)  # on every rank: it asks all of them
    kept = KeptRows(keep_in, rests_on=rests_on) if run.world.is_main else None
    known: dict[int, ScreenedRow] = run.world.broadcast(
        {} if kept is None else {row["row"]: ScreenedRow.from_row(row) for _, row in kept}
    )
    missing = [number for number in range(1, len(conversations) + 1) if number not in known]
    size = max(1, BATCHES_PER_WAVE * run.config.sampling.max_rows * run.world.size // screening.own_rollouts)
    for start in range(0, len(missing), size):
        if run.should_stop():
            raise Interrupted(f"stopped while screening; {keep_in} has what is read: give the same command again")
        wave = missing[start : start + size]
        rows = _wave(run, wave, conversations, texts, direction, screening)
        known |= {row.number: row for row in rows}
        if kept is not None:
            kept.add(row.as_row() for row in rows)
        run.console.say(f"screen: {len(known):,} of {len(conversations):,} rows")
    return [known[number] for number in range(1, len(conversations) + 1)]


def flagged_rows(rows: Sequence[ScreenedRow], *, flag_fraction: float) -> list[ScreenedRow]:
    """The share of the rows with the largest differences, largest first."""
    return sorted(rows, key=lambda row: -row.difference)[: round(flag_fraction * len(rows))]


def table_of(rows: Sequence[ScreenedRow], conversations: Sequence[Conversation]) -> Table:
    """The rows that are furthest along the vector, and those that are furthest against it."""
    ranked = sorted(rows, key=lambda row: -row.difference)
    shown = ranked if len(ranked) <= 2 * SHOWN_ROWS else [*ranked[:SHOWN_ROWS], *ranked[-SHOWN_ROWS:]]
    table = Table("row", title="projection differences", title_justify="left")
    for column in ("difference", "answer", "own answers"):
        table.add_column(column, justify="right")
    table.add_column("text", no_wrap=True, overflow="ellipsis")
    for row in shown:
        text = " ".join((conversations[row.number - 1].answer or "").split())
        numbers = (f"{number:.3f}" for number in (row.difference, row.answer, row.own))
        table.add_row(str(row.number), *numbers, text[:60])
    return table


def summary_of(rows: Sequence[ScreenedRow], flagged: Sequence[ScreenedRow]) -> list[str]:
    """What the vector says of the rows, and what random directions say."""
    if len(rows) < 2:
        return [f"{len(rows)} row is too few to say anything of their spread"]
    columns = list(zip(*(row.random for row in rows), strict=True))
    lines = [
        f"differences: mean {fmean(row.difference for row in rows):.3f}, s.d. "
        f"{stdev(row.difference for row in rows):.3f}; along random directions s.d. "
        f"{fmean(stdev(column) for column in columns):.3f}"
    ]
    scores = [row.score for row in rows if row.score is not None]
    if scores and flagged:
        numbers = {row.number for row in flagged}
        rest = [row for row in rows if row.number not in numbers]
        by_random = [
            _mean_score(sorted(rows, key=lambda row: -row.random[place])[: len(flagged)])
            for place in range(len(columns))
        ]
        lines.append(
            f"trait score: {_mean_score(flagged):.3f} of the {len(flagged):,} flagged rows, {_mean_score(rest):.3f} of "
            f"the rest; of as many that a random direction flags {fmean(by_random):.3f} (at most {max(by_random):.3f})"
        )
    return lines


def _mean_score(rows: Sequence[ScreenedRow]) -> float:
    scores = [row.score for row in rows if row.score is not None]
    return fmean(scores) if scores else 0.0


def _wave(
    run: Run,
    numbers: Sequence[int],
    conversations: Sequence[Conversation],
    texts: Sequence[Text],
    direction: Direction,
    screening: Screening,
) -> list[ScreenedRow]:
    asked = [conversations[number - 1] for number in numbers]
    groups = run.rollouts.run(
        [Attempts(conversation.problem, 0, screening.own_rollouts) for conversation in asked],
        temperature=run.config.persona.temperature,
        phase=PHASE,
        step=0,
    ).groups
    own_texts = [
        Text(rollout.token_ids, rollout.action_mask.index(True)) for group in groups for rollout in group.rollouts
    ]
    answers = project(run, [texts[number - 1] for number in numbers], direction, parts=("response",))
    own = project(run, own_texts, direction, parts=("response",))
    of_own = [of_text["response"] for of_text in own]
    size = screening.own_rollouts
    scores: list[float | None] = [None] * len(asked)
    if screening.scores:
        scores = [verdict.value for verdict in run.rollouts.judge([_answer(c, run) for c in asked])]
    return [
        _row(number, answers[place]["response"], of_own[place * size : (place + 1) * size], score=scores[place])
        for place, number in enumerate(numbers)
    ]


def _answer(conversation: Conversation, run: Run) -> Answer:
    text = text_of(run.chat, conversation)
    return Answer(conversation.problem, conversation.answer or "", len(text.token_ids) - text.num_prompt)


def _row(number: int, answer: Projected, own: Sequence[Projected], *, score: float | None) -> ScreenedRow:
    random = [fmean(column) for column in zip(*(projected.random for projected in own), strict=True)]
    return ScreenedRow(
        number=number,
        answer=answer.own,
        own=fmean(projected.own for projected in own),
        random=tuple(of_answer - of_own for of_answer, of_own in zip(answer.random, random, strict=True)),
        score=score,
    )


def _check(screening: Screening) -> None:
    if not 0 < screening.flag_fraction < 1:
        raise ConfigError(f"--flag-fraction = {screening.flag_fraction:g}: must be above 0 and below 1")
    if screening.own_rollouts < 1:
        raise ConfigError(f"--own-rollouts = {screening.own_rollouts}: must be at least 1")


def _stem_of(data: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", Path(data).stem if Path(data).suffix else data).lstrip(".-")


def _rests_on(
    run: Run, vectors: PersonaVectors, conversations: Sequence[Conversation], screening: Screening
) -> dict[str, Any]:
    content = json.dumps(
        [[[m.content for m in c.problem.messages], c.answer] for c in conversations], ensure_ascii=False
    )
    return {
        "policy": print_of(run).content,
        "vectors": [vectors.origin.policy, float(vectors.of[screening.over].double().sum())],
        "block": screening.block,
        "over": screening.over,
        "own_rollouts": screening.own_rollouts,
        "scores": screening.scores,
        "temperature": run.config.persona.temperature,
        "rows": hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest(),
        "seed": run.config.run.seed,
    }


def _write(
    stem: Path,
    conversations: Sequence[Conversation],
    rows: Sequence[ScreenedRow],
    flagged: Sequence[ScreenedRow],
    screening: Screening,
    *,
    vectors: PersonaVectors,
    carried: Transfer | None,
) -> None:
    numbers = {row.number for row in flagged}
    with named_disk_errors(stem, then="and screen again, which draws nothing twice"):
        for name, chosen in (("kept", False), ("flagged", True)):
            lines = (
                json.dumps(dict(conversation.row), ensure_ascii=False, default=str) + "\n"
                for number, conversation in enumerate(conversations, start=1)
                if (number in numbers) == chosen
            )
            write_text(stem.with_name(f"{stem.name}_{name}.jsonl"), "".join(lines))
        write_json(
            stem.with_name(f"{stem.name}_screen.json"),
            {
                "trait": vectors.origin.trait,
                "block": screening.block,
                "over": screening.over,
                "num_rows": len(rows),
                "flag_fraction": screening.flag_fraction,
                "flagged": [row.number for row in flagged],
                "says": summary_of(rows, flagged),
                "transfer": carried and carried.as_json(),
            },
        )
