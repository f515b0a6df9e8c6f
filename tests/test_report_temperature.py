"""The report's section on temperature: every number of a decision, and where decisions fell."""

from dataclasses import asdict

import pytest
import yaml

from curricula import Measured, Outcome, PlateauRule, compare_temperatures, detect_plateau
from curricula.comparison import Guard, read_temperatures
from tests.test_report import page_of, write_jsonl


def outcomes(rate: float) -> list[Outcome]:
    return [Outcome(f"p{index}", 100, round(100 * rate) + (-1) ** index) for index in range(50)]


def decision(*, window: bool = False):
    rates = {1.0: 0.5, 1.2: 0.5, 1.4: 0.3}
    drawn = {t: Measured.of(outcomes(rate), num_rollouts=100, diversity={"p0": t / 2}) for t, rate in rates.items()}
    seen = {t: Measured(of_t.scores, num_rollouts=100, effective_fraction=0.123 / t) for t, of_t in drawn.items()}
    guard = Guard(max_standard_error=0.1)
    return compare_temperatures(
        drawn,
        step=24,
        current=1.0,
        guard=guard,
        window=read_temperatures(seen, current=1.0, guard=guard, min_effective_fraction=0.5) if window else (),
        plateau=detect_plateau([0.5] * 8, rule=PlateauRule(window_steps=8)),
    )


def page(folder, *decisions):
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"name": "hot"}}))
    events = [{"step": 24 + n, "event": "temperature", "decision": d} for n, d in enumerate(decisions)]
    write_jsonl(folder / "events.jsonl", events)
    write_jsonl(folder / "metrics.jsonl", [{"step": step, "sampling/temperature": 1.0} for step in range(1, 40)])
    return page_of(folder)


def test_a_decision_shows_every_number_that_led_to_it(tmp_path):
    text = page(tmp_path, asdict(decision())).text
    for heading in (
        "Score",
        "Difference",
        "s.e.",
        "Lower",
        "Upper",
        "Allowed drop",
        "p(1 − p)",
        "Diversity",
        "Verdict",
    ):
        assert heading in text
    for verdict in ("reference", "admissible", "fails"):
        assert verdict in text
    assert "Over the 8 steps before it the mean reward was 0.5" in text
    assert "raised to 1.2" in text
    assert "Counts" not in text  # nothing was reweighted


def test_what_the_window_says_stands_beside_what_was_drawn(tmp_path):
    text = page(tmp_path, asdict(decision(window=True))).text
    assert "Counts" in text
    assert "window" in text
    assert "undecided" in text
    assert "0.123" in text


@pytest.mark.parametrize("chosen", [1.2, 1.0])
def test_the_chart_marks_decisions_and_names_the_temperature_that_one_changed_to(tmp_path, chosen):
    html = page(tmp_path, {"chosen": chosen, "current": 1.0, "readings": [], "reason": "r"}).html
    section = html[html.index('id="temperature"') :]
    assert section.count('class="mark"') == 1
    assert (">1.2</text>" in section[: section.index("Decisions")]) == (chosen == 1.2)
