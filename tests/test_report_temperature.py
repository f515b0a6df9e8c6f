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


def decided(folder, *decisions):
    """The decisions as the page's data has them, the latest first."""
    return page(folder, *decisions).run["decisions"]


def test_a_decision_shows_every_number_that_led_to_it(tmp_path):
    (made,) = decided(tmp_path, asdict(decision()))
    headings = [heading for heading, _ in made["columns"]]
    assert headings == [
        *("Temperature", "From", "Problems", "Rollouts", "Score", "Difference", "s.e.", "Lower", "Upper"),
        *("Allowed drop", "p(1 − p)", "Diversity"),  # and no Counts: nothing was reweighted
    ]
    assert [row["verdict"] for row in made["rows"]] == ["reference", "admissible", "fails"]
    assert [row["cells"][0] for row in made["rows"]] == [1.0, 1.2, 1.4]
    assert [row["chosen"] for row in made["rows"]] == [False, True, False]
    assert "Over the 8 steps before it the mean reward was 0.5" in made["plateau"]
    assert "raised to 1.2" in made["reason"]


def test_what_the_window_says_stands_beside_what_was_drawn(tmp_path):
    (made,) = decided(tmp_path, asdict(decision(window=True)))
    headings = [heading for heading, _ in made["columns"]]
    assert "Counts" in headings
    of_window = [row for row in made["rows"] if row["cells"][headings.index("From")] == "window"]
    assert of_window
    assert "undecided" in {row["verdict"] for row in of_window}
    assert 0.123 in {row["cells"][headings.index("Counts")] for row in made["rows"]}


@pytest.mark.parametrize("chosen", [1.2, 1.0])
def test_a_decision_says_when_it_fell_and_what_it_left(tmp_path, chosen):
    (made,) = decided(tmp_path, {"chosen": chosen, "current": 1.0, "readings": [], "reason": "r"})
    assert (made["step"], made["current"], made["chosen"]) == (24, 1.0, chosen)
    assert made["rows"] == []
