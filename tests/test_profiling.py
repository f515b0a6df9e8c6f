"""Profiling with real rollouts: early stop, a store that survives, and no verdicts of another policy."""

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.manifest import MANIFEST_FILE, Manifest, read_manifest
from grpo.rollout import Rollouts
from tests.runs import grpo, read_jsonl, small_run_file

UNIFORM_START = {"sft": None}


def profiled(folder: Path, **changes: Any) -> Path:
    assert grpo("profile", small_run_file(folder, **(UNIFORM_START | changes))) == 0
    return folder / "runs" / "small"


def tiers_of(run: Path) -> Manifest:
    return read_manifest(run / "profile" / MANIFEST_FILE)


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/attempts_rank_*.jsonl"))


def shard_of(run: Path) -> Path:
    (shard,) = shards_of(run / "profile")
    return shard


def verdicts_of(run: Path) -> dict[str, list[bool | None]]:
    """Per problem its verdicts in attempt order."""
    found: dict[str, dict[int, bool | None]] = {}
    for record in read_jsonl(shard_of(run))[1:]:
        for offset, correct in enumerate(record["correct"]):
            found.setdefault(record["problem_id"], {})[record["first_attempt"] + offset] = correct
    assert all(sorted(attempts) == list(range(len(attempts))) for attempts in found.values())
    return {problem_id: [attempts[i] for i in range(len(attempts))] for problem_id, attempts in found.items()}


def judged_by(folder: Path, expression: str) -> dict[str, Any]:
    path = folder / "judge.py"
    path.write_text(f"def judge(completion, problem):\n    return {expression}\n", encoding="utf-8")
    return {"reward.file": str(path), "reward.function": "judge"}


def test_a_problem_ends_with_the_wave_of_its_first_success_and_is_labelled_by_it(tmp_path):
    run = profiled(tmp_path)
    table, verdicts = tiers_of(run), verdicts_of(run)
    assert table.num_rollouts == sum(map(len, verdicts.values()))
    assert len(table.rows) == len(verdicts) == 40
    for row in table.rows:
        drawn = verdicts[row["id"]]
        first_success = drawn.index(True) + 1 if True in drawn else None
        # Waves end at 4, 8 and 16 rollouts.
        assert len(drawn) == next(end for end in (4, 8, 16) if end >= (first_success or 16))
        expected = "unsolved" if first_success is None else "moderate" if first_success <= 8 else "extreme"
        assert row["tier"] == ("trivial" if all(drawn[:4]) else expected)
    assert {row["tier"] for row in table.rows} >= {"moderate", "extreme", "unsolved"}


@pytest.mark.parametrize(("judge", "tier", "num_rollouts"), [("1.0", "trivial", 4 * 40), ("0.0", "unsolved", 16 * 40)])
def test_the_easiest_and_the_hardest_reward_cost_the_least_and_the_most(tmp_path, judge, tier, num_rollouts):
    table = tiers_of(profiled(tmp_path, **judged_by(tmp_path, judge)))
    assert table.counts[tier] == 40
    assert table.num_rollouts == num_rollouts


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("torn", [True, False])
def test_a_torn_store_is_taken_up_and_ends_as_a_whole_one(tmp_path, share, torn):
    expected = profiled(tmp_path / "whole")
    run = profiled(tmp_path / "torn")
    store = shard_of(run)
    lines = store.read_bytes().splitlines(keepends=True)
    left = lines[: int(len(lines) * share)]
    store.write_bytes(b"".join(left) + (lines[len(left)][:-9] if torn else b""))
    (run / "profile" / MANIFEST_FILE).unlink()
    assert grpo("profile", tmp_path / "torn" / "config.yaml", "--resume") == 0
    assert store.read_bytes().startswith(b"".join(left))
    assert verdicts_of(run) == verdicts_of(expected)
    assert (run / "profile" / MANIFEST_FILE).read_bytes() == (expected / "profile" / MANIFEST_FILE).read_bytes()


