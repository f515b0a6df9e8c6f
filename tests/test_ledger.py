"""The bill of a run: a token stands in one row, and the rows add up to all that was drawn."""

import json

import pytest
import yaml

from grpo.tracking.ledger import ledger
from grpo.tracking.recorded_run import read_run
from tests.runs import grpo, read_jsonl, small_run_file
from tests.test_report import page_of


@pytest.fixture
def recorded(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"run": {"name": "billed"}}))
    rows = [
        {"step": 1, "sampling/tokens": 100, "tokens/kept": 40, "tokens/refill": 30, "tokens/reused": 25},
        {"step": 2, "sampling/tokens": 50, "tokens/kept": 50, "tokens/temperature": 7, "tokens/validation": 3},
        {"step": 2, "sampling/tokens": 60, "tokens/kept": 50, "tokens/temperature": 7, "tokens/reprofile": 11},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = [{"step": 0, "event": "gate", "tokens": 5}, {"step": 0, "event": "gate", "tokens": 6}]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "last.json").write_text(json.dumps({"name": "last", "num_tokens": 13, "sets": {}}))
    return tmp_path


def test_every_purpose_is_billed_once_and_a_step_that_was_logged_twice_counts_as_it_was_last(recorded):
    bills = {bill.purpose: bill.tokens for bill in ledger(read_run(recorded))}
    assert bills == {
        "cold start: looks at the gate": 11,
        "practice: trained on": 90,
        "practice: dropped": 70,
        "temperature": 7,
        "profiles on the way": 11,
        "validation": 3,
        "final evaluation": 13,
    }


def test_what_the_profile_had_drawn_is_said_and_not_billed_again(recorded):
    (trained_on,) = [bill for bill in ledger(read_run(recorded)) if bill.purpose == "practice: trained on"]
    assert "25 more came from the profile's own groups" in trained_on.note


def test_the_report_shows_the_bill_and_its_sum(recorded):
    bills = page_of(recorded).run["ledger"]
    assert sum(bill["tokens"] for bill in bills) == 205
    assert "practice: dropped" in [bill["purpose"] for bill in bills]


def test_a_real_run_is_billed_to_the_last_token(tmp_path):
    config = small_run_file(tmp_path, **{"evaluation.by_tier": True, "profile.reuse_steps": 3})
    assert grpo("recipe", config) == 0
    run = tmp_path / "runs" / "small"
    bills = {bill.purpose: bill.tokens for bill in ledger(read_run(run))}
    metrics = read_jsonl(run / "metrics.jsonl")
    assert sum(row["tokens/reused"] for row in metrics[:3]) > 0 == sum(row["tokens/reused"] for row in metrics[3:])
    drawn_in_steps = sum(row["sampling/tokens"] for row in metrics)
    assert bills["practice: trained on"] + bills["practice: dropped"] == drawn_in_steps
    # The running bill is the profile, practice and decisions: all but the looks at the gate and what comes at the end.
    outside = ("cold start: looks at the gate", "final evaluation", "final evaluation: tiers")
    assert metrics[-1]["tokens/total"] == sum(tokens for name, tokens in bills.items() if name not in outside)
    assert all(bills[name] > 0 for name in outside[1:])
