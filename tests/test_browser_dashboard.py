"""The dashboard in a real browser: a run that goes on moves, runs are overlaid, hostile text does nothing."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chromium, dashboard, opened
from tests.recorded import make_run, metric_row, rollout_row, write_jsonl
from tests.runs import small_run_file
from tests.test_report import hostile_run

pytestmark = pytest.mark.slow  # a real browser, and a run that goes on beside it
pytest.importorskip("uvicorn", reason="uvicorn is not installed (the extra dashboard)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def address(root, browser) -> Iterator[str]:
    hostile_run(root / "hostile")
    make_run(root / "other", seed=2, num_steps=40)
    going = make_run(root / "going", seed=1, num_steps=40)
    (going / "phases.json").write_text(json.dumps({"profile": True, "train": False}))
    with dashboard(root) as found:
        yield found


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def until(page, script: str, argument: Any = None) -> None:
    """Wait until a script in the page says so; the page asks for news every two seconds."""
    page.wait_for_function(script, arg=argument, timeout=15_000)


def until_status(page, words: str) -> None:
    until(page, "words => document.querySelector('#status').textContent.includes(words)", words)


def select(page, folder: str) -> None:
    box = page.get_by_role("checkbox", name=f"Draw the curves of {folder}", exact=True)
    box.locator("xpath=../button").click()
    until(page, "name => document.querySelector('.selected input').ariaLabel.endsWith(' ' + name)", folder)


LAST_STEP = """() => document.querySelector('figure[data-name="reward/mean"] .plot').chart.values[0].at(-1)"""


def test_a_run_that_goes_on_moves_on_the_page(browser, address, root):
    run = root / "going"
    with opened(browser, address) as watched:
        page = watched.page
        page.locator(".run-row").nth(2).wait_for()
        row = page.locator(".run-row", has_text="training")
        row.locator("button").click()
        until_status(page, "training · step 40")
        watched.chart("reward/mean")
        assert page.evaluate(LAST_STEP) == 40
        asked = len(watched.requests)
        append(run / "metrics.jsonl", metric_row(41, 40, random.Random(0)) | {"optim/skipped_updates": 1})
        append(run / "events.jsonl", {"step": 41, "event": "checkpoint", "path": "checkpoints/step_41"})
        write_jsonl(run / "rollouts" / "step_000041.jsonl", [rollout_row(41, 0, random.Random(0))])
        until_status(page, "training · step 41")
        until(page, f"() => ({LAST_STEP})() === 41")
        assert "1 updates were left out" in page.locator(".verdict.bad").inner_text()
        assert "checkpoints/step_41" in page.locator("#events").inner_text()
        until(page, "() => document.querySelector('tr.rollout td').textContent === '41'")
        again = [url for url in watched.requests[asked:] if "/api/run?" in url]
        assert again == []  # the steps came as news, and nothing was loaded twice
        (run / "phases.json").write_text(json.dumps({"profile": True, "train": True, "eval": True}))
        until_status(page, "finished")
        assert watched.complaints == []


def test_an_evaluation_that_is_written_appears(browser, address, root):
    with opened(browser, address) as watched:
        page = watched.page
        select(page, "going")
        assert page.locator("#evaluation").inner_text().count("best") == 0
        found = json.loads((root / "going" / "evals" / "last.json").read_text())
        (root / "going" / "evals" / "best.json").write_text(json.dumps(found | {"name": "best", "step": 30}))
        until(page, "() => document.querySelector('#evaluation').textContent.includes('best')")


def test_a_run_that_is_resumed_from_an_earlier_step_is_drawn_anew(browser, address, root):
    metrics = root / "other" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    with opened(browser, address) as watched:
        select(watched.page, "other")
        watched.chart("reward/mean")
        metrics.write_text("".join(lines[:20]))
        until_status(watched.page, "step 20")
        watched.chart("reward/mean")
        assert watched.page.evaluate(LAST_STEP) == 20
        metrics.write_text("".join(lines))
        until_status(watched.page, "step 40")


def test_runs_are_overlaid_and_listed_with_what_they_are_at(browser, address):
    with opened(browser, address) as watched:
        page = watched.page
        select(page, "going")
        page.get_by_role("checkbox", name="Draw the curves of other", exact=True).check()
        page.locator("#compare").wait_for()
        figure = watched.chart("reward/mean")
        assert figure.locator(".legend > span").count() == 2
        colors = {line.get_attribute("stroke") for line in figure.locator(".legend line").all()}
        assert len(colors) == 2
        assert page.locator(".run-row").count() == 3
        assert watched.complaints == []


def test_rollouts_are_found_and_read_by_the_server(browser, address):
    with opened(browser, address) as watched:
        page = watched.page
        select(page, "other")
        page.locator("#rollout-filter [name=status]").select_option("timeout")
        until(page, "() => document.querySelector('tr.rollout .status-lost')?.textContent === 'timeout'")
        assert {row[4] for row in watched.rows()} == {"timeout"}
        page.locator("tr.rollout button").first.press("Enter")
        page.locator(".reading dl").wait_for()
        assert "timeout after 2.0 s" in page.locator(".reading").inner_text()
        page.get_by_role("button", name="Log-prob").click()
        assert page.locator(".token").all_inner_texts() == ["Each", " box", " holds"]
        assert watched.complaints == []


def test_what_somebody_looks_for_and_reads_stays_when_a_new_metric_comes(browser, address, root):
    with opened(browser, address) as watched:
        page = watched.page
        select(page, "going")
        page.locator("#rollout-filter [name=status]").select_option("timeout")
        until(page, "() => document.querySelector('tr.rollout .status-lost')?.textContent === 'timeout'")
        page.locator("tr.rollout button").first.press("Enter")
        page.locator(".reading dl").wait_for()
        append(root / "going" / "metrics.jsonl", {"step": 42, "persona/kind/projection": 0.5})
        page.locator("#persona figure").wait_for(timeout=15_000)
        assert page.locator("#rollout-filter [name=status]").input_value() == "timeout"
        assert {row[4] for row in watched.rows()} == {"timeout"}
        assert page.locator(".reading dl").count() == 1
        assert watched.complaints == []


def test_many_runs_are_found_by_name(browser, tmp_path):
    for number in range(12):
        make_run(tmp_path / f"run_{number}", seed=number, num_steps=20)
    with dashboard(tmp_path) as address, opened(browser, address) as watched:
        watched.page.get_by_label("Find a run by its name").fill("RUN_1")
        shown = [row for row in watched.page.locator(".run-row").all() if row.is_visible()]
        assert len(shown) == 3  # run_1, run_10, run_11


def test_hostile_text_from_the_server_does_nothing(browser, address):
    with opened(browser, address) as watched:
        page = watched.page
        select(page, "hostile")
        page.locator("tr.rollout button").first.press("Enter")
        page.locator(".reading dl").wait_for()
        page.get_by_role("button", name="Log-prob").click()
        page.wait_for_timeout(2500)  # a poll later as well
        assert page.locator("main").inner_text().count("window.hacked = 1") > 20
        assert page.evaluate("() => window.hacked") is None
        assert page.locator("img, iframe, main script").count() == 0
        assert watched.complaints == []
        assert all(url.startswith(address) for url in watched.requests)


def test_a_server_that_is_gone_is_said_and_the_page_stays(browser, tmp_path):
    make_run(tmp_path / "a", seed=1, num_steps=20)
    with dashboard(tmp_path) as address, opened(browser, address) as watched:
        served = watched.page
        assert "step 20" in served.locator("#status").inner_text()
        served.context.set_offline(True)
        until_status(served, "not connected")
        assert served.locator("#config table").count() > 0
        served.context.set_offline(False)
        until_status(served, "finished")


def test_from_another_machine_the_printed_address_opens_and_the_bare_one_does_not(browser, tmp_path):
    make_run(tmp_path / "a", seed=1, num_steps=20)
    with dashboard(tmp_path, "--host", "0.0.0.0") as address:
        address = address.replace("0.0.0.0", "127.0.0.1")
        assert "?token=" in address
        with opened(browser, address) as watched:
            assert watched.page.url.endswith("/")  # the token is out of the address
            assert watched.page.locator("#overview").count() == 1
        context = browser.new_context()
        answer = context.new_page().goto(address.split("?")[0])
        assert answer.status == 401
        context.close()


def test_an_empty_folder_says_so(browser, tmp_path):
    with dashboard(tmp_path) as address:
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        until(page, "() => document.querySelector('#title').textContent.startsWith('No run is in this folder yet')")
        context.close()


@pytest.mark.slow
def test_a_real_run_appears_moves_and_ends_on_a_page_that_was_open_before_it_began(browser, tmp_path):
    config = small_run_file(tmp_path, **{"train.steps": 12})
    (tmp_path / "runs").mkdir()
    with dashboard(tmp_path / "runs") as address:
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        until(page, "() => document.querySelector('#title').textContent.startsWith('No run is in this folder yet')")
        command = [sys.executable, "-m", "grpo.cli", "recipe", str(config)]
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        page.wait_for_function("() => document.querySelector('#title').textContent === 'small'", timeout=60_000)
        words = "() => document.querySelector('#status').textContent"
        assert not page.evaluate(words).startswith("finished")
        page.wait_for_function(
            "() => document.querySelector('#status').textContent.startsWith('finished · step 12')", timeout=90_000
        )
        assert run.wait(timeout=60) == 0
        page.wait_for_function("() => document.querySelectorAll('#evaluation .interval').length > 0", timeout=15_000)
        page.locator('figure[data-name="reward/mean"]').scroll_into_view_if_needed()
        until(page, f"() => ({LAST_STEP})() === 12")
        page.locator("tr.rollout button").first.press("Enter")
        page.get_by_role("button", name="Log-prob").click()
        read = "".join(page.locator(".token").all_inner_texts())
        shown = page.locator("tr.rollout .excerpt").first.inner_text()
        assert shown
        assert read.removesuffix("<end>").startswith(shown[:3])
        context.close()
