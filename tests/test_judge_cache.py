"""The answers that the judge keeps on disk, under kills, crowds, full disks and broken files."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from time import monotonic, sleep

import pytest

from rewards import Pool, RewardSpec
from rewards.judge import Judge, JudgeError, JudgeOptions
from rewards.judging.cache import AnswerCache
from tests.judge_server import completion, fails, http, quick_options, raw, says, serving, text_completion

ROOT = Path(__file__).resolve().parents[1]
GOOD = {"80": 0.5, "90": 0.5}


def judge_options(server, folder, **options):
    return quick_options(server, cache_folder=str(folder), **{"max_retries": 1, **options})


def judge(server, folder, **options):
    return Judge(JudgeOptions(**judge_options(server, folder, **options)))


def test_what_has_been_asked_before_is_not_asked_again(tmp_path):
    with serving(says(GOOD), fails(500)) as server:
        first = judge(server, tmp_path / "a" / "b").ask("p")
        again = judge(server, tmp_path / "a" / "b").ask("p")
    assert len(server.requests) == 1
    assert (again.score, again.mass) == (first.score, first.mass)
    assert "from the cache" in again.detail
    assert "from the cache" not in first.detail


def test_workers_of_a_pool_share_the_answers(tmp_path):
    with serving(says(GOOD)) as server:
        options = {"rubric": "{completion}", **judge_options(server, tmp_path)}
        calls = [(RewardSpec("judge", options=options), str(number), {}) for number in range(8)]
        with Pool(workers=4, timeout_seconds=20.0) as pool:
            first = pool.score_all(calls)
            num_requests = len(server.requests)
            again = pool.score_all(calls[::-1])
    assert num_requests == len(server.requests) == 8
    assert [reward.value for reward in (*first, *again)] == pytest.approx([0.85] * 16)


@pytest.mark.parametrize(
    "other", [{"model": "judge-2"}, {"system": "Be kind."}, {"extra": {"seed": 1}}, {"highest": 9}, {"read": "text"}]
)
def test_another_question_is_asked_by_itself(tmp_path, other):
    both = json.loads(completion({"8": 1.0}))
    with serving(raw(http(200, json.dumps(both).encode().replace(b'"length"', b'"stop"')))) as server:
        judge(server, tmp_path).ask("p")
        judge(server, tmp_path, **other).ask("p")
        judge(server, tmp_path).ask("p ")
    assert len(server.requests) == 3


def test_the_same_answer_is_read_on_another_scale_or_by_other_limits_without_asking(tmp_path):
    with serving(says({"40": 0.3, "I": 0.7})) as server:
        assert judge(server, tmp_path).ask("p").score == pytest.approx(40.0)
        assert judge(server, tmp_path, minimum_mass=0.5, timeout_seconds=3.0).ask("p").score is None
        assert judge(server, tmp_path, highest=50, value="score", run="other").ask("p").score == pytest.approx(40.0)
    assert len(server.requests) == 1


def test_another_endpoint_with_the_same_model_name_is_asked(tmp_path):
    with serving(says(GOOD)) as one, serving(says({"10": 1.0})) as two:
        assert judge(one, tmp_path).ask("p").score == pytest.approx(85.0)
        assert judge(two, tmp_path).ask("p").score == pytest.approx(10.0)


@pytest.mark.parametrize(
    "act",
    [
        fails(400),
        fails(500),
        raw(http(200, b"<html>")),
        raw(http(200, text_completion("85"))),
        raw(http(200, completion(GOOD))[:-9]),
        says({"8": 1.0}, second="5"),
        says({"80": 1.0, "90": 1.0}),
    ],
)
def test_what_is_no_answer_is_not_kept(tmp_path, act):
    with serving(act, says(GOOD)) as server:
        with pytest.raises(JudgeError):
            judge(server, tmp_path, max_retries=0).ask("p")
        assert judge(server, tmp_path).ask("p").score == pytest.approx(85.0)


def test_an_abstention_is_an_answer_and_kept(tmp_path):
    with serving(says({"I": 1.0}), says(GOOD)) as server:
        assert judge(server, tmp_path).ask("p").score is None
        assert judge(server, tmp_path).ask("p").score is None


def cache_file(folder):
    return AnswerCache(folder).path


def make_other_tables(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE answers (other INTEGER)")


def damage_the_middle(path):
    cache = AnswerCache(path.parent)
    for number in range(500):
        cache.put(str(number), "x" * 200)
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))


BREAKAGES = {
    "garbage": lambda path: path.write_bytes(b"garbage " * 4096),
    "another format": lambda path: path.write_text("{}"),
    "other tables": make_other_tables,
    "damaged pages": damage_the_middle,
    "half a header": lambda path: path.write_bytes(b"SQLite format 3\0" + b"\0" * 50),
}


@pytest.mark.parametrize("how", BREAKAGES)
def test_a_broken_cache_is_named_and_set_aside_and_another_begun(tmp_path, caplog, how):
    path = cache_file(tmp_path)
    BREAKAGES[how](path)
    broken = path.read_bytes()
    with serving(says(GOOD)) as server:
        verdict = judge(server, tmp_path).ask("p")
        assert verdict.score == pytest.approx(85.0)
        assert str(path) in verdict.detail
        assert "set aside as judge_answers.broken-" in verdict.detail
        assert "set aside" in caplog.text
        (aside,) = tmp_path.glob("judge_answers.broken-*.sqlite")
        assert aside.read_bytes() == broken
        again = judge(server, tmp_path).ask("p")
        assert "from the cache" in again.detail
        assert "set aside" not in again.detail
    assert len(server.requests) == 1


def test_many_that_find_the_cache_broken_set_it_aside_once(tmp_path):
    cache_file(tmp_path).write_bytes(b"garbage " * 4096)
    start = threading.Barrier(8)

    def put(number):
        start.wait()
        cache = AnswerCache(tmp_path)
        return [cache.put(f"{number} {turn}", "a") for turn in range(10)]

    with ThreadPoolExecutor(8) as executor:
        remarks = [remark for remarks in executor.map(put, range(8)) for remark in remarks]
    assert len(list(tmp_path.glob("judge_answers.broken-*.sqlite"))) == 1
    assert len([remark for remark in remarks if "set aside as" in remark]) == 1
    with closing(sqlite3.connect(cache_file(tmp_path))) as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone()[0] >= 72


@pytest.mark.parametrize("stored", ["", "{}", '["a", [["85", null]], []]', '["", [["85", 0.0], ["86", 0.0]], []]'])
def test_a_kept_answer_that_is_none_is_asked_for_again_and_replaced(tmp_path, stored):
    with serving(says(GOOD)) as server:
        judge(server, tmp_path).ask("p")
        with closing(sqlite3.connect(cache_file(tmp_path))) as connection, connection:
            connection.execute("UPDATE answers SET answer = ?", (stored,))
        verdict = judge(server, tmp_path).ask("p")
        assert verdict.score == pytest.approx(85.0)
        assert "the cache held no answer" in verdict.detail
        assert judge(server, tmp_path).ask("p").detail.endswith("from the cache")
    assert len(server.requests) == 2


def test_a_full_disk_costs_the_cache_and_not_the_verdict(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving(says(GOOD)) as server:
        asked = judge(server, tmp_path)
        asked.ask("p")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))  # Python ignores the signal: writes fail
            verdict = asked.ask("q")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert verdict.score == pytest.approx(85.0)
        assert "could not be used" in verdict.detail
        assert "from the cache" in asked.ask("p").detail
        assert "from the cache" not in asked.ask("q").detail


def test_a_cache_that_somebody_holds_is_done_without_in_time(tmp_path):
    with serving(says(GOOD)) as server:
        asked = judge(server, tmp_path)
        asked.ask("p")
        with closing(sqlite3.connect(cache_file(tmp_path), isolation_level=None)) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            start_seconds = monotonic()
            verdict = asked.ask("p")
            assert monotonic() - start_seconds < 4.0
    assert verdict.score == pytest.approx(85.0)
    assert "locked" in verdict.detail


def test_a_cache_that_is_a_folder_or_deleted_meanwhile_is_done_without(tmp_path):
    with serving(says(GOOD)) as server:
        asked = judge(server, tmp_path)
        asked.ask("p")
        cache_file(tmp_path).unlink()
        assert "from the cache" not in asked.ask("p").detail
        cache_file(tmp_path).unlink()
        cache_file(tmp_path).mkdir()
        verdict = asked.ask("p")
    assert verdict.score == pytest.approx(85.0)
    assert "could not be used" in verdict.detail


def test_a_cache_folder_that_cannot_be_made_is_refused_when_the_reward_is_built(tmp_path):
    (tmp_path / "file").write_text("")
    with serving(says(GOOD)) as server, pytest.raises(ValueError, match=r"cache_folder = .*cannot be made"):
        judge(server, tmp_path / "file" / "folder")


def in_another_process(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


PUT_FOR_EVER = """
import sys
from pathlib import Path
from rewards.judging.cache import AnswerCache
cache = AnswerCache(Path(sys.argv[1]))
for number in range(10**9):
    assert not cache.put(f"{sys.argv[2]} {number}", f"{number} " * 300)
    print(number, flush=True)
