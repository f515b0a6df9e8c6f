"""The profile store survives a kill at any byte, merges its shards exactly, and refuses what is not its own."""

import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curricula.attempts import Attempts
from curricula.shards import Record, Shard, read_shard
from curricula.store import ProfileStore, fingerprint_hash

FINGERPRINT = {"policy": "abc", "temperature": 1.0, "limits": (33, 512)}
RECORDS = [
    Record("a", 0, (True, False, None), (3, 4, 5)),
    Record("ü", 0, (False,), (7,)),
    Record("a", 3, (True,), (1,)),
]


def read(path):
    return [record for _, record in read_shard(path, fingerprint=FINGERPRINT)]


def as_written(attempts):
    """What is known of a problem, in a form that == compares."""
    return bytes(attempts.codes), list(attempts.num_tokens)


# --- one shard --------------------------------------------------------------------------------------------------------


def test_records_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "deep" / "shard.jsonl"
    with Shard.open(path, fingerprint=FINGERPRINT) as shard:
        shard.append(RECORDS[:2])
        shard.append(RECORDS[2:])
        assert read(path) == RECORDS
    with Shard.open(path, fingerprint=FINGERPRINT):
        assert read(path) == RECORDS


def test_a_shard_cut_at_any_byte_holds_the_records_before_the_cut_for_readers_and_the_next_writer(tmp_path):
    path = tmp_path / "shard.jsonl"
    with Shard.open(path, fingerprint=FINGERPRINT) as shard:
        shard.append(RECORDS)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        num_complete = max(0, whole[:cut].count(b"\n") - 1)
        assert read(path) == RECORDS[:num_complete]
        assert path.read_bytes() == whole[:cut]  # a reader changes nothing
        with Shard.open(path, fingerprint=FINGERPRINT) as shard:
            shard.append(RECORDS[num_complete:])
        assert path.read_bytes() == whole


def test_a_last_line_that_has_its_length_and_not_its_content_is_left_out(tmp_path):
    path = tmp_path / "shard.jsonl"
    with Shard.open(path, fingerprint=FINGERPRINT) as shard:
        shard.append(RECORDS)
    whole = path.read_bytes()
    *lines, last = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + b"\0" * (len(last) - 1) + b"\n")
    assert read(path) == RECORDS[:-1]
    with Shard.open(path, fingerprint=FINGERPRINT) as shard:
        shard.append(RECORDS[-1:])
    assert path.read_bytes() == whole


