"""What is written for people to look at: JSONL that any reader can read, rollouts within their limit, and wandb."""

import json
import math
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curricula import Expected, Progress
from grpo.errors import DiskError
from grpo.folder import RunFolder
from grpo.tracking import sinks
from grpo.tracking import wandb_sink as tracking
from grpo.tracking.console import Console
from grpo.tracking.metrics import rollout_rows
from grpo.tracking.tracker import Tracker, _whole_groups
from grpo.types import Group, Message, Problem, Rollout, StopReason
from rewards import Reward, RewardSpec
from tests.runs import grpo, read_jsonl, small_run_config, small_run_file

HOSTILE = ["\ud800 lone surrogate", "\x00\x1b[31m", "</script><!--", "line\u2028separator\nnewline", '"\\', "𝔘𝔫𝔦"]


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def tracker_of(folder: RunFolder, **changes: Any) -> Tracker:
    return Tracker(folder, small_run_config(folder.path, **changes), say=print)


def test_a_step_is_one_line_and_what_is_not_finite_is_null(folder):
    tracker = tracker_of(folder)
    tracker.log(1, {"a": 0.1, "b": math.nan, "c": math.inf, "d": -math.inf})
    tracker.log(2, {"a": 1e-300})
    text = folder.metrics.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert read_jsonl(folder.metrics) == [
        {"step": 1, "a": 0.1, "b": None, "c": None, "d": None},
        {"step": 2, "a": 1e-300},
    ]


def test_numbers_come_back_bit_for_bit(folder):
    values = [1 / 3, 2**-1074, 1.7976931348623157e308, -0.0]
    tracker_of(folder).log(1, {str(index): value for index, value in enumerate(values)})
    (row,) = read_jsonl(folder.metrics)
    assert [struct.pack("d", row[str(index)]) for index in range(4)] == [struct.pack("d", value) for value in values]


def test_events_have_a_step_a_name_and_their_details(folder):
    tracker_of(folder).event(3, "stage", {"stage": 1, "name": "extreme"})
    assert read_jsonl(folder.events) == [{"step": 3, "event": "stage", "stage": 1, "name": "extreme"}]


