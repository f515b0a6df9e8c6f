"""The tier manifest: what its rows say, that `datasets` opens it, and what they come to by tier."""

import math

import datasets
import pytest
import torch

from curricula.attempts import Attempts
from curricula.store import tier_table
from grpo.config import ProfileConfig
from grpo.errors import DataError
from grpo.fingerprints import policy_print
from grpo.manifest import (
    Manifest,
    by_tier,
    difficulty_histogram,
    manifest_of,
    powers_of_two,
    read_manifest,
    write_manifest,
)

DRAWN = {
    "easy": [True] * 8,
    "fair": [True, False, None, *[False] * 6],
    "hard": [False] * 40 + [True] + [False] * 23,
    "late": [False] * 16 + [True] + [False] * 15,
    "none": [False] * 64,
    "silent": [None] * 24,
}


def manifest(**rules) -> Manifest:
    config = ProfileConfig(max_rollouts=64, **rules)
    attempts = {name: Attempts() for name in DRAWN}
    for name, correct in DRAWN.items():
        attempts[name].add(0, correct, range(len(correct)))
    table = tier_table(attempts, first_rollouts=config.first_rollouts, max_rollouts=64)
    return manifest_of(
        table, attempts, config=config, policy="abc", temperature=0.7, fingerprint={"policy": "abc", "seed": 1}
    )


def test_a_row_holds_what_its_stopping_rule_allows():
    rows = {row["id"]: row for row in manifest().rows}
    assert list(rows) == ["easy", "fair", "hard", "late", "none"]
    expected = {
        "easy": ("trivial", "fixed", 8, 8, 1.0, 0, 8, 0),
        "fair": ("moderate", "fixed", 8, 1, 1 / 8, 0, 9, 1),
        "hard": ("extreme", "first_success", 41, 1, 0.0, 40, 64, 0),
        "late": ("moderate", "first_success", 17, 1, 0.0, 16, 32, 0),
        "none": ("unsolved", "exhausted", 64, 0, 0.0, None, 64, 0),
    }
    names = ("tier", "stopping_rule", "num_rollouts", "num_correct", "estimate", "first_success_attempt")
    for problem_id, values in expected.items():
        assert tuple(rows[problem_id][n] for n in (*names, "num_attempts", "num_without_value")) == values
    assert [rows["fair"][f"pass@{k}"] for k in (1, 2, 4, 8)] == [1 / 8, 2 / 8, 4 / 8, 1.0]
    assert "pass@16" not in rows["fair"]
    assert rows["hard"]["total_tokens"] == sum(range(64))
    assert rows["hard"]["mean_tokens"] == sum(range(41)) / 41
    assert all(0 <= row["label_error"] <= 1 for row in rows.values())
    assert {row["temperature"] for row in rows.values()} == {0.7}


def test_the_file_comes_back_as_it_was_and_the_same_manifest_makes_the_same_bytes(tmp_path):
    written = manifest()
    for name in ("a", "b"):
        write_manifest(tmp_path / name, written)
    assert read_manifest(tmp_path / "a") == written
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    some = read_manifest(tmp_path / "a", columns=("id", "tier")).rows[0]
    assert some == {"id": "easy", "tier": "trivial"}
    assert (written.num_problems, written.num_without_tier, written.num_rollouts) == (6, 1, 8 + 9 + 64 + 32 + 64 + 24)
    assert written.counts == {"trivial": 1, "moderate": 2, "extreme": 1, "unsolved": 1}


def test_datasets_opens_the_file(tmp_path):
    write_manifest(tmp_path / "tiers.parquet", manifest())
    opened = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "tiers.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert opened["tier"][:2] == ["trivial", "moderate"]
    assert opened.filter(lambda row: row["tier"] == "extreme")["first_success_attempt"][:] == [40]
    assert opened[0]["pass@8"] == 1.0