def test_a_process_killed_while_writing_loses_nothing_that_was_appended(tmp_path):
    program = (
        "import sys\n"
        "from curricula.store import ProfileStore\n"
        "from curricula.shards import Record\n"
        "shard = ProfileStore(sys.argv[1], fingerprint={'policy': 'abc'}).shard()\n"
        "for attempt in range(10**6):\n"
        "    shard.append([Record('a', attempt, (False,), (1,))])\n"
        "    print(attempt, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    last = -1
    for line in child.stdout:
        last = int(line)
        if last == 200:
            child.send_signal(signal.SIGKILL)
            break
    printed = [int(line) for line in child.stdout.read().splitlines() if line]
    child.wait()
    store = ProfileStore(tmp_path, fingerprint={"policy": "abc"})
    with store.shard():  # the dead process holds no lock
        attempts = [record.first_attempt for _, record in store.records()]
    assert attempts == list(range(len(attempts)))
    assert len(attempts) > max([last, *printed[:-1]])


def test_another_fingerprint_is_refused_by_the_names_of_its_fields(tmp_path):
    path = tmp_path / "shard.jsonl"
    Shard.open(path, fingerprint=FINGERPRINT).close()
    other = {**FINGERPRINT, "policy": "xyz", "seed": 1}
    expected = r"policy: stored 'abc', given 'xyz'; seed: stored '\(absent\)', given 1"
    with pytest.raises(ValueError, match=expected):
        Shard.open(path, fingerprint=other)
    with pytest.raises(ValueError, match=expected):
        list(read_shard(path, fingerprint=other))


def test_a_file_that_is_no_shard_is_refused_and_left_as_it_is(tmp_path):
    for content in (b"some notes", b"some notes\nmore\n", b'{"a": 1}\n'):
        path = tmp_path / "notes"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a profile store"):
            Shard.open(path, fingerprint=FINGERPRINT)
        with pytest.raises(ValueError, match="is not a profile store"):
            read(path)
        assert path.read_bytes() == content


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "shard.jsonl"
    with Shard.open(path, fingerprint=FINGERPRINT) as shard:
        shard.append(RECORDS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{broken\n" + lines[2])
    with pytest.raises(ValueError, match=r"jsonl:2: is not"):
        read(path)


def test_a_shard_has_one_writer_at_a_time(tmp_path):
    path = tmp_path / "shard.jsonl"
    with (
        Shard.open(path, fingerprint=FINGERPRINT),
        pytest.raises(ValueError, match="another process writes to it"),
    ):
        Shard.open(path, fingerprint=FINGERPRINT)
    Shard.open(path, fingerprint=FINGERPRINT).close()


def test_a_full_disk_leaves_the_shard_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "shard.jsonl"
    with Shard.open(path, fingerprint=FINGERPRINT) as store:
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
        assert read(path) == RECORDS
    assert os.path.getsize(path) > len(before)


# --- many shards ------------------------------------------------------------------------------------------------------


def written(tmp_path, *of_writers):
    """A store whose shard i holds the i-th of the given records."""
    store = ProfileStore(tmp_path, fingerprint=FINGERPRINT)
    for writer, records in enumerate(of_writers):
        with store.shard(writer) as shard:
            shard.append(records)
    return store


def test_shards_of_any_number_of_writers_are_read_as_one(tmp_path):
    store = written(tmp_path, RECORDS[2:], [], RECORDS[:1], RECORDS[1:2])
    found = store.attempts()
    assert list(found) == ["a", "ü"]
    assert as_written(found["a"]) == (bytes([1, 0, 2, 1]), [3, 4, 5, 1])
    with store.shard(0) as shard:  # a later profile has one rank alone: it reads all, and adds to its own
        shard.append([Record("a", 4, (False,), (9,))])
    assert store.attempts()["a"].num_recorded == 5


def test_a_torn_line_in_one_shard_costs_nothing_of_the_others(tmp_path):
    store = written(tmp_path, RECORDS[:1], RECORDS[1:2])
    first = store.folder / "attempts_rank_0000.jsonl"
    first.write_bytes(first.read_bytes()[:-5])
    (store.folder / "attempts_rank_0002.jsonl").write_bytes(b'{"fingerp')  # killed while it was begun
    assert list(store.attempts()) == ["ü"]


def test_a_record_in_two_shards_counts_once_even_where_it_was_cut_otherwise(tmp_path):
    store = written(
        *(tmp_path, [Record("a", 0, (True, False, None, False), (3, 4, 5, 6))]),
        [Record("a", 0, (True, False, None, False), (3, 4, 5, 6)), Record("a", 6, (True,), (8,))],
        [Record("a", 2, (None, False, True), (5, 6, 7)), Record("a", 5, (False, True), (2, 8))],
    )
    (attempts,) = store.attempts().values()
    assert as_written(attempts) == (bytes([1, 0, 2, 0, 1, 0, 1]), [3, 4, 5, 6, 7, 2, 8])
    assert attempts.num_recorded == 7


@pytest.mark.parametrize("other", [Record("a", 1, (True,), (4,)), Record("a", 0, (True, False), (3, 5))])
def test_two_shards_that_contradict_each_other_are_both_named(tmp_path, other):
    store = written(tmp_path, RECORDS[1:2], RECORDS[:1], [other])
    with pytest.raises(ValueError, match=r"rank_0002.jsonl:2: problem 'a': attempt 1 .*rank_0001.jsonl:2"):
        store.attempts()


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_merging_pieces_in_any_order_gives_each_attempt_once(data):
    codes = data.draw(st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=12))
    tokens = list(range(len(codes)))
    starts = st.integers(0, len(codes) - 1)
    pieces = data.draw(st.lists(st.tuples(starts, st.integers(1, len(codes))), min_size=1, max_size=6))
    attempts = Attempts()
    for start, length in pieces:
        attempts.merge(start, codes[start : start + length], tokens[start : start + length])
    covered = {place for start, length in pieces for place in range(start, min(start + length, len(codes)))}
    assert attempts.num_recorded == len(covered)
    for place in covered:
        assert attempts.codes[place] == (2 if codes[place] is None else int(codes[place]))
        assert attempts.num_tokens[place] == place


# --- several policies -------------------------------------------------------------------------------------------------


def test_several_fingerprints_lie_side_by_side_and_know_nothing_of_each_other(tmp_path):
    first, second = (ProfileStore(tmp_path, fingerprint=FINGERPRINT | {"policy": p}) for p in ("abc", "xyz"))
    for store, records in ((first, RECORDS[:1]), (second, RECORDS[1:])):
        with store.shard() as shard:
            shard.append(records)
    assert list(first.attempts()) == ["a"]
    assert list(second.attempts()) == ["a", "ü"]
    ((folder, fingerprint),) = first.others()
    assert (folder, fingerprint["policy"]) == (second.folder, "xyz")
    assert first.folder.name == fingerprint_hash(json.loads(json.dumps(first.fingerprint)))


def test_other_folders_that_cannot_be_read_are_in_nobodys_way(tmp_path):
    (tmp_path / "0123").mkdir()
    for content in (b"", b'{"fingerprint":{"a', b"notes\n"):
        (tmp_path / "0123" / "attempts_rank_0000.jsonl").write_bytes(content)
        assert ProfileStore(tmp_path, fingerprint=FINGERPRINT).others() == []


def test_a_locked_store_names_the_process_that_holds_it_and_another_fingerprint_is_free(tmp_path):
    store = ProfileStore(tmp_path, fingerprint=FINGERPRINT)
    with store.locked(note="host 1"):
        with pytest.raises(ValueError, match=f"process {os.getpid()} is profiling into it"), store.locked():
            pass
        with ProfileStore(tmp_path, fingerprint={"policy": "xyz"}).locked():
            pass
    with store.locked():
        pass


def test_the_folder_with_the_newest_shard_is_the_last_of_the_others_whatever_else_it_holds(tmp_path):
    stores = [ProfileStore(tmp_path, fingerprint={"policy": name}) for name in ("own", "old", "new")]
    times = {("old", 0): 20, ("new", 0): 10, ("new", 1): 30}  # the first shard of the newer folder is the oldest of all
    for store, name in zip(stores, ("own", "old", "new"), strict=True):
        for rank in (0, 1):
            if (name, rank) in times:
                store.shard(rank).close()
                os.utime(store.folder / f"attempts_rank_{rank:04d}.jsonl", (0, times[name, rank]))
    assert [fingerprint["policy"] for _, fingerprint in stores[0].others()] == ["old", "new"]