def test_a_finished_profile_draws_nothing_more(tmp_path):
    run = profiled(tmp_path)
    before = shard_of(run).read_bytes(), tiers_of(run)
    assert grpo("profile", tmp_path / "config.yaml", "--resume") == 0
    assert (shard_of(run).read_bytes(), tiers_of(run)) == before


@pytest.mark.parametrize("field", ["policy", "temperature", "seed"])
def test_a_shard_of_another_policy_or_setting_in_this_ones_folder_is_refused_by_the_field_that_differs(
    tmp_path, capsys, field
):
    store = shard_of(profiled(tmp_path))
    header, *records = store.read_bytes().splitlines(keepends=True)
    changed = json.loads(header)
    changed["fingerprint"][field] = "another"
    store.write_bytes(json.dumps(changed).encode() + b"\n" + b"".join(records))
    assert grpo("profile", tmp_path / "config.yaml", "--resume") == 4
    said = capsys.readouterr().err
    assert f"{field}: stored 'another'" in said
    assert "profile into another folder" in said


def test_another_cold_start_makes_another_profile(tmp_path):
    config = small_run_file(tmp_path)
    assert grpo("sft", config) == 0
    assert grpo("profile", config) == 0
    run = tmp_path / "runs" / "small"
    assert tiers_of(run).fingerprint["policy"] != tiers_of(profiled(tmp_path / "base")).fingerprint["policy"]
    # A cold start that is run again takes the profile of the one before with it.
    assert grpo("sft", config, "--fresh") == 0
    assert not (run / "profile").exists()


def test_a_reward_that_abstains_is_asked_again_and_loses_nothing(tmp_path):
    judge = "None if ord(completion[:1] or '!') % 3 == 0 else float(ord(completion[:1]) % 8 == 0)"
    run = profiled(tmp_path, **judged_by(tmp_path, judge), **{"reward.max_error_fraction": 0.0})
    for row in tiers_of(run).rows:
        drawn = verdicts_of(run)[row["id"]]
        valued = [correct for correct in drawn if correct is not None]
        assert row["estimate"] == sum(valued[:4]) / 4
        assert row["tier"] != "unsolved" or len(valued) == 16


def test_lost_verdicts_are_drawn_again_and_count_for_nothing(tmp_path):
    judge = "1 / 0 if ord(completion[:1] or '!') % 9 == 0 else float(ord(completion[:1] or '!') % 8 == 0)"
    run = profiled(tmp_path, **judged_by(tmp_path, judge), **{"reward.max_error_fraction": 0.5})
    verdicts = verdicts_of(run)
    assert any(None in drawn for drawn in verdicts.values())
    for row in tiers_of(run).rows:
        valued = [correct for correct in verdicts[row["id"]] if correct is not None]
        assert row["estimate"] == sum(valued[:4]) / 4


def test_too_many_lost_verdicts_end_the_profile_by_name(tmp_path, capsys):
    judged = judged_by(tmp_path, "1 / 0")
    assert grpo("profile", small_run_file(tmp_path, **UNIFORM_START, **judged)) == 6
    said = capsys.readouterr().err
    assert "reward.max_error_fraction = 0.05" in said
    assert "ZeroDivisionError" in said


def judged_until(folder: Path, *, first_lost: int, num_lost: int) -> dict[str, Any]:
    """A judge that loses so many verdicts, from that call of a process on."""
    path = folder / "judge.py"
    path.write_text(
        "calls = 0\n\ndef judge(completion, problem):\n    global calls\n    calls += 1\n"
        f"    if {first_lost} <= calls < {first_lost + num_lost}:\n        raise OSError('the judge is gone')\n"
        "    return float(ord(completion[:1] or '!') % 8 == 0)\n",
        encoding="utf-8",
    )
    return {"reward.file": str(path), "reward.function": "judge", "sampling.max_rows": 8}


