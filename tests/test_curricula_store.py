"""The profile store survives a kill at any byte, refuses what is not its own, and labels by the stopping rule."""

import os
import signal
import subprocess
import sys

import pytest

from curricula.estimates import clopper_pearson, first_success_interval, no_success_interval
from curricula.store import ProfileStore, Record, tier_table
from curricula.types import Tier

FINGERPRINT = {"policy": "abc", "temperature": 1.0, "limits": (33, 512)}
RECORDS = [
    Record("a", 0, (True, False, None), (3, 4, 5)),
    Record("ü", 0, (False,), (7,)),
    Record("a", 3, (True,), (1,)),
]


def test_records_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "deep" / "profile.jsonl"
    with ProfileStore.open(path, fingerprint=FINGERPRINT) as store:
        store.append(RECORDS[:2])
        store.append(RECORDS[2:])
        assert list(store.records()) == RECORDS
    with ProfileStore.open(path, fingerprint=FINGERPRINT) as store:
        assert list(store.records()) == RECORDS


def test_a_file_cut_at_any_byte_holds_the_records_before_the_cut(tmp_path):
    path = tmp_path / "profile.jsonl"
    with ProfileStore.open(path, fingerprint=FINGERPRINT) as store:
        store.append(RECORDS)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        num_complete = max(0, whole[:cut].count(b"\n") - 1)
        with ProfileStore.open(path, fingerprint=FINGERPRINT) as store:
            assert list(store.records()) == RECORDS[:num_complete]
            store.append(RECORDS[num_complete:])
        assert path.read_bytes() == whole


def test_a_process_killed_while_writing_loses_nothing_that_was_appended(tmp_path):
    path = tmp_path / "profile.jsonl"
    program = (
        "import sys\n"
        "from curricula.store import ProfileStore, Record\n"
        "store = ProfileStore.open(sys.argv[1], fingerprint={'policy': 'abc'})\n"
        "for attempt in range(10**6):\n"
        "    store.append([Record('a', attempt, (False,), (1,))])\n"
        "    print(attempt, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    last = -1
    for line in child.stdout:
        last = int(line)
        if last == 200:
            child.send_signal(signal.SIGKILL)
            break
    printed = [int(line) for line in child.stdout.read().splitlines() if line]
    child.wait()
    with ProfileStore.open(path, fingerprint={"policy": "abc"}) as store:
        attempts = [record.first_attempt for record in store.records()]
    assert attempts == list(range(len(attempts)))
    assert len(attempts) > max([last, *printed[:-1]])


def test_another_fingerprint_is_refused_by_the_names_of_its_fields(tmp_path):
    path = tmp_path / "profile.jsonl"
    ProfileStore.open(path, fingerprint=FINGERPRINT).close()
    with pytest.raises(ValueError, match=r"policy: stored 'abc', given 'xyz'; seed: stored '\(absent\)', given 1"):
        ProfileStore.open(path, fingerprint={**FINGERPRINT, "policy": "xyz", "seed": 1})


def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(tmp_path):
    for content in (b"some notes", b"some notes\nmore\n", b'{"a": 1}\n'):
        path = tmp_path / "notes"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a profile store"):
            ProfileStore.open(path, fingerprint=FINGERPRINT)
        assert path.read_bytes() == content


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "profile.jsonl"
    with ProfileStore.open(path, fingerprint=FINGERPRINT) as store:
        store.append(RECORDS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{broken\n" + lines[2])
    with ProfileStore.open(path, fingerprint=FINGERPRINT) as store, pytest.raises(ValueError, match=r"jsonl:2: is not"):
        list(store.records())


def test_a_full_disk_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "profile.jsonl"
    with ProfileStore.open(path, fingerprint=FINGERPRINT) as store:
        store.append(RECORDS[:1])
        before = path.read_bytes()

        class FullDisk:
            closed = False

            def __init__(self, file):
                self.file = file

            def __getattr__(self, name):
                return getattr(self.file, name)

            def write(self, data):
                if len(data) < 20:
                    raise OSError(28, "No space left on device")
                return self.file.write(data[:10])

        real = store._file
        monkeypatch.setattr(store, "_file", FullDisk(real))
        with pytest.raises(OSError, match="No space"):
            store.append(RECORDS[1:])
        assert path.read_bytes() == before
        monkeypatch.setattr(store, "_file", real)
        store.append(RECORDS[1:])
        assert list(store.records()) == RECORDS
    assert os.path.getsize(path) > len(before)


@pytest.mark.parametrize(
    ("correct", "tier", "rule", "first_success", "interval"),
    [
        ([True] * 8, Tier.trivial, "fixed", 0, clopper_pearson(8, 8)),
        ([False] * 5 + [True] * 3, Tier.moderate, "fixed", 5, clopper_pearson(3, 8)),
        ([False] * 31 + [True] + [False] * 8, Tier.moderate, "first_success", 31, first_success_interval(32)),
        ([False] * 32 + [True] * 2, Tier.extreme, "first_success", 32, first_success_interval(33)),
        ([None] + [False] * 32 + [True], Tier.extreme, "first_success", 33, first_success_interval(33)),
        ([False] * 512, Tier.unsolved, "exhausted", None, no_success_interval(512)),
    ],
)
def test_labels_and_intervals_follow_the_stopping_rule(tmp_path, correct, tier, rule, first_success, interval):
    with ProfileStore.open(tmp_path / "p", fingerprint={}) as store:
        store.append([Record("a", 0, tuple(correct), tuple(range(len(correct))))])
        (row,) = tier_table(store)
    assert (row.tier, row.stopping_rule, row.first_success_attempt) == (tier, rule, first_success)
    assert (row.low, row.high) == interval
    num_counted = {"fixed": 8, "exhausted": 512}.get(rule, (first_success or 0) + 1)
    first = [right for right in correct if right is not None][:8]
    assert row.estimate == row.pass_at_1 == sum(first) / 8
    assert row.pass_at_8 == float(any(first))
    assert row.mean_tokens == pytest.approx((num_counted - 1) / 2)


@pytest.mark.parametrize("first_attempt", [0, 4])
def test_a_problem_of_which_nothing_is_known_has_no_tier(tmp_path, first_attempt):
    correct = (None, None) if first_attempt == 0 else (True, False)  # behind a gap nothing is settled
    with ProfileStore.open(tmp_path / "p", fingerprint={}) as store:
        store.append([Record("a", first_attempt, correct, (1, 1)), Record("b", 0, (False,), (1,))])
        assert [(row.problem_id, row.tier) for row in tier_table(store)] == [("b", Tier.unsolved)]


def test_the_trivial_rate_is_an_option(tmp_path):
    with ProfileStore.open(tmp_path / "p", fingerprint={}) as store:
        store.append([Record("a", 0, (True,) * 7 + (False,), (1,) * 8)])
        assert tier_table(store)[0].tier is Tier.moderate
        assert tier_table(store, trivial_rate=0.85)[0].tier is Tier.trivial
        with pytest.raises(ValueError, match="trivial_rate"):
            tier_table(store, trivial_rate=0.0)
