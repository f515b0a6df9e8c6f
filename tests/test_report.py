"""The report: one file from runs' folders, whatever a folder lacks or its rollouts hold."""

import base64
import gzip
import hashlib
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo.manifest import MANIFEST_FILE, write_manifest
from grpo.tracking.charts import format_number, ticks
from grpo.tracking.page_data import MAX_POINTS, columns
from grpo.tracking.recorded_run import choose_rollouts
from grpo.tracking.report import MAX_ROLLOUTS, SCRIPTS, page, write_report
from grpo.tracking.rollout_index import MAX_TEXT_CHARACTERS
from tests.recorded import HOSTILE, make_run, metric_row, rollout_row, write_jsonl
from tests.runs import grpo
from tests.tier_manifest import profiled

ASSETS = Path(__file__).resolve().parents[1] / "grpo" / "tracking" / "page"


class Page(HTMLParser):
    """The page as a browser's parser sees its tags, attributes and scripts, and the runs that it holds."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.styles: list[str] = []
        self.open = ""
        self.html = html
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.open = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag == "style":
            self.styles.append("")

    def handle_data(self, data):
        if self.open == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open == "style":
            self.styles[-1] += data

    def handle_endtag(self, tag):
        self.open = ""

    @property
    def runs(self) -> list[dict[str, Any]]:
        packed = next(text for attrs, text in self.scripts if attrs.get("id") == "data")
        found: list[dict[str, Any]] = json.loads(gzip.decompress(base64.b64decode(packed)))["runs"]
        return found

    @property
    def run(self) -> dict[str, Any]:
        (only,) = self.runs
        return only

    @property
    def policy(self) -> str:
        return next(attrs["content"] for _, attrs in self.tags if attrs.get("http-equiv") == "Content-Security-Policy")

    @property
    def text(self) -> str:
        """All that it holds about its runs but their rollouts, as text."""
        return json.dumps([{**run, "rollouts": None} for run in self.runs], ensure_ascii=False)


def page_of(*folders: Path) -> Page:
    return Page(write_report(*folders).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Page:
    return page_of(make_run(tmp_path_factory.mktemp("runs") / "full", seed=1))


def test_the_page_refers_to_nothing_outside_itself(whole):
    referring = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "formaction", "background"}
    references = {attrs[name] for _, attrs in whole.tags for name in referring & set(attrs)}
    assert all(reference.startswith("#") or reference == "data:," for reference in references)
    assert not {"iframe", "object", "embed", "img", "base", "audio", "video"} & {tag for tag, _ in whole.tags}
    addresses = set(re.findall(r"https?://[\w./-]+", whole.html))
    assert addresses == {"http://www.w3.org/2000/svg", "https://github.com/leeoniya/uPlot"}  # a name, and a comment
    assert not re.search(r"url\(|@import|XMLHttp|import\(", whole.html)


def test_what_a_folder_holds_stands_in_the_page_in_letters_that_mean_nothing_to_html(whole):
    assert [attrs for attrs, _ in whole.scripts] == [{"type": "text/plain", "id": "data"}, {}, {}]
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", whole.scripts[0][1])
    assert "window.hacked" not in whole.html
    assert not [name for _, attrs in whole.tags for name in attrs if name.startswith("on") or name == "style"]
    hostile = next(row for row in whole.run["rollouts"]["rows"] if "hacked" in row["completion"])
    assert hostile["completion"] == HOSTILE.replace("\ud800", "?")  # whole, as data


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_pages_scripts_make_no_html_and_run_no_text(name):
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc"
    assert re.findall(forbidden, (ASSETS / name).read_text(encoding="utf-8")) == []


def test_the_policy_allows_the_pages_own_scripts_and_style_by_their_hashes_and_nothing_else(whole):
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in (whole.scripts[1][1], whole.scripts[2][1], whole.styles[0])
    ]
    policy = whole.policy
    assert f"script-src {hashes[0]} {hashes[1]}; style-src {hashes[2]};" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "connect-src 'none'" in policy
    assert "connect-src 'self'" in Page(page(data=None)).policy
    assert "unsafe" not in policy


def test_every_script_and_style_beside_the_page_is_in_it():
    assert {path.name for path in ASSETS.glob("*.js")} == set(SCRIPTS)
    assert {path.name for path in ASSETS.glob("*.css")} == {"style.css"}


def test_the_library_stands_beside_its_licence():
    assert "Permission is hereby granted" in (ASSETS / "vendor" / "uPlot.LICENSE").read_text()
    assert "uPlot (v1.6.32)" in (ASSETS / "vendor" / "uPlot.iife.min.js").read_text()[:80]


@pytest.mark.parametrize(
    "shown",
    [
        *("two-stage maths", "0.271", "after 180 supervised steps", "0.593", "0.553 to 0.633", "12 M", "66 min"),
        *("+0.322 over the start (+0.282 to +0.362)", "0.693", "0.653 to 0.733", "90 / 31 / 135"),
        *("2 error, 1 timeout", "reward flat over 20 steps", "checkpoints/step_000110", "rollout.sampler.top_p"),
    ],
)
def test_the_page_holds_what_the_folder_says(whole, shown):
    assert shown in whole.text


def test_the_run_is_over_and_says_where_it_stands(whole):
    state = whole.run["state"]
    assert (state["word"], state["step"], state["planned"], state["is_over"]) == ("finished", 120, 120, True)
    assert whole.run["stages"] == [[72, "extreme"]]


def test_every_metric_is_a_column_as_long_as_the_steps(whole):
    metrics = whole.run["metrics"]
    names = {name for step in (1, 20) for name in metric_row(step, 120, random.Random(0)) if name != "step"}
    assert set(metrics["columns"]) == names
    assert {len(column) for column in metrics["columns"].values()} == {120} == {len(metrics["steps"])}
    assert metrics["columns"]["eval/heldout/pass@1"][18:21] == [None, pytest.approx(0.325), None]


def test_tiers_are_counted_and_their_labels_have_errors(whole):
    tiers = whole.run["tiers"]
    assert [(tier["tier"], tier["num_problems"]) for tier in tiers["summaries"]][2] == ("extreme", 281)
    assert tiers["num_rollouts"] == 12345


def test_a_folder_with_only_a_config_makes_a_page_of_it(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: bare}\nrollout: {group_size: 8}\n")
    run = page_of(tmp_path).run
    assert write_report(tmp_path) == tmp_path / "report.html"
    assert run["metrics"]["steps"] == run["events"] == run["evaluations"] == run["headline"] == run["alarms"] == []
    assert (run["tiers"], run["moves"], run["rollouts"]) == (None, None, None)
    assert {row["name"] for row in run["config"]} == {"run.name", "rollout.group_size"}
    assert [path.name for path in tmp_path.iterdir() if path.name != "config.yaml"] == ["report.html"]


def test_a_folder_without_a_config_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        write_report(tmp_path)


def test_a_config_that_is_no_mapping_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="mapping of sections; got list"):
        write_report(tmp_path)


def test_a_torn_last_line_costs_that_line_and_is_mentioned(tmp_path):
    run = make_run(tmp_path / "torn", seed=2, num_steps=20)
    for name in ("metrics.jsonl", "rollouts/step_000020.jsonl"):
        path = run / name
        path.write_bytes(path.read_bytes()[:-40])
    (run / "evals" / "last.json").write_text('{"name": "la')
    found = page_of(run).run
    notes = "\n".join(found["notes"])
    assert "metrics.jsonl: 1 unreadable line(s) left out (line 20)" in notes
    assert "step_000020.jsonl: 1 unreadable line(s) left out (line 64)" in notes
    assert "evals/last.json is not a readable JSON object" in notes
    assert len(found["rollouts"]["rows"]) == found["rollouts"]["total"] == 127


def test_values_that_are_not_finite_are_counted_and_not_drawn(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: x}")
    lines = ['{"step": 1, "reward/mean": 0.5}', '{"step": 2, "reward/mean": NaN}', '{"step": 3, "reward/mean": 1e999}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    metrics = page_of(tmp_path).run["metrics"]
    assert metrics["columns"] == {"reward/mean": [0.5, None, None]}
    assert metrics["not_finite"] == {"reward/mean": 2}


def test_a_step_that_was_logged_twice_counts_as_it_was_logged_last(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: x}")
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 1, "a": 1.0}, {"step": 2, "a": 5.0}, {"step": 2, "a": 2.0}])
    assert page_of(tmp_path).run["metrics"]["columns"] == {"a": [1.0, 2.0]}


def test_a_run_of_very_many_steps_keeps_its_spikes():
    rows = [{"step": step, "a": 100.0 if step == 77_777 else math.sin(step)} for step in range(100_000)]
    thin = columns(rows)
    assert len(thin["steps"]) == len(thin["columns"]["a"]) == MAX_POINTS
    assert max(thin["columns"]["a"]) == 100.0
    assert thin["steps"] == sorted(thin["steps"])
    assert thin["num_steps"] == 100_000


def test_a_large_run_is_sampled_and_the_page_says_so(tmp_path):
    run = make_run(tmp_path / "large", seed=3, num_steps=40, rollouts_per_file=900)
    long = run / "rollouts" / "step_000040.jsonl"
    write_jsonl(long, [rollout_row(40, 0, random.Random(0)) | {"completion": "a" * 50_000}] * 900)
    rollouts = page_of(run).run["rollouts"]
    assert (rollouts["shown"], rollouts["total"], rollouts["num_files"]) == (2000, 3600, 4)
    steps = [row["step"] for row in rollouts["rows"]]
    assert {step: steps.count(step) for step in set(steps)} == {10: 500, 20: 500, 30: 500, 40: 500}
    last = rollouts["rows"][-1]["completion"]
    assert len(last) < MAX_TEXT_CHARACTERS + 100
    assert "42,000 characters left out" in last


def test_rollouts_that_are_too_large_together_are_thinned_evenly(tmp_path, monkeypatch):
    run = make_run(tmp_path / "large", seed=3, num_steps=20, rollouts_per_file=100)
    monkeypatch.setattr("grpo.tracking.report.MAX_ROLLOUT_BYTES", 50_000)
    rollouts = page_of(run).run["rollouts"]
    assert 20 < rollouts["shown"] < 150 == rollouts["total"] - 50
    steps = [row["step"] for row in rollouts["rows"]]
    assert abs(steps.count(10) - steps.count(20)) <= 1


def test_a_prompt_stands_once_in_the_page_and_tokens_have_their_texts(whole):
    rollouts = whole.run["rollouts"]
    assert len(set(rollouts["prompts"])) == len(rollouts["prompts"])
    assert rollouts["vocabulary"] == {"1": "Each", "2": " box", "3": " holds"}  # of what occurs, no more
    assert rollouts["rows"][0]["logprobs"] == [-0.1, -2.0, -0.3]


@pytest.mark.parametrize(
    ("counts", "limit", "expected"),
    [
        ([4, 4], 8, [[0, 1, 2, 3], [0, 1, 2, 3]]),
        ([10, 2], 6, [[1, 3, 6, 8], [0, 1]]),
        ([5, 5, 5, 5], 2, [[2], [], [2], []]),
        ([], MAX_ROLLOUTS, []),
        ([0, 3], 2, [[], [0, 2]]),
    ],
)
def test_rollouts_are_spread_over_files_and_lines(counts, limit, expected):
    assert choose_rollouts(counts, limit=limit) == expected


# --- hostile names ---------------------------------------------------------------------------------------------------


def hostile_run(folder: Path) -> Path:
    """A folder in which every name that a run could choose, and every place of a number, holds hostile text."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"name": HOSTILE}, HOSTILE: {HOSTILE: [HOSTILE]}}))
    decision = {"readings": [{"temperature": HOSTILE, "mean": HOSTILE}], "chosen": HOSTILE, "reason": HOSTILE}
    events = [
        {"step": HOSTILE, "event": HOSTILE, HOSTILE: HOSTILE},
        {"step": 2, "event": "stage", "name": HOSTILE},
        {"step": 2, "event": "guard", "above": HOSTILE},
        {"step": 2, "event": "temperature", "decision": decision},
        {"step": HOSTILE, "event": "temperature", "decision": HOSTILE},
        {"event": "best", "metric": HOSTILE, "value": 1, "step": HOSTILE},
        {"event": "gate", "pass@1": 0.5, "sft_steps": HOSTILE},
    ]
    write_jsonl(folder / "events.jsonl", events)
    prefixes = ("", "curriculum/tier_", "eval/", "reward/", "persona/")
    names = [f"{prefix}{HOSTILE}" for prefix in prefixes]
    write_jsonl(folder / "metrics.jsonl", [{"step": step, **dict.fromkeys(names, step)} for step in (1, 2, 3)])
    (folder / "evals").mkdir()
    metric = {HOSTILE: {"value": 0.5, "low": 0.4, "high": 0.6}, "pass@1": {"value": 0.5}}
    breakdown = {f"by_{HOSTILE}": {HOSTILE: metric}}
    against = {"name": HOSTILE, "wins": HOSTILE, "metrics": metric, **breakdown}
    of_set = {"num_problems": HOSTILE, "metrics": metric, "lost": {HOSTILE: 3}, "against": against, **breakdown}
    report = {"name": HOSTILE, "step": HOSTILE, "sets": {HOSTILE: of_set}, HOSTILE: 1}
    (folder / "evals" / "x.json").write_text(json.dumps(report))
    (folder / "profile").mkdir()
    write_manifest(folder / "profile" / MANIFEST_FILE, profiled({HOSTILE.replace("\ud800", ""): 3}))
    row = dict.fromkeys(rollout_row(1, 0, random.Random(0)), HOSTILE) | {"token_ids": [1], "logprobs": [-1]}
    write_jsonl(folder / "rollouts" / "step_000001.jsonl", [row])
    (folder / "vocabulary.json").write_text(json.dumps([HOSTILE, HOSTILE]))
    (folder / "phases.json").write_text(json.dumps({HOSTILE: HOSTILE, "train": HOSTILE}))
    return folder