def test_a_judge_that_dies_late_ends_the_profile_and_nothing_that_it_lost_is_stored(tmp_path, capsys):
    # Waves are of 16 rollouts after a first one of 8: 16 of 216 verdicts are within the limit, 16 of 16 are not.
    judged = judged_until(tmp_path, first_lost=201, num_lost=10**6) | {"reward.max_error_fraction": 0.3}
    assert grpo("profile", small_run_file(tmp_path, **UNIFORM_START, **judged)) == 6
    said = capsys.readouterr().err
    assert "profile, its last wave: 16 of 16 verdicts were lost, more than reward.max_error_fraction = 0.3" in said
    assert "the judge is gone" in said
    records = read_jsonl(shard_of(tmp_path / "runs" / "small"))[1:]
    assert sum(len(record["correct"]) for record in records) == 200
    assert all(None not in record["correct"] for record in records)


def test_one_lost_verdict_of_a_small_wave_ends_nothing(tmp_path):
    # One of 16, which is more than 0.05 of them.
    run = profiled(tmp_path, **judged_until(tmp_path, first_lost=200, num_lost=1))
    assert sum(drawn.count(None) for drawn in verdicts_of(run).values()) == 1


def test_after_a_broken_reward_is_mended_a_resume_gives_the_tiers_of_an_unbroken_run(tmp_path, capsys):
    expected = profiled(tmp_path / "whole", **judged_by(tmp_path, "float(ord(completion[:1] or '!') % 8 == 0)"))
    judged = judged_by(tmp_path, "1 / 0")
    config = small_run_file(tmp_path / "broken", **UNIFORM_START, **judged)
    run = tmp_path / "broken" / "runs" / "small"
    for start in ([], *[["--resume"]] * 6):  # more often than a lost verdict is drawn again
        assert grpo("profile", config, *start) == 6
        assert "mend it and add --resume" in capsys.readouterr().err
        assert all(read_jsonl(shard)[1:] == [] for shard in shards_of(run / "profile"))
    judged_by(tmp_path, "float(ord(completion[:1] or '!') % 8 == 0)")
    assert grpo("profile", config, "--resume") == 0
    assert [row | {"policy": ""} for row in tiers_of(run).rows] == [r | {"policy": ""} for r in tiers_of(expected).rows]


def test_a_problem_without_a_verdict_has_no_tier_and_is_counted(tmp_path, capsys):
    run = profiled(tmp_path, **judged_by(tmp_path, "None if problem['id'] < '8' else 1.0"))
    table = tiers_of(run)
    judged = {problem_id for problem_id in verdicts_of(run) if problem_id >= "8"}
    assert {row["id"] for row in table.rows} == judged
    assert table.counts == {"trivial": len(judged), "moderate": 0, "extreme": 0, "unsolved": 0}
    assert table.num_without_tier == 40 - len(judged) > 0
    said = capsys.readouterr().out
    assert f"{40 - len(judged)} without a tier" in said
    assert f"profile: {40 - len(judged)} problems got no verdict with a value and so no tier" in said


def test_the_line_of_progress_ends_with_the_tiers_of_the_table(tmp_path, capsys):
    rules = {"profile.trivial_rate": 0.5, "profile.relabel_rollouts": 4}
    table = tiers_of(profiled(tmp_path, **rules))
    assert table.counts["trivial"] * table.counts["extreme"] > 0
    expected = ", ".join(f"{tier} {count}" for tier, count in table.counts.items())
    last = [line for line in capsys.readouterr().out.splitlines() if "profile: 40/40 problems" in line][-1]
    assert last.endswith(expected)


def test_no_more_than_two_batches_of_the_sampler_are_at_stake_at_a_time(tmp_path, monkeypatch):
    run, waves = Rollouts.run, []

    def counted(self: Rollouts, attempts: Any, **options: Any) -> Any:
        waves.append(sum(wanted.num_rollouts for wanted in attempts))
        return run(self, attempts, **options)

    monkeypatch.setattr(Rollouts, "run", counted)
    table = tiers_of(profiled(tmp_path, **{"sampling.max_rows": 8}))
    assert max(waves) == 16
    assert sum(waves) == table.num_rollouts
