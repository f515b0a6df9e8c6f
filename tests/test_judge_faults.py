"""The judge against a server that answers badly, slowly, in halves and not at all."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from time import monotonic

import pytest

from rewards import Status, build
from rewards.judge import Judge, JudgeError, JudgeOptions, worst_case_seconds
from rewards.judging.http import MAX_BODY_BYTES
from tests.judge_server import (
    completion,
    drips,
    fails,
    half_closes,
    http,
    quick_options,
    raw,
    resets,
    says,
    serving,
    text_completion,
    waits,
)

GOOD = {"80": 0.5, "90": 0.5}
RUBRIC = "Question: {question}\nAnswer: {answer}\nScore it from 0 to 100."


def judge(server, **options):
    return Judge(JudgeOptions(**quick_options(server, **options)))


def verifier(server, **options):
    return build("judge", {"rubric": RUBRIC, **quick_options(server, **options)})


NO_CHOICES = b'{"object": "chat.completion"}'
NO_LOGPROBS = http(200, text_completion("85"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (http(200, b""), "HTTP 200, but no JSON object: an empty body"),
        (
            http(200, b"<html><h1>Welcome</h1></html>", content_type="text/html"),
            "HTTP 200, but no JSON object: '<html>",
        ),
        (http(200, completion(GOOD)[:-40]), "HTTP 200, but no JSON object"),
        (http(200, b"[" * 200_000), "HTTP 200, but no JSON object"),
        (http(200, b"\xff\xfe\x00{}"), "HTTP 200, but no JSON object"),
        (http(200, b"85"), "HTTP 200, but no JSON object: '85'"),
        (http(200, NO_CHOICES), "HTTP 200, but it has no choices"),
        (http(200, b'{"error": {"message": "no such model"}}'), "HTTP 200 with an error: 'no such model'"),
        (NO_LOGPROBS, "the server gives no log-probs; set read: text"),
        (http(200, completion(GOOD), Content_Length="100"), "HTTP 200, but no JSON object"),
        (http(204, b""), "HTTP 204"),
        (http(404, b"<html>not here\x00\x1b[31m</html>", content_type="text/html"), "HTTP 404: '<html>not here"),
        (http(400, b'{"error": {"message": "top_logprobs is too large"}}'), "HTTP 400: 'top_logprobs is too large'"),
        (http(400, b'{"detail": "bad"}'), "HTTP 400: 'bad'"),
        (http(400, b'{"error": "bad"}'), "HTTP 400: 'bad'"),
        (http(422, b'{"detail": [1]}'), """HTTP 422: '{"detail": [1]}'"""),
        (http(302, b"", Location="http://127.0.0.1:1/v1"), "redirects to 'http://127.0.0.1:1/v1'"),
        (http(307, b""), "redirects to 'nowhere'"),
        (http(429, b'{"error": {"code": "insufficient_quota", "message": "no money"}}'), "HTTP 429: 'no money'"),
    ],
)
def test_what_is_no_answer_is_an_error_at_once_with_status_and_words(data, said):
    with serving(raw(data)) as server:
        reward = verifier(server)("four", {"prompt": "2+2?"})
    assert reward.status is Status.ERROR
    assert said in reward.detail
    assert reward.detail.isprintable()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (fails(500), "HTTP 500"),
        (fails(503, b"<html>busy</html>"), "HTTP 503: '<html>busy"),
        (fails(408), "HTTP 408"),
        (fails(409), "HTTP 409"),
        (fails(429), "HTTP 429"),
        (raw(http(200, b'{"error": {"code": 502, "message": "upstream"}}')), "with an error: 'upstream'"),
        (raw(b""), "the connection broke: RemoteProtocolError"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Le"), "the connection broke"),
        (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "the connection broke"),
        (raw(http(200, completion(GOOD))[:-40]), "the connection broke"),
        (raw(http(200, completion(GOOD), Content_Length="99999")), "the connection broke"),
        (half_closes(http(200, completion(GOOD))[:-40]), "the connection broke"),
        (half_closes(b""), "the connection broke"),
        (resets, "the connection broke"),
        (raw(http(200, b"no gzip", Content_Encoding="gzip")), "the connection broke: DecodingError"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "the connection broke"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"), "the connection broke"),
    ],
)
def test_a_passing_fault_is_tried_again_and_then_an_error_with_its_last_words(act, said):
    with serving(act) as server:
        reward = verifier(server)("four", {"prompt": "2+2?"})
        assert reward.status is Status.ERROR
        assert said in reward.detail
        assert "(tries: 3)" in reward.detail
        assert len(server.requests) == 3
    with serving(act, act, says(GOOD)) as server:
        assert verifier(server)("four", {"prompt": "2+2?"}).value == pytest.approx(0.85)
        assert len(server.requests) == 3


def test_no_server_is_an_error_that_says_so():
    with serving(says(GOOD)) as gone:
        options = JudgeOptions(**quick_options(gone))
    with serving(says(GOOD)), pytest.raises(JudgeError, match="no connection"):
        Judge(options).ask("p")


def test_a_name_that_nobody_has_is_an_error_that_says_so():
    with serving(says(GOOD)) as server, pytest.raises(JudgeError, match="no connection"):
        judge(server, base_url="http://nobody.invalid/v1", max_retries=0).ask("p")


@pytest.mark.parametrize(
    "data",
    [
        http(200, completion(GOOD), Content_Length=""),
        http(200, gzip.compress(completion(GOOD)), Content_Encoding="gzip"),
        http(200, b"\n \n" + completion(GOOD, unknown={"field": 1}) + b"\n"),
        b"HTTP/1.0 200 OK\r\n\r\n" + completion(GOOD),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
        % (len(completion(GOOD)), completion(GOOD)),
    ],
    ids=["no length", "gzip", "white space and unknown fields", "HTTP/1.0", "chunked"],
)
def test_every_proper_form_of_an_answer_is_read(data):
    with serving(raw(data.replace(b"Content-Length: \r\n", b""))) as server:
        assert judge(server).ask("p").score == pytest.approx(85.0)


def test_a_slow_answer_is_waited_for():
    with serving(waits(0.3, http(200, completion(GOOD)))) as server:
        assert judge(server).ask("p").score == pytest.approx(85.0)


WHOLE = http(200, completion(GOOD))


@pytest.mark.parametrize(
    "act",
    [waits(10), drips(WHOLE, seconds_per_byte=0.05), drips(WHOLE[WHOLE.index(b"{") :], seconds_per_byte=0.05)],
    ids=["hangs", "drips headers", "drips no HTTP"],
)
def test_a_server_that_hangs_or_drips_is_left_at_the_limit_of_a_request(act):
    with serving(act, says(GOOD)) as server:
        start_seconds = monotonic()
        assert judge(server, request_timeout_seconds=0.8).ask("p").score == pytest.approx(85.0)
        assert monotonic() - start_seconds < 4.0


def test_a_body_that_drips_is_left_at_the_limit_of_a_request():
    head, _, body = WHOLE.partition(b"\r\n\r\n")

    def act(connection, request):
        connection.sendall(head + b"\r\n\r\n")
        drips(body, seconds_per_byte=0.05)(connection, request)

    with serving(act) as server:
        start_seconds = monotonic()
        with pytest.raises(JudgeError, match=r"no whole answer within 0.8 s \(tries: 1\)"):
            judge(server, request_timeout_seconds=0.8, max_retries=0).ask("p")
        assert monotonic() - start_seconds < 4.0


def test_all_tries_together_keep_to_the_timeout():
    with serving(waits(10)) as server:
        options = JudgeOptions(
            **quick_options(server, timeout_seconds=1.0, request_timeout_seconds=0.4, max_retries=100)
        )
        start_seconds = monotonic()
        with pytest.raises(JudgeError, match="no whole answer within"):
            Judge(options).ask("p")
        assert monotonic() - start_seconds < worst_case_seconds(options)
    assert len(server.requests) <= 3


def test_a_huge_body_is_left_unread():
    sent = []

    def act(connection, request):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(64):
            connection.sendall(b" " * (1 << 20))
            sent.append(1 << 20)

    with serving(act) as server, pytest.raises(JudgeError, match=f"a body of more than {MAX_BODY_BYTES >> 20} MiB"):
        judge(server).ask("p")
    assert sum(sent) < 32 << 20


def test_a_small_body_that_unpacks_to_a_huge_one_is_left_as_well():
    bomb = gzip.compress(b" " * (64 << 20))
    with (
        serving(raw(http(200, bomb, Content_Encoding="gzip"))) as server,
        pytest.raises(JudgeError, match="a body of more than"),
    ):
        judge(server).ask("p")


def test_the_server_says_when_to_come_back():
    with serving(fails(429, Retry_After="0.4"), says(GOOD)) as server:
        assert judge(server).ask("p").score == pytest.approx(85.0)
    first, second = server.requests
    assert second.at_seconds - first.at_seconds >= 0.4


def test_a_date_to_come_back_at_is_understood():
    # An HTTP date has whole seconds: 59 to 60 s are left when it is read, and a slow machine takes some of them.
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    with (
        serving(fails(503, Retry_After=at)) as server,
        pytest.raises(JudgeError, match=r"another try in (5\d\.\d|60\.0) s"),
    ):
        judge(server).ask("p")
    assert len(server.requests) == 1


@pytest.mark.parametrize("header", ["soon", "-5", "nan", "1e9", "", "Wed, 99 Foo"])
def test_a_retry_after_that_is_none_changes_nothing(header):
    with serving(fails(429, Retry_After=header), says(GOOD)) as server:
        assert judge(server).ask("p").score == pytest.approx(85.0)


def test_a_server_that_asks_for_more_patience_than_there_is_is_not_waited_for():
    start_seconds = monotonic()
    with (
        serving(fails(429, Retry_After="3600")) as server,
        pytest.raises(JudgeError, match=r"another try in 3600.0 s would pass timeout_seconds = 5"),
    ):
        judge(server).ask("p")
    assert monotonic() - start_seconds < 4.0


def test_waits_between_tries_double_with_jitter(monkeypatch):
    waited = []
    monkeypatch.setattr("rewards.judge.sleep", waited.append)
    with serving(fails(500)) as server, pytest.raises(JudgeError, match="tries: 6"):
        judge(server, max_retries=5, retry_wait_seconds=0.02).ask("p")
    for wait_seconds, full in zip(waited, [0.02, 0.04, 0.08, 0.16, 0.32], strict=True):
        assert full / 2 <= wait_seconds <= full
