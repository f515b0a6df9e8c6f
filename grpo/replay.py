"""`grpo replay`: a rollout of a run, drawn and judged again, beside what the run recorded of it.

Noise is counted and a resume is exact, so the newest checkpoint before a step, and the steps in between done again,
give every rollout of it. All groups of the step are drawn as in training, since neighbours in a batch decide how sums
round. Nothing is written in the run's folder, and another process may go on with the run meanwhile."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from grpo import checkpoint
from grpo.chat import Chat
from grpo.config import RunConfig
from grpo.errors import CheckpointError, ConfigError, DataError, ReplayError
from grpo.folder import RunFolder
from grpo.manifest import MANIFEST_FILE, read_manifest
from grpo.profiling import Profile, profile_of
from grpo.recipe import trainer_of
from grpo.starts import Run, layout, load_start, take_up
from grpo.tracking.metrics import rollout_rows
from grpo.tracking.recorded_run import Row, read_jsonl
from grpo.trainer import Trainer
from grpo.types import Group

SAME_FIELDS = ("temperature", "stop_reason", "reward", "status", "parts")
"""Fields of a row, beside its tokens, in which a rollout that was drawn again has to be the recorded one."""
READ_FIELDS = (*SAME_FIELDS, "problem_id", "attempt", "token_ids", "logprobs", "detail")
MARKER = "[[differs from here]]"
MAX_NAMED = 5
ONE_RANK = {"number": 1, "strategy": "ddp"}


@dataclass(frozen=True, slots=True)
class Asked:
    """Which rollout is wanted, and its recorded row; None where the run keeps none of this step."""

    step: int  # from 1
    problem: str  # an id; where nothing is recorded, perhaps only its beginning
    attempt: int
    path: Path  # of the step's recorded rollouts
    recorded: Row | None


@dataclass(frozen=True, slots=True)
class Source:
    """Where the policy that draws comes from."""

    checkpoint: Path | None  # None: the policy that training starts from
    num_redone_steps: int
    ranks: dict[str, Any]  # that the run had; see `layout`


@dataclass(frozen=True, slots=True)
class Replayed:
    """A rollout that was drawn again, as a row of rollouts/step_N.jsonl, and the one that was recorded."""

    asked: Asked
    source: Source
    row: Row
    prompt: str  # as the policy saw it
    chat: Chat

    @property
    def first_difference(self) -> int | None:
        """The place of the first token, from 0, that is not the recorded one, or that only one of both has."""
        if self.asked.recorded is None or self.asked.recorded["token_ids"] == self.row["token_ids"]:
            return None
        pairs = zip(self.asked.recorded["token_ids"], self.row["token_ids"], strict=False)
        same = [recorded == drawn for recorded, drawn in pairs]
        return same.index(False) if False in same else len(same)

    @property
    def logprob_gap(self) -> float:
        """The largest difference between log-probs of tokens up to the first that differs, in nats."""
        assert self.asked.recorded is not None
        both = zip(self.asked.recorded["logprobs"], self.row["logprobs"], strict=False)
        gaps = [abs(recorded - drawn) for recorded, drawn in both]
        return max(gaps[: self.first_difference], default=0.0)

    @property
    def differences(self) -> tuple[str, ...]:
        """What differs from the recorded row: a token by its number from 1, and the names of other fields."""
        recorded, first = self.asked.recorded, self.first_difference
        if recorded is None:
            return ()
        token = [] if first is None else [f"token {first + 1}"]
        return (*token, *(name for name in SAME_FIELDS if recorded[name] != self.row[name]))

    def check(self) -> None:
        """Raises ReplayError where the rollout is not the recorded one."""
        if self.differences:
            differing = ", ".join(self.differences)
            raise ReplayError(f"not the rollout that {self.asked.path} records: it differs in {differing}")


def check_engine(config: RunConfig, folder: RunFolder, *, overrides: Sequence[str]) -> None:
    """Raises ConfigError where nothing can draw the run's tokens again, or where a replay would hand its weights to
    servers that no one of `overrides` names. Loads nothing."""
    own = config.sampling.vllm
    if config.sampling.engine != "vllm":
        return
    recorded = f"what was recorded is in {folder.rollouts}"
    if own.seeds == "engine" and own.mode == "server":
        raise ConfigError(
            "sampling.vllm.seeds = 'engine' and mode = 'server': the server's own generator drew, and nothing draws "
            f"its tokens again; {recorded}"
        )
    num_ranks = _ranks(folder.checkpoints)["number"]
    if own.seeds == "engine" and num_ranks > 1:
        raise ConfigError(
            f"sampling.vllm.seeds = 'engine' on {num_ranks} ranks: each drew its share from a generator of its own, "
            f"and one process draws none of them again; {recorded}"
        )
    if own.mode == "server" and not any(text.split("=")[0].strip() == "sampling.vllm.urls" for text in overrides):
        raise ConfigError(
            f"sampling.vllm.urls = {own.urls}: a replay hands its weights to the servers, and who draws from them "
            "would draw from those; name servers that nobody draws from behind INDEX, as "
            "sampling.vllm.urls=[http://HOST:PORT]"
        )


def find(folder: RunFolder, *, step: int, problem: str, attempt: int, say: Callable[[str], None]) -> Asked:
    """What is asked for, checked against what the run recorded. Raises ConfigError that names what there is.

    `problem` is an id, or a beginning that no other problem of the step has. DataError for a row that is no row."""
    last = _last_step(folder)
    if last == 0:
        raise ConfigError(f"{folder.path}: no step of a training is recorded there; `grpo train` does them")
    if not 1 <= step <= last:
        raise ConfigError(f"STEP {step}: {folder.path} has done steps 1 to {last}; name one of them")
    path = folder.rollouts / f"step_{step:06d}.jsonl"
    notes: list[str] = []
    rows = read_jsonl(path, notes=notes)
    for note in notes:
        say(note)
    if not rows:
        return Asked(step=step, problem=problem, attempt=attempt, path=path, recorded=None)
    for row in rows:
        missing = [name for name in READ_FIELDS if name not in row]
        if missing:
            raise DataError(f"{path}: a row has no {missing[0]}, so nothing compares with it; move the file away")
    problem_id = _resolved(problem, (row["problem_id"] for row in rows), step=step)
    of_problem = {row["attempt"]: row for row in rows if row["problem_id"] == problem_id}
    _check_attempt(attempt, of_problem, problem_id=problem_id, step=step)
    return Asked(step=step, problem=problem_id, attempt=attempt, path=path, recorded=of_problem[attempt])


def replay(run: Run, asked: Asked, *, say: Callable[[str], None]) -> Replayed:
    """Draw the asked rollout again. `say` is told of each step that is done again and of torn checkpoints.

    Raises ConfigError where nothing is recorded and the step has no such rollout, ReplayError where it is recorded and
    the step as it is drawn again has not, CheckpointError where the policy cannot be had."""
    if asked.recorded is None and not any(problem.id.startswith(asked.problem) for problem in run.train):
        raise _unknown(asked.problem, [problem.id for problem in run.train], place="data.train")
    trainer = trainer_of(run, writer=checkpoint.SilentWriter(), reprofile=partial(_recorded_labels, run))
    source = _take_up(trainer, run, before=asked.step, say=say)
    first = asked.step - source.num_redone_steps
    for step in range(first, asked.step):
        say(f"doing step {step} again ({step - first + 1} of {source.num_redone_steps})")
        trainer.step()
    say(f"drawing step {asked.step}")
    groups = trainer.draw()
    group, place = _picked(groups, asked)
    rollout = group.rollouts[place]
    (row,) = (row for row in _rows(group, step=asked.step) if row["attempt"] == rollout.attempt)
    prompt_ids = rollout.token_ids[: rollout.action_mask.index(True)]
    return Replayed(asked=asked, source=source, row=row, prompt=_decoded(run.chat, prompt_ids), chat=run.chat)


def lines(replayed: Replayed) -> Iterator[str]:
    """All of it for people to read, what differs at the end."""
    row, asked, source = replayed.row, replayed.asked, replayed.source
    start = "the policy that training starts from" if source.checkpoint is None else str(source.checkpoint)
    again = {0: "no step done again", 1: "1 step done again"}.get(
        source.num_redone_steps, f"{source.num_redone_steps} steps done again"
    )
    yield f"step {asked.step}, problem {row['problem_id']}, rollout {row['attempt']}"
    yield f"policy       {start}, {again}"
    if source.ranks != ONE_RANK:
        yield f"ranks        the run had {layout(source.ranks)}, and this is one process: sums may round differently"
    yield f"temperature  {row['temperature']}"
    if asked.recorded is not None and asked.recorded.get("reused"):
        yield "drawn by     the profile: the step took its group up, and so does this one, from the profile's store"
    yield from _block("prompt", replayed.prompt)
    yield from _block(f"completion, {row['num_tokens']} tokens, ended by {row['stop_reason']}", _marked(replayed))
    yield f"answer       {printable(row['answer'])}"
    yield f"reward       {row['reward']} ({row['status']})"
    yield f"parts        {json.dumps(row['parts'])}"
    if row["detail"]:
        yield f"detail       {printable(row['detail'])}"
    yield f"{'token':>7}  {'id':>7}  {'log-prob':>12}  text"
    for number, (token, logprob) in enumerate(zip(row["token_ids"], row["logprobs"], strict=True), start=1):
        yield f"{number:>7}  {_token(token, logprob, chat=replayed.chat)}"
    yield from _comparison(replayed)


def _comparison(replayed: Replayed) -> Iterator[str]:
    row, recorded, path = replayed.row, replayed.asked.recorded, replayed.asked.path
    if recorded is None:
        yield (
            f"nothing to compare with: there is no {path} (the newest tracking.rollout_files steps keep their rollouts)"
        )
        return
    first, gap = replayed.first_difference, f"log-probs differ by at most {replayed.logprob_gap:.3g} nats"
    if first is None:
        yield f"{path}: the same, token for token; {gap}"
    else:
        yield f"{path}: token {first + 1} differs; before it {gap}"
        for name, of in (("recorded", recorded), ("drawn again", row)):
            ids, logprobs = of["token_ids"], of["logprobs"]
            ended = f"no token: it ended after {len(ids)}"
            token = _token(ids[first], logprobs[first], chat=replayed.chat) if first < len(ids) else ended
            yield f"  {name:<12} {token}"
    other = [name for name in replayed.differences if name in SAME_FIELDS]
    if recorded["detail"] != row["detail"]:
        other.append("detail")
    for name in other:
        yield f"  {name}: recorded {printable(str(recorded[name]))}, drawn again {printable(str(row[name]))}"
    if not set(other) & {"reward", "status", "parts"}:
        yield "  reward the same"


def _recorded_labels(run: Run, step: int, temperature: float) -> Profile:
    """The labels that the run made after `step` steps, as it recorded them: nothing is drawn or written for them."""
    path = run.folder.profile / f"step_{step:06d}" / MANIFEST_FILE
    if not path.is_file():
        raise ConfigError(f"{path}: the labels of a profile on the way are not there, and later steps rest on them")
    return profile_of(read_manifest(path))


def _last_step(folder: RunFolder) -> int:
    """The last step that left something: its metrics, or its rollouts alone where it lost too many verdicts."""
    logged = [row["step"] for row in read_jsonl(folder.metrics, notes=[]) if isinstance(row.get("step"), int)]
    found = [re.fullmatch(r"step_(\d+)\.jsonl", path.name) for path in folder.rollouts.glob("step_*.jsonl")]
    return max([*logged, *(int(match[1]) for match in found if match)], default=0)


def _take_up(trainer: Trainer, run: Run, *, before: int, say: Callable[[str], None]) -> Source:
    """Put the trainer where it was at the newest whole checkpoint that step `before` comes after, or at its start."""
    folder = run.folder.checkpoints
    path, faults = checkpoint.newest_whole(folder, last_step=before - 1)
    for fault in faults:
        say(f"passed over: {fault}")
    try:
        if path is not None:
            ranks = take_up(trainer, path)
            done = int(path.name.removeprefix("step_"))
        else:
            load_start(run)
            ranks, done = _ranks(folder), 0
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error.filename}: was deleted while it was read, since its run goes on and keeps checkpoint.keep_last "
            "alone; replay again"
        ) from error
    return Source(checkpoint=path, num_redone_steps=before - 1 - done, ranks=ranks)


def _ranks(checkpoints: Path) -> dict[str, Any]:
    """The ranks of the run, from its newest checkpoint; one where it has none."""
    path, _ = checkpoint.newest_whole(checkpoints)
    if path is None:
        return ONE_RANK
    ranks: dict[str, Any] = json.loads((path / checkpoint.STATE).read_text(encoding="utf-8"))["ranks"]
    return ranks


def _picked(groups: Sequence[Group], asked: Asked) -> tuple[Group, int]:
    """The group that holds the asked rollout, and its place there. A small pool can give a problem twice in a step."""
    ids = [group.problem.id for group in groups]
    problem_id = _resolved(asked.problem, ids, step=asked.step) if asked.recorded is None else asked.problem
    places = {
        rollout.attempt: (group, place)
        for group in groups
        if group.problem.id == problem_id
        for place, rollout in enumerate(group.rollouts)
    }
    if asked.recorded is None:
        _check_attempt(asked.attempt, places, problem_id=problem_id, step=asked.step)
    elif asked.attempt not in places:
        raise ReplayError(
            f"not the step that {asked.path} records: drawn again, it has no rollout {asked.attempt} of problem "
            f"{problem_id}; its problems are {_some(ids)}"
        )
    return places[asked.attempt]


def _rows(group: Group, *, step: int) -> list[Row]:
    """The group as the run records one: what JSON does to a row is done to both that are compared."""
    rows = rollout_rows([group], step=step, stage="", tier_of=lambda problem_id: None, advantages={}, reused=[False])
    return [json.loads(json.dumps(row)) for row in rows]


def _resolved(problem: str, problem_ids: Iterable[str], *, step: int) -> str:
    ids = list(dict.fromkeys(problem_ids))
    if problem in ids:
        return problem
    found = [problem_id for problem_id in ids if problem_id.startswith(problem)]
    if not found:
        raise _unknown(problem, ids, place=f"step {step}")
    if len(found) > 1:
        raise ConfigError(f"PROBLEM {problem}: begins {len(found)} problems of step {step}: {_some(found)}; write more")
    return found[0]


def _unknown(problem: str, ids: Sequence[str], *, place: str) -> ConfigError:
    return ConfigError(f"PROBLEM {problem}: {place} has no such problem; it has {_some(ids)}")


def _check_attempt(attempt: int, attempts: Iterable[int], *, problem_id: str, step: int) -> None:
    there = sorted(attempts)
    if attempt not in there:
        raise ConfigError(
            f"INDEX {attempt}: step {step} has rollouts {there[0]} to {there[-1]} of problem {problem_id}; name one of "
            "them"
        )


def _some(names: Iterable[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = len(unique) - MAX_NAMED
    return ", ".join(unique[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _marked(replayed: Replayed) -> str:
    """The completion, with a mark where it leaves the recorded one."""
    first, ids = replayed.first_difference, replayed.row["token_ids"]
    if first is None:
        return str(replayed.row["completion"])
    return f"{replayed.chat.text(ids[:first])}{MARKER}{replayed.chat.text(ids[first:])}"


def _token(token: int, logprob: float, *, chat: Chat) -> str:
    return f"{token:>7}  {logprob:>12.6f}  {_decoded(chat, [token])!r}"


def _decoded(chat: Chat, ids: Sequence[int]) -> str:
    return str(chat.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _block(title: str, text: str) -> Iterator[str]:
    yield title
    yield from (f"  {line}" for line in printable(text).split("\n"))


def printable(text: str) -> str:
    """The text without what a terminal would obey: a policy writes whatever it likes."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)
