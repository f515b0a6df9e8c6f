"""Groups that a profile drew, kept for training: a problem's first group costs no token where its profile has one.

They lie beside the profile's shards: JSON lines, a group a line, in one file for each rank that drew, read at a line's
place when its problem is practised. Successes of the later waves, which took many draws to find, are written beside
them as traces for the next cold start (the iterative distillation of arXiv 2508.06471)."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grpo.errors import RunFolderError
from grpo.folder import named_disk_errors
from grpo.types import Group, KeptSets, Problem, Rollout, StopReason
from rewards import Reward, Status

GROUPS, TRACES = "groups_rank_{:04d}.jsonl", "successes_rank_{:04d}.jsonl"
ROW_BEGINS = b'{"problem_id": "'
BLOCK_BYTES = 2**16


class StockWriter:
    """Adds to a rank's files in one folder. What is added twice, by a profile that was killed, is the same twice.

    Made where no other process writes to them, since it cuts off what a killed one left of a line."""

    def __init__(self, folder: Path, *, first_rollouts: int, rank: int = 0) -> None:
        """A problem's first `first_rollouts` attempts are its group, and later successes are traces."""
        self._folder, self._first_rollouts = folder, first_rollouts
        self._groups, self._traces = folder / GROUPS.format(rank), folder / TRACES.format(rank)
        for path in (self._groups, self._traces):
            _cut_torn_line(path)

    def add(self, group: Group) -> None:
        """Keep what training can use of a group of the profile. Raises DiskError."""
        if group.rollouts[0].attempt == 0 and len(group.rollouts) == self._first_rollouts:
            if not group.degenerate:
                self._append(self._groups, [_as_row(group)])
        elif group.rollouts[0].attempt >= self._first_rollouts:
            self._append(self._traces, _traces(group))

    def _append(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if text:
            with named_disk_errors(path), path.open("a", encoding="utf-8") as file:
                file.write(text)


class Stock:
    """The groups in a folder that no step has used yet.

    Like a curriculum's, its state is that of the last step's end: what the step under way took is settled then."""

    def __init__(self, places: Mapping[str, tuple[Path, int]], *, gone: Path | None = None) -> None:
        """`places` says in which file, and where in it, the line of each problem begins; `gone` is the folder that
        should be there and is not."""
        self._places = dict(places)
        self._gone = gone
        self._used: set[str] = set()
        self._taken: set[str] = set()  # by the step under way

    @classmethod
    def empty(cls) -> "Stock":
        """One that has nothing."""
        return cls({})

    @classmethod
    def opened(cls, folder: Path) -> "Stock":
        """What writers left in `folder`; nothing where they left nothing. A torn last line is left out.

        Where there is no such folder it is `take` that raises: past the steps that take groups nobody misses it."""
        if not folder.is_dir():
            return cls({}, gone=folder)
        places: dict[str, tuple[Path, int]] = {}
        for path in sorted(folder.glob(GROUPS.replace("{:04d}", "*"))):
            with path.open("rb") as lines:
                start = 0
                for line in lines:
                    if line.endswith(b"\n"):
                        places.setdefault(_problem_id(line), (path, start))
                    start += len(line)
        return cls(places)

    def take(self, problem: Problem, *, success_threshold: float) -> Group | None:
        """The problem's group, once; None where there is none or it was used.

        Raises RunFolderError where the folder is gone."""
        if self._gone is not None:
            raise RunFolderError(
                f"{self._gone}: the folder of the profile's groups is gone, and steps before profile.reuse_steps train "
                "on them; restore it (profile.folder), or `grpo train --fresh` with profile.reuse_steps=0"
            )
        if problem.id not in self._places or problem.id in self._used or problem.id in self._taken:
            return None
        self._taken.add(problem.id)
        path, start = self._places[problem.id]
        with path.open("rb") as file:
            file.seek(start)
            return _group(json.loads(file.readline()), problem, success_threshold=success_threshold)

    def end_step(self, used: Iterable[str]) -> None:
        """Of what the step took, the groups of the problems `used` were trained on; the others stay."""
        self._used |= set(used)
        self._taken.clear()

    def state_dict(self) -> dict[str, Any]:
        """As of the last `end_step`, as JSON can hold it."""
        return {"used": sorted(self._used)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._used, self._taken = set(state["used"]), set()


def _cut_torn_line(path: Path) -> None:
    """Drop what follows the last whole line, so that the next one begins a line of its own.

    The end of that line is looked for from the end of the file, which may be of gigabytes."""
    if not path.is_file():
        return
    with named_disk_errors(path), path.open("r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - BLOCK_BYTES)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _problem_id(line: bytes) -> str:
    """The problem of a row of GROUPS: its first field, so that the megabytes after it are not read as JSON."""
    end = line.find(b'"', len(ROW_BEGINS))
    name = line[len(ROW_BEGINS) : end]
    if line.startswith(ROW_BEGINS) and end > 0 and b"\\" not in name:  # else the id is written with escapes
        return name.decode()
    row: dict[str, Any] = json.loads(line)
    return str(row["problem_id"])


def _traces(group: Group) -> list[dict[str, Any]]:
    """The right completions of a group, as rows that the section sft reads."""
    messages = [{"role": message.role, "content": message.content} for message in group.problem.messages]
    return [
        {
            "problem_id": group.problem.id,
            "attempt": rollout.attempt,
            "messages": messages,
            "prompt": group.problem.prompt,
            "answer": group.problem.answer,
            "trace": completion,
            "num_tokens": rollout.num_actions,
        }
        for rollout, completion, correct in zip(group.rollouts, group.completions, group.correct, strict=True)
        if correct
    ]


def _as_row(group: Group) -> dict[str, Any]:
    return {
        "problem_id": group.problem.id,
        "rollouts": [
            {
                "attempt": rollout.attempt,
                "token_ids": list(rollout.token_ids),
                "action_mask": [int(action) for action in rollout.action_mask],
                "logprobs": list(rollout.logprobs),
                "kept": None if rollout.kept is None else [list(ids) for ids in rollout.kept],
                "stop_reason": str(rollout.stop_reason),
                "temperature": rollout.temperature,
                "policy_step": rollout.policy_step,
            }
            for rollout in group.rollouts
        ],
        "completions": list(group.completions),
        "rewards": [
            {"value": r.value, "status": str(r.status), "parts": dict(r.parts), "detail": r.detail}
            for r in group.rewards
        ],
    }


def _group(row: Mapping[str, Any], problem: Problem, *, success_threshold: float) -> Group:
    return Group(
        problem=problem,
        rollouts=tuple(
            Rollout(
                problem_id=problem.id,
                attempt=r["attempt"],
                token_ids=tuple(r["token_ids"]),
                action_mask=tuple(bool(action) for action in r["action_mask"]),
                logprobs=tuple(r["logprobs"]),
                kept=None if r["kept"] is None else KeptSets.of(r["kept"]),
                stop_reason=StopReason(r["stop_reason"]),
                temperature=r["temperature"],
                policy_step=r["policy_step"],
            )
            for r in row["rollouts"]
        ),
        completions=tuple(row["completions"]),
        rewards=tuple(
            Reward(value=r["value"], status=Status(r["status"]), parts=r["parts"], detail=r["detail"])
            for r in row["rewards"]
        ),
        success_threshold=success_threshold,
    )
