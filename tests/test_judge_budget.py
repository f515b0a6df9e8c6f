"""What the judge may spend and how fast, counted on disk by many processes and across restarts."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import Pool, RewardSpec, Status, build
from rewards.judge import Judge, JudgeError, JudgeOptions, worst_case_seconds
from rewards.judging.budget import Budget, BudgetError
from rewards.judging.cache import AnswerCache
from rewards.judging.scale import Answer
from tests.judge_server import fails, http, quick_options, raw, says, serving, waits

ROOT = Path(__file__).resolve().parents[1]
GOOD = {"80": 0.5, "90": 0.5}


def judge_options(server, folder, **options):
    return quick_options(server, cache_folder=str(folder), **{"max_retries": 1, **options})


def judge(server, folder, **options):
    return Judge(JudgeOptions(**judge_options(server, folder, **options)))


def in_another_process(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def budget(folder, *, run="r", endpoint="e", requests=None, tokens=None, requests_per_minute=None):
    return Budget(folder, run, endpoint, requests, tokens, requests_per_minute)


def test_a_spent_budget_is_an_error_that_names_it_and_sends_nothing(tmp_path):
    with serving(says(GOOD)) as server:
        options = {"rubric": "{completion}", **judge_options(server, tmp_path, budget_requests=2, run="first")}
        rewards = [build("judge", options)(text, {}) for text in "abca"]  # each of them begins again, as after a crash
        more = build("judge", {**options, "budget_requests": 3})("c", {})
        other = build("judge", {**options, "run": "second"})("d", {})
    assert [reward.status for reward in rewards] == [Status.SCORED, Status.SCORED, Status.ERROR, Status.SCORED]
    assert "budget_requests = 2 is spent: 2 requests of run 'first'" in rewards[2].detail
    assert "raise it, or name another run" in rewards[2].detail
    assert more.status is other.status is Status.SCORED
    assert len(server.requests) == 4


def test_each_try_counts(tmp_path):
    with (
        serving(fails(500), fails(500), says(GOOD)) as server,
        pytest.raises(JudgeError, match="budget_requests = 2 is spent"),
    ):
        judge(server, tmp_path, budget_requests=2, max_retries=5).ask("p")
    assert len(server.requests) == 2


def test_a_budget_of_nothing_answers_from_the_cache_alone(tmp_path):
    with serving(says(GOOD)) as server:
        judge(server, tmp_path).ask("p")
        closed = judge(server, tmp_path, budget_requests=0)
        assert closed.ask("p").score == pytest.approx(85.0)
        with pytest.raises(JudgeError, match="budget_requests = 0"):
            closed.ask("q")


def test_tokens_are_counted_as_the_server_bills_them(tmp_path):
    with serving(says(GOOD, total_tokens=400)) as server:
        asked = judge(server, tmp_path, budget_tokens=2000)
        for prompt in "abcd":
            asked.ask(prompt)
        assert budget(tmp_path, run="default").spent() == (4, 1600)
        with pytest.raises(JudgeError, match=r"budget_tokens = 2000 is spent: 1600 tokens, and up to \d+ for the next"):
            asked.ask("x" * 400)
        assert budget(tmp_path, run="default").spent() == (4, 1600)


@pytest.mark.parametrize(
    ("act", "billed"),
    [
        (fails(400), False),
        (fails(500), False),
        (says({"8": 1.0}, second="5"), False),
        (says(GOOD, total_tokens=None), True),
        (raw(http(200, b"<html>")), True),
        (raw(b""), True),
        (waits(5), True),
    ],
)
def test_the_bound_stays_counted_where_the_server_may_have_done_the_work(tmp_path, act, billed):
    with serving(act) as server:
        asked = judge(server, tmp_path, budget_tokens=10**6, max_retries=0, request_timeout_seconds=1.0)
        with suppress(JudgeError):
            asked.ask("p" * 100)
    requests, tokens = budget(tmp_path, run="default").spent()
    assert requests == 1
    assert (tokens > 250) is billed


def test_a_server_that_is_not_there_bills_nothing(tmp_path):
    with serving(says(GOOD)) as gone:
        asked = judge(gone, tmp_path, budget_tokens=10**6, max_retries=0)
    with serving(says(GOOD)), pytest.raises(JudgeError, match="no connection"):
        asked.ask("p")
    assert budget(tmp_path, run="default").spent() == (1, 0)


def test_tokens_without_a_limit_on_an_answer_are_refused(tmp_path):
    with serving(says(GOOD)) as server:
        with pytest.raises(ValueError, match="max_completion_tokens"):
            judge(server, tmp_path, budget_tokens=5, extra={"max_tokens": None})
        judge(server, tmp_path, budget_tokens=10**6, extra={"max_tokens": None, "max_completion_tokens": 5000}).ask("p")
        requests, tokens = budget(tmp_path, run="default").spent()
    assert (requests, tokens) == (1, 10)


RESERVE = """
import sys
from pathlib import Path
from rewards.judging.budget import Budget, BudgetError
budget = Budget(Path(sys.argv[1]), "r", "e", 40, None, None)
done = 0
for _ in range(40):
    try:
        budget.reserve(10, now=0.0, patience_seconds=20.0)
        done += 1
    except BudgetError as error:
        assert "budget_requests = 40 is spent" in str(error), error
        break
