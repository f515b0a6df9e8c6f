"""The report in a real browser: charts, filters, hostile text, keyboard, phone, dark."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo.tracking.report import write_report
from tests.browser import chromium, opened
from tests.recorded import make_run
from tests.test_report import hostile_run

pytestmark = pytest.mark.slow  # a real browser

CONTRAST = """selector => {
  const light = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const node = document.querySelector(selector);
  let under = node;
  while (under && /, 0\\)$|transparent/.test(getComputedStyle(under).backgroundColor)) under = under.parentElement;
  const pair = [light(getComputedStyle(node).color), light(getComputedStyle(under || document.body).backgroundColor)];
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
}"""
"""The contrast of a text to what lies under it, as WCAG 2.2 defines it."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [make_run(root / name, seed=seed) for seed, name in enumerate(("first", "second"))]


@pytest.fixture(scope="module")
def address(folders) -> str:
    return write_report(folders[0]).as_uri()


@pytest.fixture
def report(browser, address):
    with opened(browser, address) as watched:
        yield watched


@pytest.mark.parametrize(
    "name", ["reward/mean", "policy/entropy", "policy/sampler_logprob_gap_max", "Seconds a step, by phase",
             "sampling/temperature", "Problems by tier, as the curriculum sees them", "eval/heldout/pass@1"]
)  # fmt: skip
def test_a_chart_has_lines_of_colour(report, name):
    assert report.drawn_pixels(name) > 150
    assert report.complaints == []


def test_the_page_asks_the_network_for_nothing_and_complains_of_nothing(report, address):
    for section in report.page.locator("section").all():
        section.scroll_into_view_if_needed()
    report.page.locator("details.metrics summary").first.click()
    assert report.requests == [address]
    assert report.complaints == []


def test_the_first_screen_says_health_learning_and_what_is_going_on(report):
    first = report.page.locator("#overview").inner_text()
    assert "Finished · step 120 of 120 · stage extreme · temperature 1.2" in first
    assert "+0.322 over the start" in first
    assert "verdicts were lost" in first or "No alarm" in first
    assert report.page.locator(".vital").count() >= 8
    assert report.page.locator("#overview").bounding_box()["height"] < 900


def test_the_arrow_keys_read_a_chart_and_escape_leaves_its_zoom(report):
    figure = report.chart("reward/mean")
    output = figure.locator("output")
    last = output.inner_text()
    figure.locator(".plot").focus()
    report.page.keyboard.press("ArrowRight")
    report.page.keyboard.press("ArrowRight")
    assert output.inner_text().startswith("step 2 · ")
    report.page.keyboard.press("Tab")
    assert output.inner_text() == last


def test_dragging_zooms_all_charts_and_a_double_click_shows_all_steps(report):
    other = "() => document.querySelector('figure[data-name=\"reward/pass_rate\"] .plot').chart.plot.scales.x.max"
    report.chart("reward/pass_rate")
    box = report.chart("reward/mean").locator(".u-over").bounding_box()
    middle = box["y"] + box["height"] / 2
    report.page.mouse.move(box["x"] + 20, middle)
    report.page.mouse.down()
    report.page.mouse.move(box["x"] + box["width"] / 2, middle, steps=4)
    report.page.mouse.up()
    assert 50 < report.page.evaluate(other) < 70
    report.page.mouse.dblclick(box["x"] + 60, middle)
    assert report.page.evaluate(other) == 120


# --- rollouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "column", "fits"),
    [
        ("tier", "extreme", 3, lambda cell: cell == "extreme"),
        ("status", "timeout", 4, lambda cell: cell == "timeout"),
        ("step", "50", 0, lambda cell: cell == "50"),
        ("least", "1", 5, lambda cell: cell == "1"),
        ("most", "0", 5, lambda cell: cell == "0"),
        ("longest", "99", 6, lambda cell: 40 <= int(cell) <= 99),
        ("text", "apples", 7, lambda cell: "apples" in cell),
    ],
)
def test_a_filter_leaves_the_rollouts_that_fit_and_clear_brings_all_back(report, field, value, column, fits):
    field_of = report.page.locator(f"#rollout-filter [name={field}]")
    counted = report.page.locator(".pager [role=status]")
    assert counted.inner_text() == "1–25 of 768"
    field_of.select_option(value) if field in ("tier", "status", "step") else field_of.fill(value)
    report.page.wait_for_function("() => !document.querySelector('.pager [role=status]').textContent.endsWith(' 768')")
    assert report.rows()
    assert all(fits(row[column]) for row in report.rows())
    report.page.get_by_role("button", name="Clear").click()
    report.page.wait_for_function("() => document.querySelector('.pager [role=status]').textContent.endsWith(' 768')")