"""


DIE_IN_THE_MIDST = """
import os, signal, sys
from pathlib import Path
from rewards.judging.cache import AnswerCache, open_database
cache = AnswerCache(Path(sys.argv[1]))
assert not cache.put("before", "b")
with open_database(cache.path, "PRAGMA cache_size = 10", wait_seconds=1.0) as connection:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE answers SET answer = 'half'")
    connection.executemany("INSERT INTO answers VALUES (?, ?)", ((str(n), "x" * 2000) for n in range(500)))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_that_is_killed_in_the_midst_of_writing_has_written_nothing(tmp_path):
    process = in_another_process(DIE_IN_THE_MIDST, tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert cache_file(tmp_path).stat().st_size > 100_000  # pages of the half transaction are in the file
    cache = AnswerCache(tmp_path)
    assert cache.get("before") == ("b", "")
    assert cache.get("1") == (None, "")
    assert cache.put("1", "y") == ""


@pytest.mark.slow
def test_writers_that_are_killed_leave_every_answer_whole(tmp_path):
    for round_ in range(4):
        writers = [in_another_process(PUT_FOR_EVER, tmp_path, f"{round_}{name}") for name in "ab"]
        for writer in writers:
            writer.stdout.readline()
        sleep(0.02 + 0.013 * round_)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
        for name, writer in zip("ab", writers, strict=True):
            printed = writer.communicate(timeout=60)[0].split()
            for number in (0, *map(int, printed[-50:])):
                answer, remark = AnswerCache(tmp_path).get(f"{round_}{name} {number}")
                assert (answer, remark) == (f"{number} " * 300, "")
    with closing(sqlite3.connect(cache_file(tmp_path))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert not list(tmp_path.glob("judge_answers.broken-*"))
