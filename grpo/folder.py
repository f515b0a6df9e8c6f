"""The folder of a run: where everything lies, who may write to it, and which phases it already holds.

A folder belongs to one config, to the problems that its sources held, and to one process at a time. The lock is the
operating system's, so it ends with its owner, however that ends."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from grpo.config import AppliedVectors, RunConfig, WatchConfig, dump, fingerprint, load
from grpo.errors import ConfigError, DiskError, RunFolderError

Phase = Literal["sft", "profile", "train", "eval", "report"]
PHASES: tuple[Phase, ...] = ("sft", "profile", "train", "eval", "report")
Start = Literal["new", "resume", "fresh"]

COLD_START = "cold_start"
PROBLEM_IDS = ".problem_ids"  # ends a name in the fingerprint: a source can hold other rows and be called the same
CONTENT = ".content"  # likewise: a file can be another and have the same path
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
RESUME = "then add --resume (the last checkpoint is whole)"
_EVERY = ("run", "model", "chat", "data", "sampling", "reward")
# The fields that each phase's results rest on: what a phase that stays was made with must not change.
FIELDS: dict[Phase, tuple[str, ...]] = {
    "sft": (*_EVERY, "sft"),
    "profile": (
        *(*_EVERY, "temperature.value"),
        *(f"profile.{name}" for name in ("first_rollouts", "max_rollouts", "relabel_rollouts", "trivial_rate")),
        "profile.max_problems",
    ),
    "train": (
        *(*_EVERY, "profile.reuse_steps", "profile.folder", "temperature", "curriculum", "train"),
        *("advantage", "loss", "steering", "optim", "evaluation.every_steps"),
        *("persona.watch", "persona.measure_rollouts_per_step"),
        *("persona.reextract_every_steps", "persona.reextract_steers"),
    ),
    # A file says of each checkpoint and set what it rests on: more are added, and what has changed is done again.
    "eval": (*_EVERY, "evaluation.rollouts_per_problem", "evaluation.temperature"),
    "report": (),
}
# Of the evaluations on the validation problems. What k they are told for decides nothing.
LOOKS: dict[Phase, tuple[str, ...]] = {
    "sft": ("evaluation.temperature",),
    "train": tuple(f"evaluation.{name}" for name in ("validation_rollouts", "temperature", "patience")),
}


class RunFolder:
    """Paths of one run. Opened by the main rank with `opened`, which locks it and checks that it is the config's own.
    Other ranks look at it with `followed`: it lies where every node sees it."""

    def __init__(self, path: Path, *, rank: int = 0) -> None:
        """What `rank` sees of the folder. Rank 0 opens and writes it; others only read, and write their own log."""
        self.path = path
        self._is_main = rank == 0
        self.checkpoints = path / "checkpoints"
        self.profile = path / "profile"
        self.evals = path / "evals"
        self.rollouts = path / "rollouts"
        self.vocabulary = path / "vocabulary.json"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.trained = path / "train.json"
        self.report = path / "report.html"
        self.tensorboard = path / "tensorboard"
        self.tracking_id = path / "tracking_id.txt"
        self.skipped = path / "skipped"
        self.log = path / "logs" / f"rank_{rank}.log"
        self.config = path / "config.yaml"
        self._lock = path / ".lock"
        self._fingerprint = path / "fingerprint.json"
        self._phases = path / "phases.json"

    @classmethod
    @contextmanager
    def opened(
        cls, config: RunConfig, *, problem_ids: Mapping[str, Sequence[str]], start: Start, phases: tuple[Phase, ...]
    ) -> Iterator["RunFolder"]:
        """The folder of `config`, locked for this process, with its config written.

        `problem_ids` are those of each source, such as data.train. `start` says what happens where a phase of `phases`
        was begun before: new refuses, resume goes on, fresh deletes that phase and all later ones. Raises
        RunFolderError with the remedy, ConfigError where the path cannot be a folder."""
        folder = cls(Path(config.run.folder) / config.run.name)
        prints, fields = _fingerprint(config, problem_ids), fields_of(config)
        folder._check_path()
        with named_disk_errors(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder._lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            folder._take(lock)
            with named_disk_errors(folder.path):
                os.ftruncate(lock, 0)
                os.pwrite(lock, str(os.getpid()).encode(), 0)
                # Before anything is deleted: what stays must be of this config.
                folder._check(prints, fields, start=start, phases=phases)
                if start == "fresh":
                    folder._forget(phases[0])
            write_text(folder._fingerprint, json.dumps(prints, indent=1))
            write_text(folder.config, dump(config))
            yield folder
        finally:
            os.close(lock)

    @classmethod
    def followed(cls, config: RunConfig, *, rank: int) -> "RunFolder":
        """The folder of `config` as a rank sees it that writes nothing in it but its log."""
        return cls(Path(config.run.folder) / config.run.name, rank=rank)

    @classmethod
    def check(
        cls, config: RunConfig, *, problem_ids: Mapping[str, Sequence[str]], start: Start, phases: tuple[Phase, ...]
    ) -> None:
        """Raise what `opened` would, without writing anything: to be asked before a model is loaded."""
        folder = cls(Path(config.run.folder) / config.run.name)
        folder._check_path()
        if folder._lock.is_file():
            with named_disk_errors(folder._lock):
                lock = os.open(folder._lock, os.O_RDONLY)
            try:
                folder._take(lock)
            finally:
                os.close(lock)
        folder._check(_fingerprint(config, problem_ids), fields_of(config), start=start, phases=phases)

    def read_config(self, overrides: Sequence[str] = ()) -> RunConfig:
        """The run's own config, with `overrides`. Raises ConfigError where the path is no run's folder."""
        if not self.config.is_file():
            raise ConfigError(
                f"{self.path}: no folder of a run (there is no {self.config.name} in it); give one such as "
                "runs/quickstart"
            )
        return load(self.config, overrides)

    def check_belongs(self, config: RunConfig, *, problem_ids: Mapping[str, Sequence[str]]) -> None:
        """Raises RunFolderError unless what the folder holds is of this config and these problems.

        Nothing is locked, so that it can be asked while another process writes to the folder."""
        self._check_belongs(_fingerprint(config, problem_ids), fields_of(config), staying=PHASES)

    def begun(self) -> dict[str, bool]:
        """Phases that were begun, each with whether it was finished."""
        if not self._phases.is_file():
            return {}
        phases: dict[str, bool] = json.loads(self._phases.read_text(encoding="utf-8"))
        return phases

    def mark(self, phase: Phase, *, finished: bool) -> None:
        """Note that a phase began or finished. What came after one that begins again is no longer finished."""
        if not self._is_main:
            return
        later = () if finished else PHASES[PHASES.index(phase) + 1 :]
        marks = {name: done for name, done in self.begun().items() if name not in later}
        write_text(self._phases, json.dumps({**marks, phase: finished}))

    def _take(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = self._lock.read_text(encoding="utf-8").strip() or "unknown"
            raise RunFolderError(
                f"{self.path} is in use by process {owner}; wait for it, stop it, or set another run.name"
            ) from error

    def _check_path(self) -> None:
        in_the_way = next((p for p in (self.path, *self.path.parents) if p.exists() and not p.is_dir()), None)
        if in_the_way is not None:
            raise ConfigError(
                f"run.folder, run.name: {in_the_way} is a file, so {self.path} cannot be a folder; set others"
            )

    def _check(
        self,
        prints: Mapping[str, str],
        fields: Mapping[Phase, tuple[str, ...]],
        *,
        start: Start,
        phases: tuple[Phase, ...],
    ) -> None:
        held = [phase for phase in phases if phase in self.begun()]
        if start == "new" and held:
            raise RunFolderError(
                f"{self.path} already holds the phase{'s' if len(held) > 1 else ''} {', '.join(held)}; "
                "add --resume to go on with it, --fresh to delete it and start again, or set another run.name"
            )
        first = PHASES.index(phases[0]) if start == "fresh" else len(PHASES)
        staying = PHASES[:first]
        if phases == ("profile",) and "train" not in self.begun():
            # Its store keeps what was drawn by what it depends on: other settings or problems take up what fits.
            staying = tuple(phase for phase in staying if phase != "profile")
        self._check_belongs(prints, fields, staying=staying)

    def _check_belongs(
        self, prints: Mapping[str, str], fields: Mapping[Phase, tuple[str, ...]], *, staying: tuple[Phase, ...]
    ) -> None:
        begun = [phase for phase in staying if phase in self.begun()]
        if not begun or not self._fingerprint.is_file():
            return
        found: dict[str, str] = json.loads(self._fingerprint.read_text(encoding="utf-8"))
        if found != prints:
            found = self._as_read_here(found)
        changed = sorted(name for name in found.keys() | prints.keys() if found.get(name) != prints.get(name))
        of_phases = {
            phase: [name for name in changed if any(f"{name}.".startswith(f"{field}.") for field in fields[phase])]
            for phase in begun
        }
        differing = sorted({name for names in of_phases.values() for name in names})
        if not differing:
            return
        if all(name.endswith(PROBLEM_IDS) for name in differing):
            sources = ", ".join(name.removesuffix(PROBLEM_IDS) for name in differing)
            raise RunFolderError(
                f"{self.path} holds {', '.join(begun)} of other problems: the rows of {sources} have changed since; "
                "restore them, set another run.name, or `grpo recipe --fresh` to delete what it holds"
            )
        remedy = "set another run.name, or `grpo recipe --fresh` to delete them"
        if all(name.startswith("evaluation.") for name in differing):
            remedy = self._remedy_of_evaluation([phase for phase, names in of_phases.items() if names])
        elif all(name.startswith("profile.") for name in differing):
            store = self.read_config().profile.folder or self.profile
            remedy = (
                f"training rests on its profile; set another run.name, with profile.folder={store} to take up "
                "what was drawn there, or `grpo train --fresh` with the config as it was, and then profile again"
                if "train" in begun
                else "`grpo profile --resume` with the same fields draws what is missing"
            )
        raise RunFolderError(
            f"{self.path} holds {', '.join(begun)} of another config; it differs in {', '.join(differing)} "
            f"(its own is {self.config}); {remedy}"
        )

    def _remedy_of_evaluation(self, readers: Sequence[Phase]) -> str:
        """What to do where only fields of the section evaluation differ, which the phases `readers` rest on."""
        if list(readers) == ["eval"]:
            return "restore them, or `grpo eval --fresh` scores every policy again with these"
        looked = " and ".join(phase for phase in readers if phase != "eval")
        return (
            f"{looked} looked at the validation problems by them: restore them, or set another run.name and name "
            f"checkpoints of {self.checkpoints} by their paths in evaluation.checkpoints"
        )

    def _as_read_here(self, found: Mapping[str, str]) -> dict[str, str]:
        """A fingerprint with every field that this version knows: one that the run's version had not is as if it had
        been left out of its config. Of a config that this version cannot read, the fingerprint as it stands."""
        of_files = {name: print_ for name, print_ in found.items() if name.endswith((PROBLEM_IDS, CONTENT))}
        try:
            return fingerprint(self.read_config()) | of_files
        except ConfigError:
            return dict(found)

    def _forget(self, first: Phase) -> None:
        """Delete phase `first` and every later one."""
        phases = PHASES[PHASES.index(first) :]
        # First of all: a kill in between must leave no phase that counts as finished and is half there.
        write_text(self._phases, json.dumps({name: done and name not in phases for name, done in self.begun().items()}))
        for phase, paths in self._artefacts().items():
            if phase in phases:
                for path in paths:
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        write_text(self._phases, json.dumps({k: v for k, v in self.begun().items() if k not in phases}))

    def _artefacts(self) -> dict[Phase, list[Path]]:
        steps = [*self.checkpoints.glob("step_*"), *self.checkpoints.glob("best_*")]
        return {
            "sft": [self.checkpoints / COLD_START, self.path / "sft", self.log.parent],
            "profile": [self.profile],
            "train": [
                *steps,
                self.rollouts,
                self.vocabulary,
                self.metrics,
                self.events,
                self.trained,
                self.skipped,
                self.path / "wandb",
                self.tensorboard,
                self.tracking_id,
            ],
            "eval": [self.evals],
            "report": [self.report],
        }


def fields_of(config: RunConfig) -> dict[Phase, tuple[str, ...]]:
    """The fields that each phase's results rest on: `FIELDS`, and those of its looks where it has any."""
    looks: dict[Phase, bool] = {
        "sft": config.sft is not None and config.sft.gate_pass_at_1 is not None,
        "train": config.evaluation.every_steps > 0,
    }
    return {phase: (*names, *(LOOKS[phase] if looks.get(phase) else ())) for phase, names in FIELDS.items()}


