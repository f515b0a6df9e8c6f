"""Documentation that is made from the code says what the code says."""

import re
from pathlib import Path

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
        if path.name not in ("report.py", "recorded_run.py", "charts.py"):
            logged |= set(re.findall(rf'"((?:{prefixes})/[\w/@]+)"', path.read_text(encoding="utf-8")))
    assert len(logged) > 40
    assert sorted(name for name in logged if f"`{name}`" not in explained) == []