@pytest.mark.parametrize(("limit", "kept"), [(0, []), (1, [5]), (3, [3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_the_newest_rollout_files_are_kept_and_no_more(folder, limit, kept):
    tracker = tracker_of(folder, **{"tracking.rollout_files": limit})
    for step in range(1, 6):
        tracker.rollouts(step, [{"step": step}])
    found = sorted(folder.rollouts.iterdir()) if folder.rollouts.exists() else []
    assert [path.name for path in found] == [f"step_{step:06d}.jsonl" for step in kept]
    assert [read_jsonl(path) for path in found] == [[{"step": step}] for step in kept]


def hostile_group(text: str) -> Group:
    problem = Problem("id", (Message("user", text),), answer=text, reward=RewardSpec("list_machine"))
    rollouts = tuple(
        Rollout(
            problem_id="id",
            attempt=attempt,
            token_ids=(5, 6, 7),
            action_mask=(False, True, True),
            logprobs=(0.0, -0.5, -0.25),
            kept=None,
            stop_reason=StopReason.LIMIT,
            temperature=0.7,
            policy_step=2,
        )
        for attempt in (4, 5)
    )
    rewards = (Reward.scored(1.0, parts={"format": 0.5}, detail=text), Reward.error(text))
    return Group(problem, rollouts, completions=(text, ""), rewards=rewards, success_threshold=1.0)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_comes_back_as_it_was(folder, text):
    rows = rollout_rows(
        [hostile_group(text)],
        step=3,
        stage="s",
        tier_of={"id": "moderate"}.get,
        advantages={("id", 4): 0.5},
        reused=[False],
    )
    tracker_of(folder).rollouts(3, rows)
    (path,) = folder.rollouts.iterdir()
    assert path.read_bytes().count(b"\n") == 2
    scored, lost = read_jsonl(path)
    assert scored["prompt"] == scored["completion"] == scored["answer"] == scored["detail"] == text
    assert (scored["reward"], scored["status"], scored["parts"]) == (1.0, "scored", {"format": 0.5})
    assert (lost["reward"], lost["status"], lost["advantage"]) == (None, "error", None)
    assert (scored["advantage"], scored["tier"], scored["temperature"]) == (0.5, "moderate", 0.7)
    assert (scored["token_ids"], scored["logprobs"]) == ([6, 7], [-0.5, -0.25])
    assert (scored["num_tokens"], scored["stop_reason"], scored["attempt"], scored["step"]) == (2, "limit", 4, 3)


def test_a_resume_cuts_off_what_was_written_after_the_checkpoint(folder):
    tracker = tracker_of(folder)
    tracker.log(1, {"a": 1})
    tracker.event(1, "stage", {})
    state = tracker.state_dict()
    before = folder.metrics.read_bytes(), folder.events.read_bytes()
    tracker.log(2, {"a": 2})
    tracker.event(2, "stage", {})
    with folder.metrics.open("a") as file:
        file.write('{"step": 3, "torn')
    tracker_of(folder).load_state_dict(json.loads(json.dumps(state)))
    assert (folder.metrics.read_bytes(), folder.events.read_bytes()) == before


def test_a_file_that_someone_shortened_is_not_filled_with_zero_bytes(folder):
    tracker = tracker_of(folder)
    tracker.log(1, {"a": 1})
    state = tracker.state_dict()
    folder.metrics.write_text("")
    tracker.load_state_dict(state)
    assert folder.metrics.read_bytes() == b""


def test_a_full_disk_is_named(folder):
    folder.metrics.symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"metrics\.jsonl: No space left on device; make room .*--resume"):
        tracker_of(folder).log(1, {"a": 1})


# --- wandb ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_wandb_key(tmp_path, monkeypatch) -> Path:
    """A home without a key; returns where `wandb login` would put one."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    return tmp_path / "netrc"


def id_of(run: Path) -> str:
    """What a run is called in wandb."""
    return (run / "tracking_id.txt").read_text(encoding="utf-8").strip()


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: after a header LevelDB's log format, each record a message of wandb.proto.

    A file that the service has made and not written to yet has none."""
    from wandb.proto import wandb_internal_pb2

    block_bytes, header_bytes = 32768, 7
    data = path.read_bytes()
    if len(data) < header_bytes:
        return
    assert data[:4] == b":W&B"
    position, parts = header_bytes, b""
    while position + header_bytes <= len(data):
        left = block_bytes - position % block_bytes
        if left < header_bytes:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + header_bytes])
        if kind == 0:  # zeros fill what the writer reserved
            return
        parts += data[position + header_bytes : position + header_bytes + length]
        position += header_bytes + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def finished_records(path: Path) -> list[tuple[str, Any]]:
    """Kind and record of each record; waits for wandb's service, which writes the last ones after `finish` returns."""
    deadline = time.monotonic() + 30
    while True:
        records = [(record.WhichOneof("record_type"), record) for record in wandb_records(path)]
        if any(kind == "exit" for kind, _ in records):
            return records
        assert time.monotonic() < deadline, f"{path} has no record of the end: {[kind for kind, _ in records]}"
        time.sleep(0.05)


def wandb_history(run: Path) -> tuple[list[dict[str, Any]], set[str]]:
    """Logged rows of every .wandb file under a run's folder, oldest file first, and the run ids in them."""
    rows, ids = [], set()
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for kind, record in finished_records(path):
            if kind == "run":
                ids.add(record.run.run_id)
            elif kind == "history":
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows, ids


def test_wandb_gets_offline_what_metrics_jsonl_gets_and_a_resume_writes_to_the_same_run(tmp_path, no_wandb_key):
    changes = {"tracking.wandb": "offline", "sft": None, "curriculum": {"kind": "uniform"}, "train.steps": 2}
    config = small_run_file(tmp_path, **changes, **{"evaluation.every_steps": 2})
    run = tmp_path / "runs" / "small"
    assert grpo("train", config) == 0
    rows, ids = wandb_history(run)
    assert ids == {id_of(run)}
    assert re.fullmatch(r"small-[0-9a-f]{8}", id_of(run))
    expected = read_jsonl(run / "metrics.jsonl")
    assert [row["_step"] for row in rows] == [1, 2]
    for row, of_file in zip(rows, expected, strict=True):
        names = of_file.keys() - {"step"}
        assert {name: row[name] for name in names} == {name: of_file[name] for name in names}
    assert {"reward/mean", "policy/entropy", "optim/grad_norm", "sampling/temperature", "time/step"} <= rows[0].keys()
    assert "eval/validation/pass@1" in rows[1]
    # wandb names the folder of an offline run by the second: a resume within it would write over the first part.
    time.sleep(1.1)
    assert grpo("train", config, "--resume", "train.steps=4") == 0
    rows, ids = wandb_history(run)
    assert ids == {id_of(run)}
    assert [row["_step"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("key", "mode"), [(None, "offline"), ("environment", "online"), ("netrc", "online"), ("another host", "offline")]
)
def test_auto_is_online_where_a_key_is_found_and_offline_elsewhere(folder, no_wandb_key, monkeypatch, key, mode):
    import wandb

    asked: dict[str, Any] = {}

    def init(**options: Any) -> WandbRun:
        asked.update(options)
        return WandbRun()

    monkeypatch.setattr(wandb, "init", init)
    if key == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    elif key is not None:
        host = tracking.WANDB_HOST if key == "netrc" else "example.org"
        no_wandb_key.write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
        no_wandb_key.chmod(0o600)
    tracker_of(folder, **{"tracking.wandb": "auto"}).log(1, {"a": 1})
    assert asked["mode"] == mode
    assert (asked["id"], asked["project"], asked["dir"]) == (id_of(folder.path), "grpo", str(folder.path))
    assert (asked["name"], asked["resume"]) == ("small", "allow")
    assert asked["config"]["train"]["steps"] == 8


class WandbRun:
    """What `wandb.init` gives; `broken` names the method that raises."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.steps: list[int] = []

    def log(self, metrics: dict[str, float], *, step: int) -> None:
        if self.broken == "log" and step == 2:
            raise ConnectionError("the service\nis gone")
        self.steps.append(step)

    def finish(self) -> None:
        if self.broken == "finish":
            raise TimeoutError("still sending")


@pytest.fixture
def wandb_with(monkeypatch, no_wandb_key):
    """Puts a wandb in place that fails as asked; returns the runs it gave and the modes it was asked for."""

    def put(*, refused: tuple[str, ...] = (), broken: str = "") -> tuple[list[WandbRun], list[dict[str, Any]]]:
        runs: list[WandbRun] = []
        asked: list[dict[str, Any]] = []
        held: list[str] = []  # by wandb's own process, until it is torn down

        def init(**options: Any) -> WandbRun:
            asked.append(options)
            assert options["id"] not in held, f"run ID {options['id']} is in use"
            if options["mode"] in refused:
                held.append(options["id"])
                raise RuntimeError(f"no way\nto be {options['mode']}")
            runs.append(WandbRun(broken))
            return runs[-1]

        monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, teardown=held.clear))
        return runs, asked

    return put


def logged(folder: RunFolder, mode: str) -> None:
    """Three steps and the end, as a run has them."""
    tracker = tracker_of(folder, **{"tracking.wandb": mode})
    for step in (1, 2, 3):
        tracker.log(step, {"a": step})
    tracker.close()
    assert [row["step"] for row in read_jsonl(folder.metrics)] == [1, 2, 3]


@pytest.mark.parametrize("mode", ["online", "offline", "auto"])
def test_a_wandb_that_cannot_begin_is_one_line_and_the_run_goes_on(folder, wandb_with, capsys, mode):
    _, asked = wandb_with(refused=("online", "offline"))
    logged(folder, mode)
    (line,) = capsys.readouterr().out.splitlines()
    tried = "offline" if mode == "auto" else mode
    assert line == f"wandb cannot begin a run {tried} (RuntimeError: no way to be {tried}); {sinks.GO_ON}"
    assert len(asked) == 1


@pytest.mark.parametrize(("refused", "modes"), [(("online",), "offline"), (("online", "offline"), None)])
def test_auto_with_a_key_and_no_network_falls_back_to_offline(folder, wandb_with, monkeypatch, capsys, refused, modes):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    runs, asked = wandb_with(refused=refused)
    logged(folder, "auto")
    assert [options["mode"] for options in asked] == ["online", "offline"]
    assert [run.steps for run in runs] == ([[1, 2, 3]] if modes else [])
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "wandb cannot begin a run online (RuntimeError: no way to be online); trying wandb offline"
    assert len(rest) == (0 if modes else 1)


@pytest.mark.slow
def test_wandb_itself_with_a_key_and_no_network_is_one_line_and_an_offline_run(tmp_path, no_wandb_key):
    changes = {"tracking.wandb": "auto", "sft": None, "curriculum": {"kind": "uniform"}, "train.steps": 2}
    config = small_run_file(tmp_path, **changes)
    nowhere = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "5"}
    command = [sys.executable, "-m", "grpo.cli", "train", str(config)]
    # The tests before this one have left a service of wandb, which a process that inherits its name would share.
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    done = subprocess.run(command, env=inherited | nowhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "small"
    said = [line for line in (run / "logs" / "rank_0.log").read_text().splitlines() if "wandb" in line]
    assert len(said) == 1
    assert "wandb cannot begin a run online (" in said[0]
    rows, ids = wandb_history(run)
    assert ids == {id_of(run)}
    assert [row["_step"] for row in rows] == [1, 2]


def test_phases_without_metrics_leave_wandb_alone(tmp_path, wandb_with):
    runs, asked = wandb_with()
    changes = {"tracking.wandb": "offline", "sft": None, "train.steps": 1}
    config = small_run_file(tmp_path, **changes)
    for command in ("profile", "train", "eval"):
        assert grpo(command, config) == 0
    assert [run.steps for run in runs] == [[1]]
    assert [options["resume"] for options in asked] == ["allow"]


def test_a_wandb_that_cannot_be_imported_is_one_line_and_the_run_goes_on(folder, no_wandb_key, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    logged(folder, "offline")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("wandb cannot begin a run offline (ModuleNotFoundError: ")


@pytest.mark.parametrize(("broken", "steps"), [("log", [1]), ("finish", [1, 2, 3])])
def test_a_wandb_that_fails_on_the_way_is_one_line_and_the_run_goes_on(folder, wandb_with, capsys, broken, steps):
    runs, asked = wandb_with(broken=broken)
    logged(folder, "offline")
    assert [run.steps for run in runs] == [steps]
    assert len(asked) == 1
    (line,) = capsys.readouterr().out.splitlines()
    expected = {
        "log": "wandb does not take metrics any more (ConnectionError: the service is gone); ",
        "finish": "wandb did not end its run (TimeoutError: still sending); ",
    }
    assert line == expected[broken] + sinks.GO_ON


@pytest.mark.parametrize("content", [b"machine\n", b"nonsense here\n", b"\xff\xfe\x00"])
def test_a_netrc_that_cannot_be_read_is_one_line_and_wandb_is_offline(
    folder, wandb_with, no_wandb_key, capsys, content
):
    no_wandb_key.write_bytes(content)
    runs, asked = wandb_with()
    logged(folder, "auto")
    assert [options["mode"] for options in asked] == ["offline"]
    assert [run.steps for run in runs] == [[1, 2, 3]]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"wandb: {no_wandb_key} cannot be read (")


def test_wandb_is_opened_by_the_first_metrics_and_by_nothing_else(folder, wandb_with):
    _, asked = wandb_with()
    tracker = tracker_of(folder, **{"tracking.wandb": "offline"})
    tracker.event(1, "stage", {})
    tracker.rollouts(1, [{"step": 1}])
    tracker.load_state_dict(tracker.state_dict())
    tracker.close()
    assert asked == []


def test_a_resume_goes_on_in_the_same_wandb_run_and_a_training_that_begins_afresh_has_another(tmp_path, wandb_with):
    runs, asked = wandb_with()
    changes = {"tracking.wandb": "offline", "sft": None, "curriculum": {"kind": "uniform"}, "evaluation.every_steps": 0}
    config = small_run_file(tmp_path, **changes, **{"train.steps": 1})
    for arguments in ([], ["--resume", "train.steps=2"], ["--fresh"]):
        assert grpo("train", config, *arguments) == 0
    first, resumed, fresh = (options["id"] for options in asked)
    assert first == resumed != fresh
    assert [run.steps for run in runs] == [[1], [2], [1]]


def wandb_file(run: Path, name: str) -> Any:
    """The newest media file that offline runs of a folder wrote under a name."""
    return json.loads(sorted(run.glob(f"wandb/offline-run-*/files/media/table/{name}_*.table.json"))[-1].read_text())


def test_wandb_gets_a_table_of_rollouts_charts_of_tiers_and_temperature_and_the_config(tmp_path, no_wandb_key):
    changes = {"tracking.wandb": "offline", "tracking.shown_every_steps": 2, "tracking.shown_rollouts": 7, "sft": None}
    stages = [{"name": "all", "tiers": ["trivial", "moderate", "extreme", "unsolved"], "group_size": 4}]
    changes |= {"curriculum.stages": stages, "train.steps": 3, "profile.reuse_steps": 0}
    config = small_run_file(tmp_path, **changes)
    assert grpo("profile", config) == 0
    assert grpo("train", config) == 0
    run = tmp_path / "runs" / "small"
    rows, _ = wandb_history(run)
    assert [row["_step"] for row in rows] == [1, 2, 3]
    assert ["rollouts/_type" in row or "rollouts" in row for row in rows] == [False, True, False]
    table = wandb_file(run, "rollouts")
    shown = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    written = read_jsonl(run / "rollouts" / "step_000002.jsonl")[:4]  # one whole group: seven hold no second one
    assert len(shown) == 4
    for found, expected in zip(shown, written, strict=True):
        assert found == {name: expected[name] for name in tracking.COLUMNS}
    tiers = wandb_file(run, "charts/tiers_table")
    metrics = read_jsonl(run / "metrics.jsonl")
    expected = {
        (row["step"], name.removeprefix("curriculum/tier_"), value)
        for row in metrics
        for name, value in row.items()
        if name.startswith("curriculum/tier_")
    }
    assert len(expected) == 3 * 4
    assert {(row[0], row[1], row[2]) for row in tiers["data"]} == expected
    assert tiers["columns"] == ["step", "lineKey", "lineVal"]
    temperature = wandb_file(run, "charts/temperature_table")
    assert {row[1] for row in temperature["data"]} == set(tracking.TEMPERATURE)
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    updates = [record.config for kind, record in finished_records(file) if kind == "config"]
    begun = [record.run.config for kind, record in finished_records(file) if kind == "run"]
    told = {item.key: item.value_json for config in [*begun, *updates] for item in config.update}
    assert json.loads(told["train"])["group_size"] == 4


def test_a_table_holds_whole_groups_and_of_one_that_is_too_large_its_first_rollouts():
    rows = [{"problem_id": name} for name in "aaabbbbcc"]
    for at_most, expected in (
        (0, ""),
        (2, "aa"),
        (3, "aaa"),
        (6, "aaa"),
        (7, "aaabbbb"),
        (9, "aaabbbbcc"),
        (99, "aaabbbbcc"),
    ):
        assert "".join(row["problem_id"] for row in _whole_groups(rows, at_most=at_most)) == expected


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_reaches_wandbs_table(folder, no_wandb_key, text, capsys):
    rows = list(
        rollout_rows([hostile_group(text)], step=1, stage="s", tier_of=lambda _: None, advantages={}, reused=[False])
    )
    tracker = tracker_of(folder, **{"tracking.wandb": "offline", "tracking.shown_every_steps": 1})
    tracker.rollouts(1, rows)
    tracker.log(1, {"a": 1.0})
    tracker.close()
    assert "wandb does not" not in capsys.readouterr().out
    table = wandb_file(folder.path, "rollouts")
    assert table["data"][0][table["columns"].index("prompt")] == text.encode("utf-8", "replace").decode()


# --- TensorBoard and trackio ------------------------------------------------------------------------------------------


def test_tensorboard_gets_what_metrics_jsonl_gets_and_a_resume_purges_what_is_done_again(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {"tracking.tensorboard": True, "tracking.shown_every_steps": 2, "sft": None}
    changes |= {"curriculum": {"kind": "uniform"}, "evaluation.every_steps": 0, "train.steps": 2}
    config = small_run_file(tmp_path, **changes)
    assert grpo("train", config) == 0
    assert grpo("train", config, "--resume", "train.steps=4") == 0
    run = tmp_path / "runs" / "small"
    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    for name in ("reward/mean", "policy/entropy", "sampling/temperature"):
        scalars = [(event.step, event.value) for event in found.Scalars(name)]
        assert [step for step, _ in scalars] == [1, 2, 3, 4]
        assert [value for _, value in scalars] == pytest.approx(
            [row[name] for row in read_jsonl(run / "metrics.jsonl")]
        )
    texts = [event.tensor_proto.string_val[0].decode() for event in found.Tensors("rollouts/text_summary")]
    assert len(texts) == 2
    assert all(line.startswith("    ") for line in texts[0].splitlines() if line)
    assert '"completion"' in texts[0]
    assert grpo("train", config, "--fresh") == 0
    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("reward/mean")] == [1, 2]


@pytest.mark.slow
def test_trackio_gets_what_metrics_jsonl_gets_and_a_resume_writes_to_the_same_run(tmp_path):
    pytest.importorskip("trackio", reason="needs the package trackio")
    # In processes of its own: trackio reads the place of its store when it is imported.
    changes = {"tracking.trackio": True, "tracking.shown_every_steps": 2, "sft": None}
    changes |= {"curriculum": {"kind": "uniform"}, "evaluation.every_steps": 0, "train.steps": 2}
    config = small_run_file(tmp_path, **changes)
    places = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    for arguments in ([], ["--resume", "train.steps=4"]):
        command = [sys.executable, "-m", "grpo.cli", "train", str(config), *arguments]
        done = subprocess.run(command, env=os.environ | places, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert sinks.GO_ON not in (tmp_path / "runs/small/logs/rank_0.log").read_text()
    run = tmp_path / "runs" / "small"
    read = "import json, sys; from trackio.sqlite_storage import SQLiteStorage as S; "
    read += "print(json.dumps(S.get_logs('grpo', sys.argv[1])))"
    asked = [sys.executable, "-c", read, id_of(run)]
    told = subprocess.run(asked, env=os.environ | places, capture_output=True, text=True, check=True).stdout
    rows = json.loads(told.splitlines()[-1])
    expected = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["reward/mean"] for row in rows] == [row["reward/mean"] for row in expected]
    assert [row["step"] for row in rows if "rollouts" in row] == [2, 4]


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_package_that_is_not_installed_is_one_line_and_the_run_goes_on(folder, monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "trackio", None)
    tracker = tracker_of(folder, **{f"tracking.{name}": True})
    for step in (1, 2):
        tracker.log(step, {"a": step})
    tracker.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.lower().startswith(f"{name} cannot begin a run (modulenotfounderror: ")
    assert line.endswith(sinks.GO_ON)
    assert [row["step"] for row in read_jsonl(folder.metrics)] == [1, 2]


def test_events_of_what_is_done_again_are_taken_out_and_the_others_stay(folder):
    tracker = tracker_of(folder)
    tracker.forget_events("evaluation")  # where there is none
    for name in ("stage", "evaluation", "best"):
        tracker.event(1, name, {"a": 0.1})
    with folder.events.open("a") as file:
        file.write('{"step": 3, "event": "evalu')
    tracker.forget_events("evaluation")
    assert [event["event"] for event in read_jsonl(folder.events)] == ["stage", "best"]


def test_off_never_imports_wandb(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker_of(folder).log(1, {"a": 1})


# --- the console ------------------------------------------------------------------------------------------------------


def test_the_runs_log_holds_every_line_those_before_its_folder_was_known_included(tmp_path, capsys):
    for line in ("first", "second"):
        console = Console(num_steps=1)
        console.say(f"{line}: before")
        console.log_to(tmp_path / "logs" / "rank_0.log")
        console.say(f"{line}: after [bold]")
    lines = (tmp_path / "logs" / "rank_0.log").read_text(encoding="utf-8").splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == [
        "first: before",
        "first: after [bold]",
        "second: before",
        "second: after [bold]",
    ]
    assert capsys.readouterr().out.count("\n") == 4


def test_a_line_that_moves_on_a_terminal_is_in_the_log_now_and_then(tmp_path, monkeypatch):
    console = Console(num_steps=1)
    monkeypatch.setattr(type(console._rich), "is_terminal", True)
    console.log_to(tmp_path / "logs" / "rank_0.log")
    progress = {"num_without_value": 0, "num_tokens": 0, "tiers": {}, "num_without_tier": 0}
    for num_finished in range(11):
        left = Expected(typical=10.0 - num_finished, most=80 - 8 * num_finished)
        counts = {"num_problems": 10, "num_finished": num_finished, "num_rollouts": num_finished}
        console.profile_progress(Progress(**counts, left=left, **progress))
    lines = (tmp_path / "logs" / "rank_0.log").read_text(encoding="utf-8").splitlines()
    assert ["0/10" in lines[0], "10/10" in lines[-1], len(lines)] == [True, True, 2]


def test_a_full_disk_of_the_log_is_named(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank_0.log").symlink_to("/dev/full")
    console = Console(num_steps=1)
    console.log_to(tmp_path / "logs" / "rank_0.log")
    with pytest.raises(DiskError, match=r"rank_0\.log: No space left on device"):
        console.say("a line")
