"""The dashboard's server: who may ask, what it answers, and that it reads new lines alone and nothing else."""

import json
import threading
from pathlib import Path

import pytest

from grpo.errors import ConfigError
from grpo.tracking.dashboard import application, host_name, is_loopback, serve
from grpo.tracking.followed_run import FollowedRun, GrowingFile
from grpo.tracking.runs_folder import PAGE_ROWS
from tests.recorded import HOSTILE, make_run
from tests.runs import grpo

testclient = pytest.importorskip("starlette.testclient", reason="starlette is not installed (the extra dashboard)")

LOCAL = "http://127.0.0.1"
API = ("/api/runs", "/api/run", "/api/news", "/api/rollouts", "/api/rollout")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "alone", seed=1, num_steps=40)
    make_run(root / "sweep" / "hot", seed=2, num_steps=20)
    (root / "notes").mkdir()
    return root


@pytest.fixture
def client(root):
    return testclient.TestClient(application(root, token=None), base_url=LOCAL)


def client_of(folder: Path, **options):
    return testclient.TestClient(application(folder, token=None), base_url=LOCAL, **options)


def ask(client, path: str, **parameters):
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- who may ask -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", *API])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_but_get_is_answered(client, method, path):
    assert client.request(method, path).status_code == 405


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", ""])
def test_on_the_loopback_address_another_name_is_refused(client, host):
    assert client.get("/api/runs", headers={"host": host}).status_code == 403
    assert client.get("/", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:8686", "127.0.0.1", "[::1]:8686", "LOCALHOST"])
def test_the_names_of_the_loopback_address_are_answered(client, host):
    assert client.get("/api/runs", headers={"host": host}).status_code == 200


def test_with_a_token_everything_is_refused_without_it(root):
    for path in ("/", *API):
        for given in ({}, {"token": "wrong"}):
            client = testclient.TestClient(application(root, token="s3cret"), follow_redirects=False)
            assert client.get(path, params=given).status_code == 401
    client.cookies.set("grpo_dashboard", "wrong")
    assert client.get("/api/runs").status_code == 401


def test_the_token_opens_the_page_once_and_leaves_the_address(root):
    client = testclient.TestClient(application(root, token="s3cret"), base_url="http://10.0.0.1")
    answer = client.get("/", params={"token": "s3cret"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert client.get("/").status_code == 200
    assert len(ask(client, "/api/runs")["runs"]) == 2


@pytest.mark.parametrize("path", ["/", "/api/runs", "/nowhere", "/api/run"])
def test_every_answer_forbids_framing_guessing_types_and_keeping(client, path):
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_page_may_run_its_own_scripts_and_ask_its_own_server_alone(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert 'id="data"' not in answer.text


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("10.1.2.3", False), ("example.org", False)),
        ("localhost.example.org", False),
    ],
)
def test_a_token_is_asked_for_wherever_another_machine_could_come_in(host, expected):
    assert is_loopback(host) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [("localhost:80", "localhost"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("A.b", "a.b"), ("", ""), ("[::1", "")],
)
def test_the_host_header_is_read_without_its_port(header, expected):
    assert host_name(header) == expected


# --- what is answered ------------------------------------------------------------------------------------------------


def test_the_list_has_each_run_by_its_place_in_the_folder(client):
    runs = {run["id"]: run for run in ask(client, "/api/runs")["runs"]}
    assert set(runs) == {"alone", "sweep/hot"}
    assert (runs["alone"]["step"], runs["alone"]["word"], runs["alone"]["fault"]) == (40, "finished", None)


def test_a_runs_own_folder_is_a_list_of_one(root):
    assert [run["id"] for run in ask(client_of(root / "alone"), "/api/runs")["runs"]] == ["."]


def test_a_run_is_what_the_report_holds_of_it(client):
    run = ask(client, "/api/run", id="sweep/hot")
    assert run["name"] == "two-stage maths"
    assert len(run["metrics"]["steps"]) == 20
    assert run["rollouts"] == {"total": 128}
    assert run["cursor"] == "0.20"


@pytest.mark.parametrize(
    "name", ["", "..", "../alone", "/etc", "alone/../alone", "alone/", "notes", "sweep", ".", "alone\x00", HOSTILE[:40]]
)
def test_a_name_that_is_not_in_the_list_is_no_run(client, name):
    for path in API[1:]:
        answer = client.get(path, params={"id": name, "key": "x", "cursor": "0.0"})
        assert answer.status_code == 404
        assert set(answer.json()) == {"error"}


def test_rollouts_are_filtered_ordered_and_paged(client):
    every = ask(client, "/api/rollouts", id="alone")
    assert (every["found"], every["total"], len(every["rows"])) == (256, 256, PAGE_ROWS)
    assert {row["step"] for row in every["rows"]} == {40}
    assert every["choices"]["step"] == [10, 20, 30, 40]
    found = ask(client, "/api/rollouts", id="alone", tier="extreme", least="1", order="longest", page="0")
    lengths = [row["num_tokens"] for row in found["rows"]]
    assert 0 < found["found"] < 256
    assert {(row["tier"], row["reward"]) for row in found["rows"]} == {("extreme", 1.0)}
    assert lengths == sorted(lengths, reverse=True)
    last = ask(client, "/api/rollouts", id="alone", page="10")
    assert len(last["rows"]) == 256 - 10 * PAGE_ROWS
    assert ask(client, "/api/rollouts", id="alone", page="999999999")["rows"] == []


@pytest.mark.parametrize(("name", "value"), [("page", "-1"), ("page", "x"), ("least", "<b>"), ("longest", "1e")])
def test_a_question_that_makes_no_sense_is_refused(client, name, value):
    assert client.get("/api/rollouts", params={"id": "alone", name: value}).status_code == 400


def test_a_rollout_comes_with_the_texts_of_its_tokens(client):
    listed = ask(client, "/api/rollouts", id="alone", text="boxed")["rows"][0]
    found = ask(client, "/api/rollout", id="alone", key=listed["key"])
    assert found["vocabulary"] == {"1": "Each", "2": " box", "3": " holds"}
    assert found["row"]["attempt"] == listed["attempt"]
    assert "boxed" in found["row"]["completion"]


@pytest.mark.parametrize("key", ["", "step_000010.jsonl:1", "../metrics.jsonl:0", "/etc/passwd:0", "metrics.jsonl:0"])
def test_a_key_that_no_rollout_has_opens_no_file(client, key):
    ask(client, "/api/rollouts", id="alone")
    assert client.get("/api/rollout", params={"id": "alone", "key": key}).status_code == 404


# --- nothing outside of the folder, and nothing written ---------------------------------------------------------------


@pytest.mark.parametrize("linked", ["metrics.jsonl", "rollouts/step_000099.jsonl", "evals/x.json", "vocabulary.json"])
def test_a_run_with_a_link_that_leads_out_is_listed_and_not_read(tmp_path, linked):
    (tmp_path / "secret").write_text('{"step": 1, "completion": "secret"}\n')
    run = make_run(tmp_path / "runs" / "a", seed=1, num_steps=20)
    (run / linked).unlink(missing_ok=True)
    (run / linked).symlink_to(tmp_path / "secret")
    client = client_of(tmp_path / "runs")
    (listed,) = ask(client, "/api/runs")["runs"]
    assert listed["fault"] == f"a: {linked} leads out of runs, and is not read"
    for path in API[1:]:
        answer = client.get(path, params={"id": "a", "key": "step_000099.jsonl:0", "cursor": "0.0"})
        assert answer.status_code == 404
        assert '"secret"' not in answer.text


def test_a_folder_that_is_a_link_out_is_not_listed(tmp_path):
    make_run(tmp_path / "elsewhere" / "a", seed=1, num_steps=20)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "b").symlink_to(tmp_path / "elsewhere" / "a")
    assert ask(client_of(tmp_path / "runs"), "/api/runs")["runs"] == []