def test_pages_are_turned_and_end(report):
    report.page.locator("#rollout-filter [name=step]").select_option("120")
    report.page.wait_for_function("() => document.querySelector('.pager [role=status]').textContent === '1–25 of 64'")
    for expected in ("26–50 of 64", "51–64 of 64"):
        report.page.locator("#rollout-next").click()
        assert report.page.locator(".pager [role=status]").inner_text() == expected
    assert report.page.locator("#rollout-next").is_disabled()
    assert len(report.rows()) == 14


def test_a_rollout_is_read_by_the_keyboard_and_its_tokens_are_coloured_by_how_likely_they_were(report):
    page = report.page
    page.locator("#rollout-filter [name=text]").fill("boxed")
    page.locator("tr.rollout button").first.focus()
    page.keyboard.press("Enter")
    reading = page.locator(".reading")
    assert "apples are there in all?" in reading.inner_text()
    assert "part correct" in reading.inner_text()
    reading.get_by_role("button", name="Log-prob").focus()
    page.keyboard.press("Enter")
    tokens = reading.locator(".token").all()
    assert [token.inner_text() for token in tokens] == ["Each", " box", " holds"]
    strength = [float(token.evaluate("node => node.style.getPropertyValue('--strength')")) for token in tokens]
    assert strength == pytest.approx([0.141, 0.632, 0.245])  # the root of the share of 5 nats
    tokens[0].focus()
    page.keyboard.press("ArrowRight")
    assert "token 2, id 2, log-prob -2, probability 13.5 %" in reading.inner_text()
    reading.get_by_role("button", name="Advantage").click()
    assert len({token.get_attribute("class") for token in reading.locator(".token").all()}) == 1


def test_the_group_of_a_rollout_is_one_click_away(report):
    report.page.locator("tr.rollout button").nth(3).click()
    problem = report.rows()[3][1]
    report.page.get_by_role("button", name="All rollouts of this group").click()
    report.page.wait_for_function("() => !document.querySelector('.pager [role=status]').textContent.endsWith(' 768')")
    rows = report.rows()
    assert {row[1] for row in rows} == {problem}
    assert 7 <= len(rows) <= 8  # one of a group can hold hostile text in the place of its name


# --- hostile text ----------------------------------------------------------------------------------------------------


