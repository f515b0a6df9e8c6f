"""Rows of data as what was asked and what was answered, in token ids: what projections are read from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo.chat import Chat
from grpo.config import Source
from grpo.data import load_rows, messages_of, trace_text
from grpo.errors import DataError
from grpo.persona.means import Text
from grpo.types import Problem
from rewards import RewardSpec


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row: the prompt, as a problem, and the answer, None where the row ends with the user's turn."""

    row: Mapping[str, Any]
    problem: Problem
    answer: str | None


def read_conversations(
    source: Source, *, field: str, completion: str | None, reward: RewardSpec, seed: int
) -> list[Conversation]:
    """The rows of a source, in order. A row whose last message is the assistant's has its answer there; of any other
    the template `completion` makes it of the row's fields, as `sft.completion` does, and None leaves it out.

    Rows with a column `messages` need not name it. Raises DataError and ConfigError, with `field` and the row."""
    found = []
    for number, row in enumerate(load_rows(source, field=field, seed=seed), start=1):
        place = f"{field}, row {number}"
        has_turns = source.messages_column is None and row.get("messages") is not None
        of_row = source.model_copy(update={"messages_column": "messages"}) if has_turns else source
        turns = messages_of(row, of_row, place=place)
        spoken = turns[-1].content if turns[-1].role == "assistant" else None
        asked = turns if spoken is None else turns[:-1]
        if not asked:
            raise DataError(f"{place}: an answer without a question; give it a message of the role user")
        meta = dict(row)
        answer = meta.pop(source.answer_column, "") if source.answer_column else ""
        problem = Problem(
            id=f"{field}/{number}",
            messages=asked,
            answer=answer if isinstance(answer, str) else str(answer),
            reward=reward,
            meta=meta,
        )
        if spoken is None and completion is not None:
            spoken = trace_text(problem, completion)
        found.append(Conversation(row=row, problem=problem, answer=spoken))
    if not found:
        raise DataError(f"{field}: {source.path!r} has no rows")
    return found


def text_of(chat: Chat, conversation: Conversation) -> Text:
    """The conversation in token ids, its answer with the token that ends it; without an answer the end token alone
    stands for it, so that there is a last prompt token to read."""
    ids, is_answer = chat.trace_ids(conversation.problem, conversation.answer or "")
    return Text(token_ids=ids, num_prompt=is_answer.index(True))


def check_fit(texts: Sequence[Text], *, context_tokens: int | None, field: str) -> None:
    """Raises DataError for a row that the model's context cannot hold."""
    for number, text in enumerate(texts, start=1):
        if context_tokens is not None and len(text.token_ids) > context_tokens:
            raise DataError(
                f"{field}, row {number}: it has {len(text.token_ids)} tokens, more than the model's context of "
                f"{context_tokens}; shorten the row or leave it out"
            )
