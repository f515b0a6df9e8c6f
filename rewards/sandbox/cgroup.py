"""Memory and pids cgroups for boxes, one each, where this process may make them: version 2 or 1.

What a limit per process leaves open they close: how much the processes of a box hold together. Knows no box: a box's
first process enters by writing to the files that a Cgroup holds."""

from __future__ import annotations

import fcntl
import itertools
import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from rewards.sandbox.limits import Limits

NAME = "reward-box"
MB = 1024 * 1024
SPARE_MB = 32
"""For what the kernel itself holds on behalf of a box: page tables, pipes, buffers."""
SPARE_PROCESSES = 8
"""Beyond the exact limit, which RLIMIT_NPROC holds: the keeper, and ended processes that are still counted."""
REMOVAL_SECONDS = 2.0


@dataclass
class Cgroup:
    """One folder in each hierarchy, its process file open for a first process to write to, and locked while in use by
    this process: a folder that nobody holds a lock on is left from a process that was killed."""

    folders: list[Path]
    process_files: list[int] = field(default_factory=list)
    locks: list[int] = field(default_factory=list)
    limits: Limits | None = None


class Cgroups:
    """The cgroups of one Sandbox: made when one more is needed, used again, removed at the end."""

    def __init__(self, parents: list[Path]) -> None:
        """`parents`: the folder to make them in, in each hierarchy."""
        self.parents = parents
        self._free: deque[Cgroup] = deque()
        self._numbers = itertools.count()

    def take(self, limits: Limits) -> Cgroup:
        """An empty one with these limits. Raises OSError where cgroups cannot be made or do not take a limit."""
        cgroup = self._free.popleft() if self._free else self._make()
        if cgroup.limits != limits:
            for folder in cgroup.folders:
                _set_limits(folder, limits)
            cgroup.limits = limits
        return cgroup

    def give_back(self, cgroup: Cgroup) -> None:
        """For the next box. The processes in it have ended."""
        self._free.append(cgroup)

    def close(self) -> None:
        """Remove all that were given back."""
        while self._free:
            self._remove(self._free.popleft())

    def _make(self) -> Cgroup:
        number = next(self._numbers)
        cgroup = Cgroup([parent / f"{NAME}-{os.getpid()}-{id(self):x}-{number}" for parent in self.parents])
        try:
            for folder in cgroup.folders:
                folder.mkdir()
                cgroup.locks.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
                fcntl.flock(cgroup.locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
                cgroup.process_files.append(os.open(folder / "cgroup.procs", os.O_WRONLY))
        except BaseException:
            self._remove(cgroup)
            raise
        return cgroup

    def _remove(self, cgroup: Cgroup) -> None:
        for descriptor in (*cgroup.process_files, *cgroup.locks):
            os.close(descriptor)
        deadline_seconds = time.monotonic() + REMOVAL_SECONDS
        for folder in cgroup.folders:
            while not _remove_folder(folder) and time.monotonic() < deadline_seconds:
                time.sleep(0.01)  # the last process has ended and is not yet forgotten


def find_cgroups(*, mounts: str, memberships: str) -> Cgroups | None:
    """The place for cgroups, by the texts of /proc/self/mountinfo and /proc/self/cgroup; None where there is none.

    That it can be written to shows with the first box. What killed processes left there is removed."""
    parents = _parents(mounts, memberships)
    for parent in parents:
        for folder in parent.glob(f"{NAME}-*"):
            _remove_if_left(folder)
    return Cgroups(parents) if parents else None


def _parents(mounts: str, memberships: str) -> list[Path]:
    """In version 2 a folder whose children have both controllers: this process's own, or the one above, for one with
    processes can have none. In version 1 this process's own in each hierarchy."""
    paths: dict[str, str] = {}
    for row in memberships.splitlines():
        _, controllers, path = row.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    version_1: list[Path] = []
    for row in mounts.splitlines():
        left, _, right = row.partition(" - ")
        root, place = left.split()[3:5]
        kind, _, options = right.split()[:3]
        if kind == "cgroup2" and "" in paths:
            own = _below(paths[""], root=root, place=place)
            for folder in (own, own.parent):
                if folder.is_relative_to(place) and _gives_controllers(folder):
                    return [folder]
        if kind == "cgroup":
            for controller in ("memory", "pids"):
                if controller in options.split(",") and controller in paths:
                    version_1.append(_below(paths[controller], root=root, place=place))
    return [folder for folder in dict.fromkeys(version_1) if os.access(folder, os.W_OK)]


def _below(path: str, *, root: str, place: str) -> Path:
    """The folder of a cgroup, where the cgroup `root` is mounted at `place`."""
    return Path(place) / (os.path.relpath(path, root) if path.startswith(root) else ".")


def _gives_controllers(folder: Path) -> bool:
    file = folder / "cgroup.subtree_control"
    return file.exists() and {"memory", "pids"} <= set(file.read_text().split()) and os.access(folder, os.W_OK)


def _set_limits(folder: Path, limits: Limits) -> None:
    """Whatever of these the hierarchy has; the memory of all processes and the scratch folder together."""
    num_bytes = (limits.memory_mb + limits.scratch_mb + SPARE_MB) * MB
    for name, value in (
        ("memory.max", num_bytes),
        ("memory.swap.max", 0),
        ("memory.limit_in_bytes", num_bytes),
        ("memory.swappiness", 0),
        ("pids.max", limits.processes + SPARE_PROCESSES),
    ):
        if (folder / name).exists():
            (folder / name).write_text(str(value))


def _remove_if_left(folder: Path) -> None:
    """Remove a cgroup whose maker is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return  # another process was faster
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_folder(folder)
    except BlockingIOError:
        pass  # in use
    finally:
        os.close(descriptor)


def _remove_folder(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