def test_a_rollout_with_a_script_in_it_does_nothing(report):
    page = report.page
    page.locator("#rollout-filter [name=text]").fill("window.hacked")
    page.wait_for_function("() => document.querySelector('.pager [role=status]').textContent === '1–12 of 12'")
    page.locator("tr.rollout button").first.click()
    assert "</script><script>window.hacked = 1</script><img src=x" in page.locator(".reading").inner_text()
    for name in ("Log-prob", "Text"):
        page.locator(".reading").get_by_role("button", name=name).click()
    page.wait_for_timeout(200)
    assert page.evaluate("() => window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 3
    assert report.complaints == []


def test_a_run_whose_every_name_is_hostile_does_nothing(browser, tmp_path):
    with opened(browser, write_report(hostile_run(tmp_path / "hostile")).as_uri()) as watched:
        page = watched.page
        for details in page.locator("details").all():
            details.evaluate("node => { node.open = true; }")
        for section in page.locator("section").all():
            section.scroll_into_view_if_needed()
        page.locator("tr.rollout button").first.press("Enter")
        page.get_by_role("button", name="Log-prob").click()
        page.wait_for_timeout(200)
        assert page.evaluate("() => window.hacked") is None
        assert page.locator("img, iframe, main a[href^=http], main script").count() == 0
        assert page.locator("main").inner_text().count("window.hacked = 1") > 20
        assert watched.complaints == []


# --- what is missing, several runs -----------------------------------------------------------------------------------


def test_what_a_folder_lacks_is_said_section_by_section(browser, tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: bare}\n")
    with opened(browser, write_report(tmp_path).as_uri()) as watched:
        text = watched.page.locator("main").inner_text()
        for path in ("metrics.jsonl", "evals/*.json", "profile/tiers.parquet", "rollouts/*.jsonl", "events.jsonl"):
            assert path in text
        assert watched.page.locator("#persona").count() == 0
        assert watched.complaints == []


def test_persona_projections_are_drawn_with_their_random_control(browser, tmp_path):
    folder = make_run(tmp_path / "persona", seed=4, num_steps=30)
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    extra = '"persona/evil/projection": 0.{0}, "persona/evil/projection_random": 0.1, "persona/evil/coefficient": 4'
    path.write_text("\n".join(f"{line[:-1]}, {extra.format(step)}}}" for step, line in enumerate(lines)))
    with opened(browser, write_report(folder).as_uri()) as watched:
        figure = watched.chart("persona/evil/projection")
        assert figure.locator(".legend").inner_text().split()[::2] == ["evil/projection", "evil/projection_random"]
        assert watched.drawn_pixels("persona/evil/coefficient") > 100


def test_several_runs_are_overlaid_compared_and_taken_away(browser, folders, tmp_path):
    with opened(browser, write_report(*folders, output=tmp_path / "both.html").as_uri()) as watched:
        page = watched.page
        assert watched.chart("reward/mean").locator(".legend > span").count() == 2
        compared = page.locator("#compare").inner_text()
        assert "The last policy on heldout" in compared
        assert "Their configs are the same." in compared
        page.locator(".run-row input").nth(1).uncheck()
        assert page.locator("#compare").count() == 0
        assert watched.chart("reward/mean").locator(".legend > span").count() == 0
        page.locator(".run-name").nth(1).click()
        assert page.locator(".run-row.selected").inner_text().startswith("two-stage maths")
        assert page.locator(".run-row input").nth(1).is_checked()
        assert watched.complaints == []


def test_what_differs_between_configs_is_a_row(browser, folders, tmp_path):
    other = make_run(tmp_path / "other", seed=5, num_steps=20)
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("seed: 7", "seed: 8"))
    with opened(browser, write_report(folders[0], other, output=tmp_path / "both.html").as_uri()) as watched:
        names = watched.page.locator("#compare .differing code").all_inner_texts()
        assert names == ["run.seed", "train.steps"]


# --- how it looks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser, address, scheme):
    with opened(browser, address, scheme=scheme) as watched:
        for selector in (
            "body",
            ".lead",
            ".fine",
            "#status",
            ".now",
            ".vital .label",
            ".big.key",
            "#sections a",
            "th",
            "button",
        ):
            assert watched.page.evaluate(CONTRAST, selector) >= 4.5, selector
        dark = "getComputedStyle(document.body).backgroundColor"
        assert (watched.page.evaluate(dark) == "rgb(255, 255, 255)") == (scheme == "light")
        assert watched.drawn_pixels("reward/mean") > 150


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_and_not_sideways(browser, address, scheme):
    with opened(browser, address, width=390, height=844, scheme=scheme) as watched:
        page = watched.page
        page.locator("tr.rollout button").first.click()
        for details in page.locator("details").all():
            details.evaluate("node => { node.open = true; }")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
        assert watched.chart("reward/mean").bounding_box()["width"] > 300
        assert len([cell for cell in page.locator("tr.rollout").first.locator("td").all() if cell.is_visible()]) == 4


def test_the_keyboard_reaches_everything_in_order_and_sees_where_it_is(report):
    page = report.page
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Skip to the overview"
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("() => document.activeElement.tagName + '.' + document.activeElement.className"))
        assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert {"A.", "INPUT.", "BUTTON.vital", "DIV.plot"} <= seen


def test_every_control_has_a_name_and_every_chart_says_its_numbers(report):
    unnamed = """() => [...document.querySelectorAll("input, select, button")].filter(node =>
      !node.labels?.length && !node.textContent.trim() && !node.getAttribute("aria-label")).length"""
    assert report.page.evaluate(unnamed) == 0
    label = report.page.locator('figure[data-name="reward/mean"] .plot').get_attribute("aria-label")
    assert label.startswith("Chart of reward/mean: reward/mean 0.")
    assert "at step 120" in label
