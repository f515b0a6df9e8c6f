"""What the page, the picture and the terminal say of a profile."""

import re
from xml.etree import ElementTree

import pytest

from grpo.manifest import MANIFEST_FILE, by_tier, difficulty_histogram, write_manifest
from grpo.tracking.charts import bar_chart, standalone
from grpo.tracking.console import Console
from tests.test_report import page_of
from tests.tier_manifest import profiled


@pytest.fixture
def run(tmp_path):
    """The folder of a run that holds a config and a profile."""
    (tmp_path / "config.yaml").write_text("run: {name: bare}\n")
    (tmp_path / "profile").mkdir()
    counts = {"trivial": 120, "moderate": 480, "extreme": 281, "unsolved": 0}
    write_manifest(tmp_path / "profile" / MANIFEST_FILE, profiled(counts))
    return tmp_path


def test_the_page_says_how_sure_the_labels_are_and_counts_by_difficulty(run):
    tiers = page_of(run).run["tiers"]
    extreme = next(tier for tier in tiers["summaries"] if tier["tier"] == "extreme")
    assert extreme["mean_label_error"] == 0.25
    assert extreme["num_wrong"] == 70.25  # 281 extreme labels, a quarter of which are wrong
    assert next(tier for tier in tiers["summaries"] if tier["tier"] == "unsolved")["mean_tokens"] is None
    assert tiers["without_tier"] == 7
    expected = {"trivial": 120, "moderate": 480, "extreme": 281, "unsolved": 0}
    assert {name: sum(numbers) for name, numbers in tiers["counts"]} == expected


def test_the_picture_is_a_file_of_its_own_that_fetches_nothing():
    labels, counts = difficulty_histogram(profiled({"moderate": 3, "extreme": 2}).rows)
    text = standalone(bar_chart(labels, list(counts.items())), names=list(counts))
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "href" not in text
    assert "url(" not in text
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["moderate, 3/8: 3", "extreme, ≤128: 2"]


def test_the_table_on_the_terminal_has_a_row_a_tier(capsys):
    Console(num_steps=1).tiers(by_tier(profiled({"moderate": 3, "extreme": 1}).rows))
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in said.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["trivial", "moderate", "extreme", "unsolved"]
    assert rows[1][1:] == ["3", "75.0%", "8.0", "200.0", "25.0%", "0.8"]
    assert rows[0][1:] == ["0", "0.0%", "–", "–", "–", "0.0"]


def test_a_manifest_that_cannot_be_read_is_left_out_with_a_note(run):
    (run / "profile" / MANIFEST_FILE).write_bytes(b"PAR1 torn")
    assert "profile/tiers.parquet is not a readable tier manifest" in page_of(run).run["notes"][0]


def test_bars_are_as_high_as_their_counts_and_stand_on_one_another():
    drawing = bar_chart(["easy", "hard"], [("a", [4, 0]), ("b", [4, 2])])
    rects = re.findall(
        r'<rect class="layer layer-(\d)" x="([\d.]+)" y="([\d.]+)" width="[\d.]+" height="([\d.]+)">', drawing
    )
    assert [rect[0] for rect in rects] == ["0", "1", "1"]
    below, above, alone = ((float(y), float(height)) for _, _, y, height in rects)
    assert below[1] == pytest.approx(above[1], abs=0.11)
    assert above[0] + above[1] == pytest.approx(below[0], abs=0.11)
    assert alone[1] == pytest.approx(above[1] / 2, abs=0.11)
    for labels, layers in (([], [("a", [])]), (["x"], []), (["x"], [("a", [1, 2])])):
        with pytest.raises(ValueError, match=r"a bar chart needs|one value a category"):
            bar_chart(labels, layers)
