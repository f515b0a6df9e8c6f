"""The report: one file from a run's folder, whatever the folder lacks or the rollouts hold."""

import base64
import hashlib
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from grpo.manifest import MANIFEST_FILE, write_manifest
from grpo.tracking.charts import Mark, format_number, line_chart, smoothed, stacked_chart, thinned, ticks
from grpo.tracking.recorded_run import choose_rollouts
from grpo.tracking.report import MAX_ROLLOUTS, MAX_TEXT_CHARACTERS, write_report
from tests.tier_manifest import profiled

HOSTILE = (
    '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"><!-- <script> ]]> '
    "{{ 7 * 7 }} & ' \" \u2028 \ud800 \u202e <a href='http://evil.example/'>x</a>"
)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def metric_row(step: int, num_steps: int, rng: random.Random) -> dict:
    """One plausible line of metrics.jsonl: learning that flattens, a second stage that is harder."""
    done = step / num_steps
    second = step > num_steps * 0.6
    reward = 0.62 / (1 + math.exp(-6 * (done - 0.3))) - 0.12 * second + rng.gauss(0, 0.04)
    row = {
        "step": step,
        "reward/mean": max(reward, 0.0),
        "reward/std": 0.4 + rng.gauss(0, 0.02),
        "reward/format/mean": min(1.0, 0.7 + 0.4 * done),
        "reward/errors": int(rng.random() < 0.03),
        "reward/pass_rate": max(reward, 0.0),
        "group/zero_std_fraction": 0.3 + rng.gauss(0, 0.05),
        "group/solved_all": 0.1 + 0.2 * done,
        "group/solved_none": max(0.0, 0.2 - 0.15 * done),
        "group/dropped_fraction": 0.3 + rng.gauss(0, 0.05),
        "policy/entropy": 0.9 * math.exp(-2 * done) + 0.2 + rng.gauss(0, 0.02),
        "policy/clip_fraction_low": abs(rng.gauss(0.002, 0.001)),
        "policy/clip_fraction_high": abs(rng.gauss(0.004, 0.002)),
        "policy/sampler_kl": abs(rng.gauss(2e-7, 1e-7)),
        "policy/sampler_logprob_gap_max": abs(rng.gauss(4e-6, 1e-6)),
        "completion/length_mean": 180 + 240 * done + rng.gauss(0, 12),
        "completion/length_max": 1024 if rng.random() < 0.3 else rng.randint(700, 1000),
        "completion/truncated_fraction": abs(rng.gauss(0.03, 0.01)),
        "sampling/temperature": 1.0 if done < 0.4 else 1.2,
        "sampling/tokens": 100_000,
        "curriculum/stage": int(second),
        "optim/lr": 1e-5 * min(1.0, step / 10),
        "optim/grad_norm": abs(rng.gauss(0.4, 0.1)) + (5.0 if step == 57 else 0.0),
        "optim/skipped_updates": 0,
        "time/sampling": 20 + rng.gauss(0, 1),
        "time/reward": 0.6 + rng.gauss(0, 0.05),
        "time/train": 12 + rng.gauss(0, 1),
        "time/sync": 0.4,
        "time/step": 33 + rng.gauss(0, 1.5),
        "throughput/sampled_tokens_per_second": 5000.0,
        "throughput/trained_tokens_per_second": 8000 + rng.gauss(0, 200),
    }
    shares = {"trivial": 0.12 + 0.3 * done, "moderate": 0.48 - 0.1 * done, "extreme": 0.28 - 0.12 * done}
    row |= {f"curriculum/tier_{tier}": round(1000 * share) for tier, share in shares.items()}
    row["curriculum/tier_unsolved"] = 1000 - sum(row[f"curriculum/tier_{tier}"] for tier in shares)
    if step % 20 == 0:
        row |= {"eval/heldout/pass@1": 0.27 + 0.33 * done, "eval/heldout/avg@8": 0.26 + 0.33 * done}
    return row


def rollout_row(step: int, index: int, rng: random.Random) -> dict:
    correct = rng.random() < 0.5
    first, second = rng.randint(2, 99), rng.randint(2, 99)
    status = rng.choices(["scored", "timeout", "error", "abstained"], [94, 3, 2, 1])[0]
    answer = first * second
    found = answer if correct else answer + rng.randint(1, 9)
    return {
        "step": step,
        "problem_id": f"{index // 8 * 7919 % 65536:04x}-{step:04d}",
        "attempt": index % 8,
        "stage": int(step > 72),
        "tier": rng.choice(["trivial", "moderate", "extreme", "unsolved"]),
        "prompt": f"A crate holds {first} boxes of {second} apples. How many apples are there in all?",
        "completion": f"Each box holds {second} apples and there are {first} boxes.\n{first} × {second} = {found}\n"
        f"The answer is \\boxed{{{found}}}.",
        "answer": str(answer),
        "reward": float(correct) if status == "scored" else None,
        "status": status,
        "parts": {"correct": float(correct), "format": 1.0},
        "detail": "" if status == "scored" else f"{status} after 2.0 s",
        "advantage": rng.gauss(0, 1),
        "stop_reason": "eos",
        "temperature": 1.0,
        "num_tokens": rng.randint(40, 400),
        "token_ids": [1, 2, 3],
        "logprobs": [-0.1, -0.2, -0.3],
    }