def test_a_run_that_cannot_be_read_costs_the_list_nothing(tmp_path):
    make_run(tmp_path / "a", seed=1, num_steps=20)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.yaml").write_text("- 1\n")
    faults = {run["id"]: run["fault"] for run in ask(client_of(tmp_path), "/api/runs")["runs"]}
    assert faults["a"] is None
    assert "must hold a mapping of sections" in faults["b"]


def test_looking_at_runs_leaves_their_folders_as_they_were(tmp_path):
    make_run(tmp_path / "a", seed=1, num_steps=20)

    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")}

    before = state()
    client = client_of(tmp_path)
    for path in API:
        client.get(path, params={"id": "a", "key": "step_000010.jsonl:0", "cursor": "0.0", "text": "boxed"})
    assert state() == before


# --- news ------------------------------------------------------------------------------------------------------------


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_only_new_lines_are_read_and_a_torn_one_waits_until_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    growing = GrowingFile(path)
    assert growing.read() == ([], False)
    append(path, '{"step": 1}\n{"step": 2}\n{"st')
    assert growing.read() == ([{"step": 1}, {"step": 2}], False)
    assert growing.read() == ([], False)
    append(path, 'ep": 3}\nno json\n')
    assert growing.read() == ([{"step": 3}], False)


def test_a_file_that_grows_is_read_from_where_the_last_look_ended(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' * 100_000)
    growing = GrowingFile(path)
    growing.read()
    append(path, '{"step": 2}\n')
    read = 0
    opened = Path.open

    def counting(self, *arguments, **options):
        file = opened(self, *arguments, **options)
        original = file.read

        class Counting:
            def __enter__(self):
                return self

            def __exit__(self, *rest):
                file.close()

            def seek(self, *where):
                return file.seek(*where)

            def read(self, *size):
                nonlocal read
                data = original(*size)
                read += len(data)
                return data

        return Counting()

    monkeypatch.setattr(Path, "open", counting)
    assert growing.read() == ([{"step": 2}], False)
    assert read < 1000  # of more than a million bytes


@pytest.mark.parametrize("regrown", ['{"step": 9}\n', '{"step": 9, "a": 1}\n{"step": 10, "a": 2}\n{"step": 11}\n'])
def test_a_file_that_was_cut_is_read_from_its_beginning_even_where_it_has_grown_past_its_old_end(tmp_path, regrown):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    growing = GrowingFile(path)
    growing.read()
    path.write_text(regrown)
    rows, restarted = growing.read()
    assert restarted
    assert rows[0]["step"] == 9


def test_news_are_the_rows_since_and_the_summary(tmp_path):
    run = make_run(tmp_path / "a", seed=1, num_steps=40)
    client = client_of(tmp_path)
    cursor = ask(client, "/api/run", id="a")["cursor"]
    nothing = ask(client, "/api/news", id="a", cursor=cursor)
    assert (nothing["metrics"]["steps"], nothing["cursor"], nothing["again"]) == ([], cursor, False)
    append(run / "metrics.jsonl", json.dumps({"step": 41, "reward/mean": 0.9, "new/metric": 1}) + "\n")
    append(run / "events.jsonl", json.dumps({"step": 41, "event": "guard", "above": "x"}) + "\n")
    news = ask(client, "/api/news", id="a", cursor=cursor)
    assert news["metrics"]["columns"] == {"reward/mean": [0.9], "new/metric": [1]}
    assert (news["state"]["step"], news["cursor"]) == (41, "0.41")
    assert "1 of the last 20 steps are above a bound" in json.dumps(news["alarms"])


def test_a_run_that_was_resumed_from_an_earlier_step_is_to_be_read_again(tmp_path):
    run = make_run(tmp_path / "a", seed=1, num_steps=40)
    client = client_of(tmp_path)
    cursor = ask(client, "/api/run", id="a")["cursor"]
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:10]))
    assert ask(client, "/api/news", id="a", cursor=cursor) == {"id": "a", "again": True}
    assert len(ask(client, "/api/run", id="a")["metrics"]["steps"]) == 10
    for nonsense in ("", "0.x", "9.1", "0.99", "x"):
        assert ask(client, "/api/news", id="a", cursor=nonsense)["again"]


