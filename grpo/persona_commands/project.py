"""`grpo persona project`: how far each conversation of a file lies along a trait's vector, and along random ones."""

import json
from pathlib import Path
from statistics import fmean, stdev

from rich.table import Table

from grpo.config import Source
from grpo.errors import ConfigError
from grpo.folder import named_disk_errors, write_text
from grpo.model import max_positions
from grpo.persona.asking import judge_of, spec_of
from grpo.persona.conversations import check_fit, read_conversations, text_of
from grpo.persona.vectors import Over
from grpo.persona_commands.extract import put_in_place
from grpo.persona_commands.loading import check_block, check_model, find_vectors, trait_of, transfer
from grpo.persona_commands.projecting import Direction, Projected, project
from grpo.starts import Run

READ: tuple[Over, ...] = ("response", "last_prompt")


def run_project(
    run: Run,
    name: str,
    file: Path,
    *,
    checkpoint: str,
    block: int | None,
    over: Over,
    allow_other: bool,
    output: Path | None,
) -> None:
    """The command: a line of projections for each row of `file`, and their means on the terminal.

    Raises ConfigError for a block, vectors of another model unless allowed, or an output that is the input."""
    path, vectors = find_vectors(run, name)
    if output is not None and output.resolve() == file.resolve():
        raise ConfigError(f"--output = {str(output)!r} is the file that is read; name another one")
    put_in_place(run, checkpoint)
    is_own = check_model(run, vectors, allow_other=allow_other)
    for line in [] if is_own else transfer(run, vectors).lines():
        run.console.say(line)
    chosen, vector = check_block(vectors, block, over=over)
    trait = trait_of(vectors)
    conversations = read_conversations(
        Source(path=str(file), answer_column=None),
        field=str(file),
        completion=None,
        reward=spec_of(judge_of(trait, run.config)),
        seed=run.config.run.seed,
    )
    texts = [text_of(run.chat, conversation) for conversation in conversations]
    check_fit(texts, context_tokens=max_positions(run.policy.model), field=str(file))
    found = project(run, texts, Direction.of(vector, block=chosen), parts=READ)
    if not run.world.is_main:
        return
    rows = [
        {
            "row": number,
            "trait": vectors.origin.trait,
            "block": chosen,
            "response": None if conversation.answer is None else of_text["response"].as_row(),
            "last_prompt": of_text["last_prompt"].as_row(),
        }
        for number, (conversation, of_text) in enumerate(zip(conversations, found, strict=True), start=1)
    ]
    target = output or run.folder.path / "persona" / f"{path.stem}_on_{file.stem}.jsonl"
    with named_disk_errors(target, then="and project again"):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, "".join(json.dumps(row) + "\n" for row in rows))
    answered = [of_text["response"] for c, of_text in zip(conversations, found, strict=True) if c.answer is not None]
    run.console.print(_table({"response": answered, "last_prompt": [of_text["last_prompt"] for of_text in found]}))
    run.console.say(f"{len(rows):,} rows at block {chosen}: {target}")


def _table(of_parts: dict[Over, list[Projected]]) -> Table:
    table = Table("part", title="projections over rows", title_justify="left")
    for column in ("rows", "mean", "s.d.", "s.d. along random directions"):
        table.add_column(column, justify="right")
    for over, found in of_parts.items():
        if len(found) > 1:
            own = [projected.own for projected in found]
            random = [stdev(column) for column in zip(*(projected.random for projected in found), strict=True)]
            table.add_row(over, str(len(found)), f"{fmean(own):.3f}", f"{stdev(own):.3f}", f"{fmean(random):.3f}")
    return table