def test_hostile_names_everywhere_are_data_and_nothing_else(tmp_path):
    page = page_of(hostile_run(tmp_path / "hostile"))
    assert "hacked" not in page.html
    assert page.text.count("window.hacked = 1") > 30
    assert page.run["moves"] is None  # its one rollout has no step


# --- several runs ----------------------------------------------------------------------------------------------------


def test_several_runs_are_one_page_beside_them_and_share_the_rollouts(tmp_path):
    folders = [make_run(tmp_path / "runs" / name, seed=seed, rollouts_per_file=200) for seed, name in enumerate("abc")]
    path = write_report(*folders)
    assert path == tmp_path.resolve() / "runs" / "comparison.html"
    runs = Page(path.read_text(encoding="utf-8")).runs
    assert [run["folder"] for run in runs] == ["a", "b", "c"]
    assert len({run["id"] for run in runs}) == 3
    assert [run["rollouts"]["shown"] for run in runs] == [MAX_ROLLOUTS // 3] * 3


def test_the_command_writes_where_it_is_told_and_prints_the_path(tmp_path, capsys):
    folders = [make_run(tmp_path / name, seed=1, num_steps=20) for name in "ab"]
    assert grpo("report", *folders, "--output", tmp_path / "both.html") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "both.html")
    assert len(Page((tmp_path / "both.html").read_text()).runs) == 2
    assert not (folders[0] / "report.html").exists()


def test_a_folder_that_is_given_twice_is_refused(tmp_path, capsys):
    folder = make_run(tmp_path / "a", seed=1, num_steps=20)
    assert grpo("report", folder, tmp_path / "." / "a") == 2
    assert "each folder once" in capsys.readouterr().err


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.5, 1]), (0, 128, [0, 50, 100]), (-3, 3, [-2, 0, 2]), (0.41, 0.44, [0.41, 0.42, 0.43, 0.44])],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high, count=3) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (0.4123, "0.412"), (1280, "1,280"), (3_400_000, "3.4 M"), (2e-5, "2e-05"), (float("nan"), "nan")],
)
def test_numbers_are_written_for_people(value, expected):
    assert format_number(value) == expected
