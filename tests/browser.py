"""A real Chromium for tests of pages, and a dashboard as the command line starts it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
DRAWN = """canvas => {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let number = 0;
  for (let place = 0; place < pixels.length; place += 4)
    if (pixels[place + 3] > 60 && Math.max(pixels[place], pixels[place + 1], pixels[place + 2]) -
        Math.min(pixels[place], pixels[place + 1], pixels[place + 2]) > 40) number += 1;
  return number;
}"""
"""Pixels of a canvas that have a colour: its lines, and not its grey axes."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips the test where there is none to drive."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra test has it)")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium is installed; on Debian: apt-get install chromium")
    with api.sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # which root does not get
        browser = playwright.chromium.launch(executable_path=found, args=sandbox)
        yield browser
        browser.close()


class Watched:
    """A page with what it asked the network for and what it complained of."""

    def __init__(self, browser: Any, address: str, *, width: int = 1280, height: int = 900, scheme: str = "light"):
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        self.page.goto(address)
        self.page.wait_for_selector("#config")

    def chart(self, name: str) -> Any:
        """The chart of this title, scrolled to and drawn."""
        figure = self.page.locator(f'figure[data-name="{name}"]')
        figure.scroll_into_view_if_needed()
        figure.locator("canvas").wait_for()
        return figure

    def drawn_pixels(self, name: str) -> int:
        """Coloured pixels of a chart."""
        return int(self.chart(name).locator("canvas").evaluate(DRAWN))

    def rows(self) -> list[list[str]]:
        """The cells of the rollouts that are listed."""
        lines = self.page.locator("tr.rollout").all()
        return [[cell.inner_text() for cell in line.locator("td").all()] for line in lines]


@contextmanager
def opened(browser: Any, address: str, **options: Any) -> Iterator[Watched]:
    """An address in a window of its own."""
    watched = Watched(browser, address, **options)
    try:
        yield watched
    finally:
        watched.context.close()


@contextmanager
def dashboard(folder: Path, *options: str) -> Iterator[str]:
    """The address of a `grpo dashboard` on `folder`, which ends with the context."""
    command = [sys.executable, "-m", "grpo.cli", "dashboard", str(folder), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        (address,) = re.findall(r"http://\S+", said)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)