def test_an_evaluation_that_is_written_changes_the_stamp(tmp_path):
    run = make_run(tmp_path / "a", seed=1, num_steps=20)
    followed = FollowedRun(run)
    before = followed.stamp()
    (run / "evals" / "best.json").write_text("{}")
    assert followed.stamp() != before


def test_many_who_ask_at_once_get_whole_answers(tmp_path):
    make_run(tmp_path / "a", seed=1, num_steps=40)
    client, found = client_of(tmp_path), []
    threads = [threading.Thread(target=lambda: found.append(ask(client, "/api/run", id="a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({json.dumps(run["metrics"]) for run in found}) == 1
    assert len(found) == 8


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_folder_that_is_none_and_a_port_that_is_taken_are_named(tmp_path, capsys):
    assert grpo("dashboard", tmp_path / "none") == 2
    assert f"{tmp_path}/none is no folder; give one that holds runs" in capsys.readouterr().err
    assert grpo("dashboard", tmp_path, "--port", "70000") == 2
    assert "--port 70000: cannot be listened on" in capsys.readouterr().err
    assert grpo("dashboard", tmp_path, "--host", "203.0.113.1") == 2
    assert "--host 203.0.113.1" in capsys.readouterr().err


def test_without_the_extra_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'grpo-trainer\[dashboard\]'"):
        serve(tmp_path, host="127.0.0.1", port=0, say=print)
