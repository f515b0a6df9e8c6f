"""The store of a profile in a run: what a kill leaves, what is taken up again, and who may share it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curricula import ProfileStore
from grpo.distributed.world import World
from grpo.errors import Interrupted, RunFolderError
from grpo.manifest import MANIFEST_FILE, read_manifest
from grpo.profiling import Profile
from grpo.rollout import GaveUp
from grpo.sampling.native import NativeSampler
from grpo.starts import Run, profile_policy
from grpo.types import Group
from tests.launch import ROOT, environment, launched
from tests.runs import grpo, opened_run, read_jsonl, shard_lines, small_run_config, small_run_file, tiers_of

BASE: dict[str, Any] = {"sft": None}


def told(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    return said.out + said.err


def ignore(group: Group) -> None:
    pass


def place_of(group: Group) -> tuple[str, int, int]:
    """Problem, first attempt and number of attempts of a group."""
    return group.problem.id, group.rollouts[0].attempt, len(group.rollouts)


def profiled_by(run: Run, folder: Path, *, on_group: Callable[[Group], None] = ignore, **options: Any) -> Profile:
    return profile_policy(
        run, run.train, folder=folder, store_folder=folder, temperature=1.0, on_group=on_group, **options
    )


def records_of(folder: Path) -> list[tuple[str, int, int]]:
    """Problem, first attempt and number of attempts of each record of the one fingerprint in `folder`."""
    rows = [
        json.loads(line)
        for shard in sorted(folder.glob("*/attempts_rank_*.jsonl"))
        for line in shard.read_bytes().splitlines()
    ]
    return [(row["problem_id"], row["first_attempt"], len(row["correct"])) for row in rows if "problem_id" in row]


# --- kills ------------------------------------------------------------------------------------------------------------


def test_a_group_is_handed_over_before_it_is_stored_and_stored_before_the_wave_ends(tmp_path):
    handed: list[tuple[str, int, int]] = []

    def breaks_at_the_tenth(group: Group) -> None:
        handed.append(place_of(group))
        if len(handed) == 10:
            raise RuntimeError("the machine is gone")

    with opened_run(small_run_config(tmp_path, **BASE)) as run:
        with pytest.raises(RuntimeError, match="the machine is gone"):
            profiled_by(run, tmp_path / "store", on_group=breaks_at_the_tenth)
        assert records_of(tmp_path / "store") == handed[:9]
        resumed: list[tuple[str, int, int]] = []
        profiled_by(run, tmp_path / "store", on_group=lambda group: resumed.append(place_of(group)))
    assert records_of(tmp_path / "store") == handed[:9] + resumed
    assert handed[9] in resumed


def test_sampling_that_is_given_up_keeps_the_groups_that_were_judged(tmp_path, monkeypatch):
    sample = NativeSampler.sample

    def gives_up(self: NativeSampler, requests: Any) -> Any:
        for number, completion in enumerate(sample(self, requests)):
            if number == 30:
                raise GaveUp
            yield completion

    with opened_run(small_run_config(tmp_path, **BASE)) as run:
        with monkeypatch.context() as patch:
            patch.setattr(NativeSampler, "sample", gives_up)
            with pytest.raises(GaveUp):
                profiled_by(run, tmp_path / "torn")
        num_kept = len(records_of(tmp_path / "torn"))
        assert 1 <= num_kept <= 30 // 4
        assert profiled_by(run, tmp_path / "torn").drawn_rollouts < profiled_by(run, tmp_path / "whole").drawn_rollouts
    manifests = [(tmp_path / name / MANIFEST_FILE).read_bytes() for name in ("torn", "whole")]
    assert manifests[0] == manifests[1]


@pytest.mark.slow
def test_a_profile_whose_process_is_killed_again_and_again_loses_and_repeats_nothing(tmp_path):
    assert grpo("profile", small_run_file(tmp_path / "whole", **BASE, **{"sampling.max_rows": 8})) == 0
    config = small_run_file(tmp_path / "killed", **BASE, **{"sampling.max_rows": 8})
    run, command = tmp_path / "killed" / "runs" / "small", [sys.executable, "-m", "grpo.cli", "profile", str(config)]
    before: list[bytes] = []
    for number, least in enumerate((5, 12, 30, 50)):
        process = subprocess.Popen(
            [*command, *(["--resume"] if number else [])], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
        )
        while process.poll() is None and len(shard_lines(run)) < least:
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        lines = shard_lines(run)
        assert lines[: len(before)] == before
        before = lines
    assert grpo("profile", config, "--resume") == 0
    assert shard_lines(run)[: len(before)] == before
    found = [
        attempt
        for problem, first, n in records_of(run / "profile")
        for attempt in [(problem, first + i) for i in range(n)]
    ]
    assert len(found) == len(set(found))
    whole = tmp_path / "whole" / "runs" / "small"
    assert (run / "profile" / MANIFEST_FILE).read_bytes() == (whole / "profile" / MANIFEST_FILE).read_bytes()


@pytest.mark.slow
def test_each_of_two_ranks_fills_a_shard_and_one_rank_takes_up_both(tmp_path):
    assert grpo("profile", small_run_file(tmp_path / "one", **BASE)) == 0
    config = small_run_file(tmp_path / "two", **BASE)
    launched("scripts/profile_tiers.py", config, ranks=2)
    run = tmp_path / "two" / "runs" / "small"
    shards = sorted((run / "profile").glob("*/attempts_rank_*.jsonl"))
    assert [shard.name for shard in shards] == ["attempts_rank_0000.jsonl", "attempts_rank_0001.jsonl"]
    assert all(len(read_jsonl(shard)) > 10 for shard in shards)
    assert tiers_of(run) == tiers_of(tmp_path / "one" / "runs" / "small")
    # Both lose their ends; one rank alone draws what is missing, the shard of the other stays as it is.
    for shard in shards:
        lines = shard.read_bytes().splitlines(keepends=True)
        shard.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:-7])
    before = [shard.read_bytes() for shard in shards]
    assert grpo("profile", config, "--resume") == 0
    assert shards[1].read_bytes() == before[1]
    assert shards[0].read_bytes().startswith(before[0][: before[0].rfind(b"\n") + 1])
    assert tiers_of(run) == tiers_of(tmp_path / "one" / "runs" / "small")


# --- extending and sharing --------------------------------------------------------------------------------------------


def test_more_rollouts_are_added_to_those_that_are_known(tmp_path, capsys):
    config = small_run_file(tmp_path / "extended", **BASE)
    run = tmp_path / "extended" / "runs" / "small"
    assert grpo("profile", config) == 0
    before = shard_lines(run)
    assert grpo("profile", config, "--resume", "profile.max_rollouts=32") == 0
    assert shard_lines(run)[: len(before)] == before
    assert grpo("profile", small_run_file(tmp_path / "fresh", **BASE, **{"profile.max_rollouts": 32})) == 0
    assert tiers_of(run) == tiers_of(tmp_path / "fresh" / "runs" / "small")
    told(capsys)
    # And back: what is known beyond the rules changes no label.
    assert grpo("profile", config, "--resume", "profile.max_rollouts=16") == 0
    assert "nothing is to be drawn" in told(capsys)
    assert grpo("profile", small_run_file(tmp_path / "short", **BASE)) == 0
    labels = [
        [{k: v for k, v in row.items() if k not in ("num_attempts", "total_tokens")} for row in tiers_of(of)]
        for of in (run, tmp_path / "short" / "runs" / "small")
    ]
    assert labels[0] == labels[1]


def test_more_problems_are_added_to_those_that_are_known(tmp_path):
    config = small_run_file(tmp_path, **BASE, **{"profile.max_problems": 15})
    run = tmp_path / "runs" / "small"
    assert grpo("profile", config) == 0
    first = {row["id"]: row for row in tiers_of(run)}
    before = shard_lines(run)
    assert grpo("profile", config, "--resume", "profile.max_problems=null") == 0
    assert shard_lines(run)[: len(before)] == before
    again = {row["id"]: row for row in tiers_of(run)}
    assert (len(first), len(again)) == (15, 40)
    bounds = ("num_rollouts", "tier", "num_attempts", "first_success_attempt")
    assert all(again[i][name] == first[i][name] for i in first for name in bounds)


def test_a_profile_that_is_to_be_extended_elsewhere_or_too_late_says_where(tmp_path, capsys):
    config = small_run_file(tmp_path, **{"train.steps": 1})
    assert grpo("sft", config) == 0
    assert grpo("profile", config) == 0
    more = "profile.max_rollouts=32"
    assert grpo("train", config, "--resume", more) == 4
    assert "differs in profile.max_rollouts" in (said := told(capsys))
    assert "`grpo profile --resume` with the same fields draws what is missing" in said
    assert grpo("profile", config, "--resume", more) == 0
    assert grpo("train", config, more) == 0
    assert grpo("profile", config, "--resume", "profile.max_rollouts=64") == 4
    assert f"profile.folder={tmp_path / 'runs' / 'small' / 'profile'} to take up what was drawn there" in told(capsys)


def test_runs_that_share_a_folder_draw_what_one_policy_has_drawn_only_once(tmp_path, capsys):
    shared = {"profile.folder": str(tmp_path / "shared")}
    for name in ("a", "b"):
        assert grpo("profile", small_run_file(tmp_path / name, **BASE, **shared, **{"run.name": name})) == 0
        said = told(capsys)
    assert "all 40 problems are known; nothing is to be drawn" in said
    runs = [tmp_path / name / "runs" / name for name in ("a", "b")]
    assert tiers_of(runs[0]) == tiers_of(runs[1])
    assert len({(run / "profile" / MANIFEST_FILE).read_bytes() for run in runs}) == 1
    assert not list((runs[1] / "profile").glob("*/*.jsonl"))
    # Another policy lies beside them, and takes nothing for its own.
    other = small_run_file(tmp_path / "c", **BASE, **shared, **{"model.initial_embedding_std": 0.5})
    assert grpo("profile", other) == 0
    said = told(capsys)
    assert "nothing is known of this policy with these settings; of 1 other profiles" in said
    assert "differs in policy" in said
    assert "at the speed of an earlier profile" in said
    assert len(list((tmp_path / "shared").iterdir())) == 2
    assert grpo("profile", tmp_path / "a" / "config.yaml", "--resume") == 0
    assert "nothing is to be drawn" in told(capsys)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"temperature.value": 1.1}, "temperature"), ({"sampling.top_k": 5}, "sampling"), ({"run.seed": 4}, "policy")],
)
def test_what_an_outcome_depends_on_makes_another_profile(tmp_path, changes, field, capsys):
    shared = {"profile.folder": str(tmp_path / "shared"), "profile.max_rollouts": 4}
    assert grpo("profile", small_run_file(tmp_path / "a", **BASE, **shared)) == 0
    told(capsys)
    assert grpo("profile", small_run_file(tmp_path / "b", **BASE, **shared, **changes)) == 0
    assert f"differs in {field}" in told(capsys)


def test_an_edited_judge_is_another_judge_wherever_its_file_lies(tmp_path, capsys):
    shared = {"profile.folder": str(tmp_path / "shared"), "profile.max_rollouts": 4, "reward.function": "judge"}
    for name, value, expected in (
        ("a", 1.0, "to be drawn"),
        ("b", 1.0, "nothing is to be drawn"),
        ("c", 0.0, "in reward"),
    ):
        judge = tmp_path / f"{name}.py"
        judge.write_text(f"def judge(completion, problem):\n    return {value}\n")
        assert grpo("profile", small_run_file(tmp_path / name, **BASE, **shared, **{"reward.file": str(judge)})) == 0
        assert expected in told(capsys)


def test_a_second_profile_of_the_same_policy_is_refused_by_the_process_that_is_at_it(tmp_path, capsys):
    shared = {"profile.folder": str(tmp_path / "shared")}
    assert grpo("profile", small_run_file(tmp_path / "a", **BASE, **shared)) == 0
    fingerprint = read_manifest(tmp_path / "a" / "runs" / "small" / "profile" / MANIFEST_FILE).fingerprint
    store = ProfileStore(tmp_path / "shared", fingerprint=fingerprint)
    with store.locked():
        for path in store.folder.glob("*_rank_0000.jsonl"):
            path.write_bytes(path.read_bytes() + b'{"problem_id": "half of a line')  # the holder is writing it
        before = {path: path.read_bytes() for path in store.folder.iterdir()}
        assert grpo("profile", small_run_file(tmp_path / "b", **BASE, **shared)) == 4
        assert {path: path.read_bytes() for path in store.folder.iterdir()} == before
    assert len(before) > 4
    assert f"process {os.getpid()} is profiling into it; wait for it or stop it" in told(capsys)


def test_a_policy_that_has_moved_is_profiled_again_on_noise_of_its_own(tmp_path):
    with opened_run(small_run_config(tmp_path, **BASE)) as run:
        first = profiled_by(run, tmp_path / "store")
        again = profiled_by(run, tmp_path / "store", phase="reprofile", step=3)
        known = profiled_by(run, tmp_path / "store", phase="reprofile", step=3)
    assert len([folder for folder in (tmp_path / "store").iterdir() if folder.is_dir()]) == 2
    assert again.drawn_rollouts == again.num_rollouts > 0
    assert (known.drawn_rollouts, known.drawn_tokens) == (0, 0)
    assert (known.tiers, known.num_rollouts, known.num_tokens) == (again.tiers, again.num_rollouts, again.num_tokens)
    assert first.tiers.keys() == again.tiers.keys()
    assert first.mean_tokens != again.mean_tokens


def test_a_stop_while_profiling_says_where_the_verdicts_are(tmp_path):
    with opened_run(small_run_config(tmp_path, **BASE)) as run:
        object.__setattr__(run, "should_stop", lambda: True)
        with pytest.raises(Interrupted, match=r"every verdict is in .*store.*: add --resume"):
            profiled_by(run, tmp_path / "store")


def test_a_run_that_trains_on_the_groups_of_a_profile_is_not_gone_on_with_without_them(tmp_path, capsys):
    shared = tmp_path / "shared"
    config = small_run_file(tmp_path, **BASE, **{"profile.folder": str(shared), "train.steps": 2})
    assert grpo("profile", config) == 0
    assert grpo("train", config) == 0
    assert grpo("train", config, "--resume", "train.steps=3", f"profile.folder={tmp_path}/other") == 4
    assert "it differs in profile.folder" in told(capsys)
    shared.rename(tmp_path / "moved")
    assert grpo("train", config, "--resume", "train.steps=3") == 4
    assert "the folder of the profile's groups is gone, and steps before profile.reuse_steps" in told(capsys)
    (tmp_path / "moved").rename(shared)
    assert grpo("train", config, "--resume", "train.steps=3") == 0


class SecondNode(World):
    """A world of two ranks of which the other one has a disk of its own."""

    def gather(self, value: Any) -> list[Any]:
        return [value, False if isinstance(value, bool) else value]


def test_a_store_that_not_every_rank_sees_is_refused_before_anything_is_drawn(tmp_path):
    with opened_run(small_run_config(tmp_path, **BASE)) as run:
        object.__setattr__(run, "world", SecondNode(rank=0, size=1, device=run.world.device))
        with pytest.raises(RunFolderError, match=r"rank 1 does not see what rank 0 writes there.*set profile.folder"):
            profiled_by(run, tmp_path / "store")
    assert records_of(tmp_path / "store") == []