def temperature_event(step: int, rng: random.Random) -> dict:
    candidates = [
        {
            "temperature": temperature,
            "mean": 0.52 - drop,
            "difference": -drop,
            "standard_error": 0.004 + rng.random() / 500,
            "admissible": drop < 0.01,
        }
        for temperature, drop in ((1.0, 0.0), (1.1, 0.002), (1.2, 0.006), (1.3, 0.031))
    ]
    reason = "reward flat over 20 steps; the hottest within 1 % of the best"
    return {
        "step": step,
        "event": "temperature",
        "decision": {"readings": candidates, "chosen": 1.2, "current": 1.0, "reason": reason},
    }


def evaluation(name: str, step: int, value: float, *, gained: float | None = None) -> dict:
    def metric(centre: float) -> dict:
        return {"value": centre, "low": centre - 0.04, "high": centre + 0.04}

    by_group = {str(n): {"metrics": {"pass@1": metric(value + 0.3 - 0.1 * n)}, "num_problems": 80} for n in range(2, 6)}
    by_tier = {"moderate": {"pass@1": metric(value + 0.1), "num_problems": 200}}
    heldout = {
        "num_problems": 256,
        "num_rollouts": 8,
        "metrics": {"pass@1": metric(value), "pass@8": metric(value + 0.25), "avg@8": metric(value)},
        "by_group": by_group,
        "by_tier": by_tier,
        "lost": {"error": 2, "timeout": 1, "abstained": 0},
    }
    if gained is not None:
        of_parts = {"by_tier": {"moderate": {"metrics": {"pass@1": metric(gained)}, "num_problems": 200}}}
        counts = {"wins": 90, "losses": 31, "ties": 135}
        heldout["against"] = {"name": "start", "metrics": {"pass@1": metric(gained)}, **counts, **of_parts}
    return {"name": name, "step": step, "temperature": 1.0, "sets": {"heldout": heldout}}


def make_run(folder: Path, *, seed: int, num_steps: int = 120, rollouts_per_file: int = 64) -> Path:
    """A run's folder as the recipe leaves it: learning, two stages, decisions, evaluations and some hostile text."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    config = {
        "run": {"name": "two-stage maths", "seed": 7},
        "model": {"path": "Qwen/Qwen3-0.6B", "dtype": "bfloat16"},
        "rollout": {"group_size": 8, "problems_per_step": 32, "stop": ["</answer>"], "sampler": {"top_p": 1.0}},
        "optim": {"lr": 1e-5, "warmup_steps": 10, "betas": [0.9, 0.99]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_jsonl(folder / "metrics.jsonl", [metric_row(step, num_steps, rng) for step in range(1, num_steps + 1)])
    events = [
        {"step": 0, "event": "gate", "pass@1": 0.271, "sft_steps": 180},
        {"step": 1, "event": "stage", "stage": 0, "name": "moderate"},
        temperature_event(24, rng),
        temperature_event(48, rng),
        {"step": 72, "event": "stage", "stage": 1, "name": "extreme", "reason": "plateau"},
        {"step": 100, "event": "best", "metric": "eval/heldout/pass@1", "value": 0.604},
        {"step": 110, "event": "checkpoint", "path": "checkpoints/step_000110"},
    ]
    write_jsonl(folder / "events.jsonl", events)
    for step in range(10, num_steps + 1, 10):
        rows = [rollout_row(step, index, rng) for index in range(rollouts_per_file)]
        rows[0] |= {"completion": HOSTILE, "prompt": HOSTILE, "detail": HOSTILE, "problem_id": HOSTILE, "tier": HOSTILE}
        write_jsonl(folder / "rollouts" / f"step_{step:06d}.jsonl", rows)
    (folder / "profile").mkdir()
    write_manifest(
        folder / "profile" / MANIFEST_FILE, profiled({"trivial": 120, "moderate": 480, "extreme": 281, "unsolved": 119})
    )
    (folder / "evals").mkdir()
    (folder / "evals" / "start.json").write_text(json.dumps(evaluation("start", 0, 0.271)))
    (folder / "evals" / "last.json").write_text(json.dumps(evaluation("last", num_steps, 0.593, gained=0.322)))
    return folder


class Page(HTMLParser):
    """The page as a browser's parser sees its tags, attributes, text and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.text = ""
        self.open: list[str] = []
        self.html = html
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag in ("script", "style"):
            self.open.append(tag)
            self.scripts.append((dict(attrs), "")) if tag == "script" else None

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        if not self.open:
            self.text += data
        elif self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)

    @property
    def rollouts(self) -> dict:
        return next(json.loads(text) for attrs, text in self.scripts if attrs.get("id") == "rollout-data")


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    return page_of(make_run(tmp_path_factory.mktemp("runs") / "full", seed=1))