def _fingerprint(config: RunConfig, problem_ids: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The config's own, and a short hash of the problem ids of each source and of the content of each vectors' file."""
    ids = {
        f"{source}{PROBLEM_IDS}": hashlib.blake2b("\n".join(of_source).encode(), digest_size=8).hexdigest()
        for source, of_source in problem_ids.items()
    }
    return fingerprint(config) | ids | {f"{field}{CONTENT}": content for field, content in contents_of(config).items()}


def contents_of(config: RunConfig) -> dict[str, str]:
    """A short hash of the content of each file of vectors that the config names, by field.

    Of those that are there: a cold start runs before the vectors that steer the loop, and who needs them says so."""
    files: dict[str, AppliedVectors | WatchConfig | None] = {
        "steering.vectors": config.steering,
        "sft.steering.vectors": None if config.sft is None else config.sft.steering,
        **{f"persona.watch.{index}.vectors": watched for index, watched in enumerate(config.persona.watch)},
    }
    return {
        field: hashlib.blake2b(Path(of.vectors).read_bytes(), digest_size=8).hexdigest()
        for field, of in files.items()
        if of is not None and Path(of.vectors).is_file()
    }


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole or not at all, and have it on the disk when this returns. Raises DiskError."""
    with named_disk_errors(path):
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a value as JSON."""
    write_text(path, json.dumps(value, indent=1))


@contextmanager
def named_disk_errors(path: Path | None = None, *, then: str = RESUME) -> Iterator[None]:
    """Turn the disk's refusals inside into a DiskError that names the place and the remedy.

    The place is `path`, or where it is None what the error itself names; `then` ends the sentence of the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        place = path or error.filename or "a file"
        raise DiskError(f"{place}: {error.strerror}; make room or give permission, {then}") from error