print(done)
"""


def test_processes_together_spend_what_the_budget_has_and_no_more(tmp_path):
    processes = [in_another_process(RESERVE, tmp_path) for _ in range(3)]
    done = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(done) == 40
    assert budget(tmp_path).spent() == (40, 400)


def test_workers_of_a_pool_spend_one_budget(tmp_path):
    with serving(says(GOOD)) as server, Pool(workers=4, timeout_seconds=20.0) as pool:
        options = {"rubric": "{completion}", **judge_options(server, tmp_path, budget_requests=5)}
        rewards = pool.score_all([(RewardSpec("judge", options=options), str(number), {}) for number in range(12)])
    statuses = [reward.status for reward in rewards]
    assert (statuses.count(Status.SCORED), statuses.count(Status.ERROR)) == (5, 7)
    assert len(server.requests) == 5


def test_a_worker_that_the_pool_kills_in_the_midst_of_a_request_has_counted_it(tmp_path):
    with serving(waits(10)) as server, Pool(workers=1, timeout_seconds=2.0) as pool:
        options = {"rubric": "{completion}", **judge_options(server, tmp_path, budget_tokens=10**6)}
        reward = pool.submit(RewardSpec("judge", options=options), "c", {}).result()
    assert reward.status is Status.TIMEOUT
    requests, tokens = budget(tmp_path, run="default").spent()
    assert requests == 1
    assert tokens > 100


def test_nothing_is_sent_where_nothing_can_be_counted(tmp_path):
    with serving(says(GOOD)) as server:
        asked = judge(server, tmp_path, budget_requests=5, timeout_seconds=1.5)
        budget(tmp_path).path.write_bytes(b"garbage " * 4096)
        with pytest.raises(JudgeError, match=r"judge_budget.sqlite cannot be counted .*delete it"):
            asked.ask("p")
        budget(tmp_path).path.unlink()
        asked.ask("p")
        with closing(sqlite3.connect(budget(tmp_path).path, isolation_level=None)) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            with pytest.raises(JudgeError, match="locked"):
                asked.ask("q")
    assert len(server.requests) == 1


def test_a_request_that_fits_neither_limit_leaves_nothing_counted(tmp_path):
    both = budget(tmp_path, requests=5, tokens=100)
    both.reserve(60, now=0.0, patience_seconds=1.0)
    with pytest.raises(BudgetError, match="budget_tokens = 100"):
        both.reserve(60, now=0.0, patience_seconds=1.0)
    assert both.spent() == (1, 60)
    assert both.settle(reserved=60, used=20) == ""
    both.reserve(80, now=0.0, patience_seconds=1.0)
    assert both.spent() == (2, 100)


def test_turns_are_a_minute_apart_from_the_request_that_many_before(tmp_path):
    rate = budget(tmp_path, requests_per_minute=2)
    at = [now + rate.reserve(1, now=now, patience_seconds=1e3) for now in (1000.0, 1010.0, 1020.0, 1021.0, 1022.0)]
    assert at == [1000.0, 1010.0, 1060.0, 1070.0, 1120.0]
    assert rate.reserve(1, now=2000.0, patience_seconds=0.0) == 0.0


@given(st.integers(1, 4), st.lists(st.floats(0.0, 40.0), max_size=12))
def test_no_minute_holds_more_requests_than_its_rate(tmp_path_factory, per_minute, gaps):
    rate = budget(tmp_path_factory.mktemp("rate"), requests_per_minute=per_minute)
    now, turns = 1e9, []
    for gap in gaps:
        now += gap
        turns.append(now + rate.reserve(1, now=now, patience_seconds=1e6))
    for earlier, later in zip(turns, turns[per_minute:], strict=False):
        assert later - earlier >= 60.0 - 1e-6


def test_a_turn_that_comes_too_late_is_not_taken(tmp_path):
    rate = budget(tmp_path, requests_per_minute=1)
    rate.reserve(1, now=1000.0, patience_seconds=1.0)
    for _ in range(2):
        with pytest.raises(BudgetError, match=r"requests_per_minute = 1: the next turn is 50.0 s away.*fewer workers"):
            rate.reserve(1, now=1010.0, patience_seconds=30.0)
    assert rate.spent()[0] == 1
    assert rate.reserve(1, now=1010.0, patience_seconds=60.0) == pytest.approx(50.0)


def test_runs_share_the_rate_of_an_endpoint_and_endpoints_do_not(tmp_path):
    budget(tmp_path, run="one", requests_per_minute=1).reserve(1, now=1000.0, patience_seconds=1.0)
    other_run = budget(tmp_path, run="two", requests_per_minute=1)
    assert other_run.reserve(1, now=1000.0, patience_seconds=100.0) == pytest.approx(60.0)
    other_endpoint = budget(tmp_path, endpoint="f", requests_per_minute=1)
    assert other_endpoint.reserve(1, now=1000.0, patience_seconds=1.0) == 0.0


def test_a_clock_that_was_set_back_does_not_stop_the_run(tmp_path):
    rate = budget(tmp_path, requests_per_minute=1)
    rate.reserve(1, now=1e9, patience_seconds=1.0)
    assert rate.reserve(1, now=1e9 - 1e6, patience_seconds=1.0) == 0.0


def test_requests_wait_for_their_turn_and_give_up_when_it_is_too_late(tmp_path, monkeypatch):
    monkeypatch.setattr("rewards.judging.budget.MINUTE_SECONDS", 0.4)
    with serving(says(GOOD)) as server:
        asked = judge(server, tmp_path, requests_per_minute=1, timeout_seconds=3.0)
        start_seconds = monotonic()
        asked.ask("a")
        asked.ask("b")
        # Not from the first request on: a turn is given before the work that sends it.
        assert server.requests[1].at_seconds - start_seconds > 0.39
        monkeypatch.setattr("rewards.judging.budget.MINUTE_SECONDS", 60.0)
        start_seconds = monotonic()
        with pytest.raises(JudgeError, match="requests_per_minute = 1: the next turn is"):
            asked.ask("c")
        assert monotonic() - start_seconds < 2.0
    assert len(server.requests) == 2


def test_the_worst_case_holds_when_everything_goes_wrong_at_once(tmp_path):
    with serving(waits(10)) as server:
        options = JudgeOptions(
            **judge_options(server, tmp_path, timeout_seconds=1.0, max_retries=9, budget_tokens=10**6, run="r")
        )
        asked = Judge(options)
        asked._cache.put("k", Answer("a").to_json())
        asked._budget.spent()
        holders = [
            sqlite3.connect(path, isolation_level=None) for path in (AnswerCache(tmp_path).path, asked._budget.path)
        ]
        for holder in holders:
            holder.execute("BEGIN EXCLUSIVE")
        start_seconds = monotonic()
        with pytest.raises(JudgeError):
            asked.ask("p")
        assert monotonic() - start_seconds < worst_case_seconds(options)
        for holder in holders:
            holder.close()
