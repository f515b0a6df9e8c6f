"""Documentation that is made from the code says what the code says, and its examples do what it says of them."""

import json
import re
from pathlib import Path

import pytest

from rewards import REWARD_NAMES, build
from scripts.write_config_docs import page

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_of_config_fields_is_what_the_fields_say():
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == page()


def test_every_metric_that_the_code_logs_is_explained():
    explained = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    sources = [*(ROOT / "grpo").rglob("*.py"), *(ROOT / "curricula").glob("*.py")]
    prefixes = "reward|group|policy|completion|sampling|curriculum|temperature|optim|time|throughput"
    logged = set()
    for path in sources:
        if path.name not in ("health.py",):
            logged |= set(re.findall(rf'"((?:{prefixes})/[\w/@]+)"', path.read_text(encoding="utf-8")))
    assert len(logged) > 40
    # A name that ends in _ is the beginning of several.
    assert sorted(name for name in logged if not name.endswith("_") and f"`{name}`" not in explained) == []


NEEDED = {"length": {"limit": 8, "buffer": 4, "unit": "tokens"}}
EXPECTED = {"repetition": -1.0, "length": -0.25}
"""What an example scores; the others are right."""


def rows_of_section(name: str) -> list[dict[str, object]]:
    """The rows that the section on a reward shows, one a line as `grpo score` reads them."""
    text = (ROOT / "docs" / "verifiers.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text, flags=re.MULTILINE)
    (own,) = (part for part in section if part.splitlines()[0] == name)
    blocks = re.findall(r"^```json\n(.*?)^```", own, flags=re.MULTILINE | re.DOTALL)
    return [json.loads(line) for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("name", sorted(set(REWARD_NAMES) - {"judge", "compose", "list_machine"}))
def test_the_row_that_shows_a_reward_is_scored_as_it_is_meant(name):
    rows = rows_of_section(name)
    assert rows
    verifier = build(name, NEEDED.get(name, {}))
    for row in rows:
        reward = verifier(str(row["completion"]), row)
        assert reward.value == EXPECTED.get(name, 1.0), reward


def test_every_reward_has_a_line_and_a_section():
    table = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    sections = (ROOT / "docs" / "verifiers.md").read_text(encoding="utf-8")
    for name in REWARD_NAMES:
        assert f"`{name}`" in table
        assert f"\n## {name}\n" in sections or name == "list_machine"