def test_the_page_refers_to_nothing_outside_itself(page):
    referring = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "formaction", "background"}
    references = {attrs[name] for _, attrs in page.tags for name in referring & set(attrs)}
    assert all(reference.startswith("#") or reference == "data:," for reference in references)
    assert not {"iframe", "object", "embed", "img", "base", "audio", "video"} & {tag for tag, _ in page.tags}
    outside_rollouts = re.sub(r'<script type="application/json".*?</script>', "", page.html, flags=re.DOTALL)
    assert "http://" not in outside_rollouts.replace("http://evil", "")
    assert not re.search(r"https:|url\(|@import|fetch\(|XMLHttp|import\(", outside_rollouts)


def test_hostile_text_adds_no_element_no_handler_and_no_script(page):
    scripts = [(attrs.get("type"), attrs.get("id")) for attrs, _ in page.scripts]
    assert scripts == [("application/json", "rollout-data"), (None, None)]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "window.hacked" not in page.scripts[1][1]
    assert page.rollouts["rows"][0]["completion"] == HOSTILE.replace("\ud800", "?")  # whole, as data
    assert "innerHTML" not in page.html


def test_hostile_names_outside_the_rollouts_add_no_element(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"run": {"name": HOSTILE}, HOSTILE: {HOSTILE: [HOSTILE]}}))
    decision = {"readings": [{"temperature": HOSTILE, "mean": HOSTILE}], "chosen": HOSTILE, "reason": HOSTILE}
    events = [
        {"step": HOSTILE, "event": HOSTILE, HOSTILE: HOSTILE},
        {"step": 2, "event": "stage", "name": HOSTILE},
        {"step": 2, "event": "temperature", "decision": decision},
        {"step": HOSTILE, "event": "temperature", "decision": HOSTILE},
        {"event": "best", "metric": HOSTILE, "value": 1, "step": HOSTILE},
        {"event": "gate", "pass@1": 0.5, "sft_steps": HOSTILE},
    ]
    write_jsonl(tmp_path / "events.jsonl", events)
    rows = [
        {"step": step, HOSTILE: step, f"curriculum/tier_{HOSTILE}": step, f"eval/{HOSTILE}": 1} for step in (1, 2, 3)
    ]
    write_jsonl(tmp_path / "metrics.jsonl", rows)
    (tmp_path / "evals").mkdir()
    metric = {HOSTILE: {"value": 0.5, "low": 0.4, "high": 0.6}, "pass@1": {"value": 0.5}}
    breakdown = {f"by_{HOSTILE}": {HOSTILE: metric}}
    against = {"name": HOSTILE, "wins": HOSTILE, "metrics": metric, **breakdown}
    sets = {
        HOSTILE: {"num_problems": HOSTILE, "metrics": metric, "lost": {HOSTILE: 3}, "against": against, **breakdown}
    }
    (tmp_path / "evals" / "x.json").write_text(json.dumps({"name": HOSTILE, "step": HOSTILE, "sets": sets, HOSTILE: 1}))
    (tmp_path / "profile").mkdir()
    write_manifest(tmp_path / "profile" / MANIFEST_FILE, profiled({HOSTILE.replace("\ud800", ""): 3}))
    page = page_of(tmp_path)
    assert [attrs for attrs, _ in page.scripts] == [{}]
    assert "img" not in {tag for tag, _ in page.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert page.text.count("window.hacked = 1") > 10


def test_the_policy_allows_the_pages_own_script_by_its_hash_and_nothing_else(page):
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    own = base64.b64encode(hashlib.sha256(page.scripts[1][1].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{own}';" in policy


@pytest.mark.parametrize(
    "shown",
    [
        *(
            "two-stage maths",
            "0.271",
            "after 180 supervised steps",
            "0.593",
            "0.553 to 0.633",
            "+0.322 over the start (+0.282 to +0.362)",
        ),
        *("reward/mean", "policy/sampler_kl", "eval/heldout/pass@1", "extreme", "12,345", "281 · 28 %"),
        *("12 M", "66 min", "reward flat over 20 steps", "checkpoints/step_000110", "rollout.sampler.top_p"),
        *(
            "All 768 rollouts on disk are in this page",
            "0.693",
            "0.653 to 0.733",
            "90 / 31 / 135",
            "2 error, 1 timeout",
        ),
    ],
)
def test_the_page_shows_what_the_folder_holds(page, shown):
    assert shown in page.text


def test_every_metric_but_those_with_a_section_of_their_own_is_a_chart(page):
    names = [json.loads(attrs["data-chart"])["names"] for _, attrs in page.tags if "data-chart" in attrs]
    assert ["trivial", "moderate", "extreme", "unsolved"] in names
    rows = metric_row(20, 120, random.Random(0))
    singles = {name for name in rows if name != "step" and not name.startswith("curriculum/tier_")}
    assert {name for (name, *rest) in names if not rest} == singles


def test_a_folder_with_only_a_config_makes_a_page_that_says_what_is_missing(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: bare}\nrollout: {group_size: 8}\n")
    page = page_of(tmp_path)
    assert write_report(tmp_path) == tmp_path / "report.html"
    for path in ("metrics.jsonl", "evals/*.json", "profile/tiers.parquet", "rollouts/*.jsonl", "events.jsonl"):
        assert path in page.text
    assert "rollout.group_size" in page.text
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
    page = page_of(run)
    assert "metrics.jsonl: 1 unreadable line(s) left out (line 20)" in page.text
    assert "step_000020.jsonl: 1 unreadable line(s) left out (line 64)" in page.text
    assert "evals/last.json is not a readable JSON object" in page.text
    assert len(page.rollouts["rows"]) == 127


def test_values_that_are_not_finite_are_counted_and_not_drawn(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: x}")
    lines = ['{"step": 1, "reward/mean": 0.5}', '{"step": 2, "reward/mean": NaN}', '{"step": 3, "reward/mean": 1e999}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    page = page_of(tmp_path)
    chart = next(json.loads(attrs["data-chart"]) for _, attrs in page.tags if "data-chart" in attrs)
    assert chart["x"] == [1.0]
    assert "2 value(s) are not finite numbers" in page.text


def test_a_step_that_was_logged_twice_counts_as_it_was_logged_last(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: x}")
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 1, "a": 1.0}, {"step": 2, "a": 5.0}, {"step": 2, "a": 2.0}])
    chart = next(json.loads(attrs["data-chart"]) for _, attrs in page_of(tmp_path).tags if "data-chart" in attrs)
    assert chart["y"] == [[1.0, 2.0]]


def test_a_large_run_is_sampled_and_the_page_says_so(tmp_path):
    run = make_run(tmp_path / "large", seed=3, num_steps=40, rollouts_per_file=900)
    long = run / "rollouts" / "step_000040.jsonl"
    write_jsonl(long, [rollout_row(40, 0, random.Random(0)) | {"completion": "a" * 50_000}] * 900)
    page = page_of(run)
    assert "2,000 of the 3,600 rollouts on disk are in this page" in page.text
    steps = [row["step"] for row in page.rollouts["rows"]]
    assert {step: steps.count(step) for step in set(steps)} == {10: 500, 20: 500, 30: 500, 40: 500}
    last = page.rollouts["rows"][-1]["completion"]
    assert len(last) < MAX_TEXT_CHARACTERS + 100
    assert "42,000 characters left out" in last


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


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value():
    assert smoothed([2.0] * 5, span=9) == pytest.approx([2.0] * 5)
    assert smoothed([1.0, 4.0], span=3) == pytest.approx([1.0, 3.0])  # decay 1/2: (0.5·1·0.5 + 0.5·4) / 0.75


def test_thinning_keeps_the_spike():
    points = [(float(step), 100.0 if step == 777 else math.sin(step)) for step in range(5000)]
    thin = thinned(points, limit=400)
    assert len(thin) <= 400
    assert (777.0, 100.0) in thin
    assert [step for step, _ in thin] == sorted(step for step, _ in thin)


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


def test_a_mark_beyond_the_axis_is_not_drawn_and_its_label_is_escaped():
    marks = [Mark(5, "<b>"), Mark(99, "late")]
    svg = line_chart([(0, 1.0), (10, 2.0)], name="a<b", steps=(0, 10), marks=marks, stepped=False)
    assert svg.count('class="mark"') == 1
    assert "&lt;b&gt;" in svg
    assert "a<b" not in svg


def test_a_flat_line_and_a_single_point_can_be_drawn():
    for points in ([(3, 0.0)], [(1, 7.0), (2, 7.0)], [(1, -1e299), (2, 1e299)]):
        svg = line_chart(points, name="flat", steps=(1, 3), marks=[], stepped=True)
        assert "nan" not in svg


def test_a_layer_of_another_length_is_refused():
    with pytest.raises(ValueError, match="b has 1 for 2 steps"):
        stacked_chart([1, 2], [("a", [1, 2]), ("b", [1])], marks=[])
