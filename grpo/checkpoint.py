"""Checkpoints that are there as a whole or not at all: written beside, synced, renamed; every file's checksum kept.

This file knows names and bytes. What survives a restart is decided by who hands in `state`: each stateful object's
own state_dict."""

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from grpo.errors import CheckpointError
from grpo.folder import named_disk_errors

ASIDE = ".old.tmp"
WEIGHTS, OPTIMIZER, STATE, MANIFEST = "policy.safetensors", "optimizer.pt", "state.json", "manifest.json"


def save(
    path: Path, *, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any] | None, state: Mapping[str, Any]
) -> None:
    """Write a checkpoint folder at `path`, replacing one that is there. Raises DiskError; then nothing has changed."""
    temporary = path.with_name(f".{path.name}.tmp")
    with named_disk_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            with _plain_disk_errors():
                save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary / WEIGHTS)
                if optimizer is not None:
                    # Through a file of ours: with a path, torch does not say why it could not write.
                    with (temporary / OPTIMIZER).open("wb") as moments:
                        torch.save(optimizer, moments)
            (temporary / STATE).write_text(json.dumps(state), encoding="utf-8")
            sums = {file.name: _sha256(file) for file in sorted(temporary.iterdir())}
            (temporary / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
            for file in temporary.iterdir():
                _sync(file)
            _sync(temporary)
            # A folder of this name is the same step of the same run, written before a resume from an earlier one. It
            # steps aside whole: a kill in between leaves it for `recover`.
            aside = path.with_name(f".{path.name}{ASIDE}")
            shutil.rmtree(aside, ignore_errors=True)
            if path.exists():
                path.rename(aside)
            temporary.rename(path)
            _sync(path.parent)
            shutil.rmtree(aside, ignore_errors=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


class Writer:
    """Writes checkpoints beside the loop, one after another: who saves waits for a copy of the state, not for a disk.

    Used as a context manager, at whose end everything is written."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def write(self, job: Callable[[], None]) -> None:
        """Begin `job` once the one before is done. Raises what that one raised, such as DiskError."""
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(job,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until everything is written. Raises what the job raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what a job that is done has raised; wait for none."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()  # the run has its error already

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error


class SilentWriter(Writer):
    """The writer of who only looks at a run: it takes every job, and does none."""

    def write(self, job: Callable[[], None]) -> None:
        pass


def load(path: Path, *, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any] | None, dict[str, Any]]:
    """Weights, optimizer state (None where there is none) and state. Raises CheckpointError as `check` does."""
    check(path)
    optimizer = None
    if (path / OPTIMIZER).is_file():
        # Mapped, as safetensors maps the weights: the ranks of a node read one copy, which is none of their memory.
        optimizer = torch.load(path / OPTIMIZER, map_location=device, weights_only=True, mmap=True)
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    return load_file(path / WEIGHTS, device=str(device)), optimizer, state


def check(path: Path) -> None:
    """Raises CheckpointError, naming the file, unless the checkpoint is whole and unaltered."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{path}: no checkpoint (there is no {MANIFEST}); name another one")
    try:
        sums: dict[str, str] = json.loads(manifest.read_bytes())
        listed = {WEIGHTS, STATE} <= sums.keys()
    except (ValueError, AttributeError):  # no JSON, or JSON that is no mapping
        listed = False
    if not listed:
        raise CheckpointError(f"{path}: {MANIFEST} was altered after it was written; delete it to use the one before")
    for name, expected in sums.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path}: torn, {name} is missing; delete it to use the one before")
        if _sha256(path / name) != expected:
            raise CheckpointError(f"{path}: {name} was altered after it was written; delete it to use the one before")


def is_whole(path: Path) -> bool:
    """Whether `check` finds nothing wrong."""
    try:
        check(path)
    except CheckpointError:
        return False
    return True


def steps(folder: Path) -> list[tuple[int, Path]]:
    """Step checkpoints under `folder`, oldest first."""
    matches = [(re.fullmatch(r"step_(\d+)", path.name), path) for path in folder.glob("step_*")]
    return sorted((int(match.group(1)), path) for match, path in matches if match)


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return folder / f"step_{step:06d}"


def recover(folder: Path) -> None:
    """Give a checkpoint its name back that stepped aside for one that a kill kept from taking its place."""
    for aside in folder.glob(f".*{ASIDE}"):
        path = folder / aside.name.removeprefix(".").removesuffix(ASIDE)
        if not path.exists():
            aside.rename(path)


def newest_whole(folder: Path, *, last_step: int | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with newer ones; of those up to `last_step`, if given."""
    faults = []
    for step, path in reversed(steps(folder)):
        if last_step is not None and step > last_step:
            continue
        try:
            check(path)
        except CheckpointError as error:
            faults.append(str(error))
        else:
            return path, faults
    return None, faults


def best_path(folder: Path, step: int) -> Path:
    """Where the policy after `step` steps lies when it is the best so far."""
    return folder / f"best_{step:06d}"


def prune(folder: Path, *, last_step: int, keep_last: int, best: Path | None) -> None:
    """Delete all but the checkpoints of the `keep_last` newest steps up to `last_step`, and `best`.

    Later steps go too: the run resumed before them because they were torn, and would count them as its newest."""
    kept = [path for step, path in steps(folder) if step <= last_step][-keep_last:]
    for path in [*(path for _, path in steps(folder)), *folder.glob("best_*"), *folder.glob(".*.tmp")]:
        if path not in kept and path != best:
            shutil.rmtree(path)


def weights_of(policy: nn.Module) -> dict[str, Tensor]:
    """The weights that training changes: all of them, or the adapters alone where those are what is trained."""
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    state = policy.state_dict(keep_vars=True)
    buffers = {name for name, tensor in state.items() if not isinstance(tensor, nn.Parameter)}
    frozen_base = any(not parameter.requires_grad for parameter in policy.parameters())
    wanted = trained if frozen_base else trained | buffers
    seen: dict[int, str] = {}  # tied weights are one tensor under two names; safetensors holds it once
    return {
        name: tensor.detach()
        for name, tensor in state.items()
        if name in wanted and seen.setdefault(id(tensor), name) == name
    }


def load_weights(policy: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put what `weights_of` took back in place. Raises CheckpointError where names or shapes differ."""
    expected = weights_of(policy)
    wrong = sorted(set(weights) ^ set(expected)) or [n for n in weights if weights[n].shape != expected[n].shape]
    if wrong:
        raise CheckpointError(
            f"the checkpoint is of another model: {wrong[0]} differs ({len(wrong)} in all); resume with the model that "
            "wrote it, or --fresh to start again"
        )
    policy.load_state_dict(dict(weights), strict=False)


@contextmanager
def _plain_disk_errors() -> Iterator[None]:
    """Give back the OSError behind what torch (which chains it) and safetensors (which quotes its number) raise."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        quoted = re.search(r"os error (\d+)", str(error))
        if cause is None and quoted:
            cause = OSError(int(quoted[1]), os.strerror(int(quoted[1])))
        if cause is None:
            raise
        raise cause from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