@pytest.mark.parametrize("first_rollouts", [1, 6, 16])
def test_pass_at_k_is_given_for_the_powers_of_two_that_the_first_rollouts_allow(tmp_path, first_rollouts):
    write_manifest(tmp_path / "m", manifest(first_rollouts=first_rollouts))
    columns = [name for name in read_manifest(tmp_path / "m").rows[0] if name.startswith("pass@")]
    assert columns == [f"pass@{k}" for k in {1: [1], 6: [1, 2, 4], 16: [1, 2, 4, 8, 16]}[first_rollouts]]
    assert powers_of_two(8) == [1, 2, 4, 8]


def test_an_empty_manifest_is_one_all_the_same(tmp_path):
    empty = Manifest(rows=(), num_problems=3, num_rollouts=24, num_tokens=24, fingerprint={})
    write_manifest(tmp_path / "m", empty)
    assert read_manifest(tmp_path / "m") == empty
    assert [summary.num_problems for summary in by_tier(empty.rows)] == [0, 0, 0, 0]
    assert math.isnan(by_tier(empty.rows)[0].mean_tokens)
    assert sum(map(sum, difficulty_histogram(empty.rows)[1].values())) == 0


@pytest.mark.parametrize("content", [b"", b"PAR1", b"some notes"])
def test_what_is_no_manifest_is_refused_by_name(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(DataError, match=r"m: is no tier manifest"):
        read_manifest(tmp_path / "m")


def test_another_parquet_file_is_refused_by_name(tmp_path):
    datasets.Dataset.from_dict({"id": ["a"]}).to_parquet(str(tmp_path / "m"))
    with pytest.raises(DataError, match=r"m: is no tier manifest \(its format is None"):
        read_manifest(tmp_path / "m")


def test_a_summary_counts_its_tier_and_expects_as_many_wrong_labels_as_the_errors_say():
    rows = manifest().rows
    moderate = by_tier(rows)[1]
    own = [row for row in rows if row["tier"] == "moderate"]
    assert (moderate.tier, moderate.num_problems, moderate.share) == ("moderate", 2, 2 / 5)
    assert moderate.mean_rollouts == (9 + 32) / 2
    assert moderate.num_wrong == pytest.approx(sum(row["label_error"] for row in own))


def test_the_histogram_puts_each_problem_in_one_bar_of_its_tier():
    labels, counts = difficulty_histogram(manifest().rows)
    assert labels == [*(f"{c}/8" for c in range(8, 0, -1)), "≤16", "≤32", "≤64", "none"]
    placed = {tier: [labels[i] for i, n in enumerate(of_tier) for _ in range(n)] for tier, of_tier in counts.items()}
    assert placed == {"trivial": ["8/8"], "moderate": ["1/8", "≤32"], "extreme": ["≤64"], "unsolved": ["none"]}


# --- what a policy is known by ----------------------------------------------------------------------------------------


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {"a": torch.randn(100, 200, generator=generator).to(dtype), "b": torch.ones(3, dtype=dtype)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_policy_is_known_by_its_content_whatever_the_order_and_the_threads(dtype):
    first = policy_print(weights(dtype))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = policy_print(dict(reversed(weights(dtype).items())))
    finally:
        torch.set_num_threads(before)
    assert again == first


@pytest.mark.parametrize("place", [0, 1, 19_999])
def test_any_one_element_that_changes_makes_another_policy_of_the_same_family(place):
    changed = weights()
    element = changed["a"].view(-1)[place]
    changed["a"].view(-1)[place] = torch.nextafter(element, torch.tensor(10.0))
    assert policy_print(changed).content != policy_print(weights()).content
    assert policy_print(changed).family == policy_print(weights()).family


def test_names_shapes_and_types_make_another_family():
    every = [
        weights(),
        weights(torch.float16),
        {"a": weights()["a"].T.contiguous(), "b": weights()["b"]},
        {"c": weights()["a"], "b": weights()["b"]},
    ]
    assert len({policy_print(of).family for of in every}) == len(every)
