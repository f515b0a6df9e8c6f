"""The reward `judge` against a real HTTP server: what is asked, how it is answered, whose key is told to whom."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess

import pytest

from rewards import Pool, RewardSpec, Status, build
from rewards.judge import Judge, JudgeError, JudgeOptions
from tests.judge_server import (
    completion,
    echoes_key,
    fails,
    half_closes,
    http,
    quick_options,
    raw,
    resets,
    says,
    serving,
    waits,
    writes,
)

GOOD = {"80": 0.5, "90": 0.5}
RUBRIC = "Question: {question}\nAnswer: {answer}\nScore it from 0 to 100."


def judge(server, **options):
    return Judge(JudgeOptions(**quick_options(server, **options)))


def verifier(server, **options):
    return build("judge", {"rubric": RUBRIC, **quick_options(server, **options)})


def test_a_good_answer_is_its_expected_value_as_a_fraction():
    with serving(says(GOOD)) as server:
        reward = verifier(server)("four", {"prompt": "2+2?"})
    assert reward.status is Status.SCORED
    assert reward.value == pytest.approx(0.85)
    assert reward.parts == pytest.approx({"judge_score": 85.0, "judge_mass": 1.0})
    assert "'80' 0.50" in reward.detail


def test_the_request_is_a_chat_completion_of_the_filled_rubric():
    with serving(says(GOOD)) as server:
        verifier(server, system="You are strict.", extra={"seed": 0, "max_tokens": None})("{four}", {"prompt": "2+2?"})
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert "authorization" not in request.headers
    assert request.body == {
        "model": "judge-1",
        "messages": [
            {"role": "system", "content": "You are strict."},
            {"role": "user", "content": "Question: 2+2?\nAnswer: {four}\nScore it from 0 to 100."},
        ],
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 20,
        "seed": 0,
    }


@pytest.mark.parametrize(("highest", "max_tokens"), [(9, 1), (10, 2), (100, 2)])
def test_a_scale_of_one_digit_needs_one_token_and_others_a_second_to_see_where_the_number_ends(highest, max_tokens):
    with serving(says({"5": 1.0})) as server:
        judge(server, highest=highest).ask("p")
    assert server.requests[0].body["max_tokens"] == max_tokens


def test_a_judge_that_writes_digit_by_digit_is_an_error_that_says_what_to_set():
    with serving(says({"8": 0.9, "9": 0.1}, second="5")) as server:
        reward = verifier(server)("four", {"prompt": "2+2?"})
    assert reward.status is Status.ERROR
    assert "highest: 9" in reward.detail


def test_a_score_can_be_given_as_it_is_on_its_own_scale():
    with serving(says({"1": 0.5, "4": 0.5})) as server:
        assert verifier(server, lowest=1, highest=5, value="score")("a", {"prompt": "p"}).value == pytest.approx(2.5)
        assert verifier(server, lowest=1, highest=5)("a", {"prompt": "p"}).value == pytest.approx(0.375)


def test_a_judge_that_names_no_number_abstains():
    with serving(says({"I": 0.9, "0": 0.1})) as server:
        reward = verifier(server)("four", {"prompt": "2+2?"})
    assert reward.status is Status.ABSTAINED
    assert "0.10 of the mass ('I' 0.90" in reward.detail


def test_text_is_read_where_the_endpoint_has_no_logprobs():
    with serving(writes("Fine.\nScore: 40/100")) as server:
        reward = verifier(server, read="text", max_answer_tokens=50)("four", {"prompt": "2+2?"})
    assert reward.value == pytest.approx(0.4)
    assert reward.parts == {"judge_score": 40.0}
    body = server.requests[0].body
    assert body["max_tokens"] == 50
    assert "logprobs" not in body


def test_text_without_a_number_abstains():
    with serving(writes("I would rather not.")) as server:
        assert verifier(server, read="text")("four", {"prompt": "2+2?"}).status is Status.ABSTAINED


KEY = "sk-test-0123456789abcdef"


def test_the_key_is_read_from_the_environment_and_sent(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\n")
    with serving(says(GOOD)) as server:
        judge(server, api_key_env="JUDGE_KEY").ask("p")
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("value", "fault"), [(None, "is not set"), ("  ", "is not set"), ("a\u00e9b c", "holds what no key can")]
)
def test_a_key_that_is_missing_or_none_is_refused_when_the_reward_is_built(monkeypatch, value, fault):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with serving(says(GOOD)) as server, pytest.raises(ValueError, match=rf"JUDGE_KEY {fault}") as caught:
        verifier(server, api_key_env="JUDGE_KEY")
    assert "\u00e9" not in str(caught.value)


def test_the_key_is_in_no_detail_no_log_and_no_file(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.INFO)  # what a server says in its headers is in httpcore's own debugging
    options = {"api_key_env": "JUDGE_KEY", "cache_folder": str(tmp_path), "budget_requests": 100, "max_retries": 0}
    told = {"prompt": "2+2?"}
    acts = [echoes_key(401), echoes_key(500), fails(307, Location=f"http://other/?key={KEY}"), writes(f"{KEY} 85")]
    details = []
    for act in acts:
        with serving(act) as server:
            details.append(verifier(server, read="text", **options)("four", told).detail)
    assert "bad key Bearer [api key]" in details[0]
    assert "85" in details[3]
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for text in (*details, caplog.text, written.decode("latin-1"), repr(build)):
        assert KEY not in text


def test_a_completion_above_the_limit_has_the_lowest_score_unasked():
    with serving(says(GOOD)) as server:
        reward = verifier(server, max_completion_characters=10)("x" * 11, {"prompt": "p"})
        assert reward.value == 0.0
        assert reward.parts == {"judge_score": 0.0}
        assert "11 characters" in reward.detail
        assert verifier(server, max_completion_characters=10)("x" * 10, {"prompt": "p"}).value == pytest.approx(0.85)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "text",
    ["", "\x00\x01", "\ud800 half a pair", "\U0001f600" * 1000, "\u202eright to left", "x" * 150_000, "{}{0}{prompt}"],
)
def test_whatever_a_completion_is_the_judge_is_asked(text):
    with serving(says(GOOD)) as server:
        assert verifier(server)(text, {"prompt": "p"}).value == pytest.approx(0.85)
    content = server.requests[0].body["messages"][0]["content"]
    assert content == RUBRIC.format(question="p", answer=text.replace("\ud800", "\ufffd"))


def test_a_row_without_a_prompt_is_an_error_that_names_the_key():
    with serving(says(GOOD)) as server:
        reward = verifier(server)("four", {"answer": "4"})
    assert reward.status is Status.ERROR
    assert "problem['prompt'], which is missing" in reward.detail
    assert server.requests == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rubric": "{prompt}"}, "the completion is not in it"),
        ({"rubric": "{completion} {gold}"}, r"\{gold\} is not a placeholder"),
        ({"rubric": "", "rubric_file": ""}, "exactly one of rubric"),
        ({"reed": "text"}, "did you mean 'read'"),
        ({"read": "words"}, "must be one of"),
        ({"model": 3}, "must be a str"),
    ],
)
def test_a_reward_that_cannot_be_meant_is_not_built(options, message):
    with serving(says(GOOD)) as server, pytest.raises(ValueError, match=f"(?s){message}"):
        verifier(server, **options)


def test_a_host_is_found_by_its_name():
    with serving(says(GOOD)) as server:
        assert judge(server, base_url=f"http://localhost:{server.port}/v1/").ask("p").score == pytest.approx(85.0)
    assert server.requests[0].path == "/v1/chat/completions"


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that nobody vouches for, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl, to make a certificate")
    file, key = tmp_path / "server.pem", tmp_path / "key.pem"
    made_with = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=judge"
    subprocess.run(
        ["openssl", *made_with.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", file],
        check=True,
        capture_output=True,
    )
    file.write_bytes(file.read_bytes() + key.read_bytes())
    return file


def test_a_server_that_nobody_vouches_for_is_told_nothing_and_one_that_the_machine_trusts_is(monkeypatch, certificate):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with serving(says(GOOD), certificate=certificate) as server:
        options = {"api_key_env": "JUDGE_KEY", "base_url": server.base_url.replace("http:", "https:"), "max_retries": 0}
        with pytest.raises(JudgeError, match=r"no connection: ConnectError.*certificate"):
            judge(server, **options).ask("p")
        assert server.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert judge(server, **options).ask("p").score == pytest.approx(85.0)


def test_a_thread_that_runs_a_loop_already_can_ask_too():
    async def in_a_notebook():
        with serving(says(GOOD)) as server:
            return judge(server).ask("p").score

    assert asyncio.run(in_a_notebook()) == pytest.approx(85.0)


def test_workers_of_a_pool_ask_side_by_side():
    slow = waits(0.4, http(200, completion(GOOD)))
    with serving(slow) as server, Pool(workers=4, timeout_seconds=20.0, memory_limit_mb=1024) as pool:
        spec = RewardSpec("judge", options={"rubric": RUBRIC, **quick_options(server)})
        rewards = pool.score_all([(spec, str(number), {"prompt": "p"}) for number in range(16)])
        assert [reward.value for reward in rewards] == pytest.approx([0.85] * 16)
    asked = sorted(request.body["messages"][0]["content"] for request in server.requests)
    assert asked == sorted(RUBRIC.format(question="p", answer=number) for number in range(16))


def test_a_pool_gets_a_reward_for_each_call_whatever_the_server_does():
    script = [
        says(GOOD),
        fails(500),
        resets,
        raw(b"junk\r\n\r\n"),
        fails(404),
        half_closes(http(200, completion(GOOD))[:99]),
        writes("hm"),
        says(GOOD),
    ]
    with serving(*script) as server, Pool(workers=4, timeout_seconds=20.0) as pool:
        spec = RewardSpec("judge", options={"rubric": RUBRIC, **quick_options(server, max_retries=0)})
        rewards = pool.score_all([(spec, str(number), {"prompt": "p"}) for number in range(12)])
    statuses = [reward.status for reward in rewards]
    assert statuses.count(Status.SCORED) == 6
    assert statuses.count(Status.ERROR) == 6
    assert json.dumps([reward.detail for reward in rewards])
