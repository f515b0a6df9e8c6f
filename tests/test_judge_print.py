"""A judge is known by what it does: the user's own files in it count by their content, wherever they are named."""

from pathlib import Path
from typing import Any

import pytest

from grpo.config import RewardConfig
from grpo.fingerprints import judge_print
from rewards import RewardSpec, files_of

JUDGE = "def judge(completion, problem):\n    return {}\n"


def own(path: Path) -> dict[str, Any]:
    return {"file": str(path), "function": "judge"}


def specs(path: Path) -> dict[str, dict[str, Any]]:
    """Rewards that a file of the user's is part of."""
    judge = {"base_url": "http://127.0.0.1:9", "model": "m", "rubric_file": str(path)}
    parts = {"rewards": {"right": {"name": "math_answer"}, "own": own(path)}}
    return {
        "file": own(path),
        "reward of a composition": {"name": "compose", "options": parts},
        "penalty of a composition": {
            "name": "compose",
            "options": {"rewards": {"right": {"name": "math_answer"}}, "penalties": {"own": own(path)}},
        },
        "rubric": {"name": "judge", "options": judge},
        "rubric in a composition": {
            "name": "compose",
            "options": {"rewards": {"asked": {"name": "judge", "options": judge}}},
        },
        "checker": {"name": "instructions", "options": {"checkers": {"mine": f"{path}:judge"}}},
    }


@pytest.mark.parametrize("kind", list(specs(Path("x"))))
def test_an_edited_file_is_another_judge_and_one_that_is_written_again_is_the_same(tmp_path, kind):
    path = tmp_path / "judge.py"
    reward = RewardConfig.model_validate(specs(path)[kind])
    prints = []
    for value in ("1.0", "0.0", "1.0"):
        path.write_text(JUDGE.format(value), encoding="utf-8")
        prints.append(judge_print(reward))
    assert prints[0] == prints[2] != prints[1]


def test_a_file_that_lies_elsewhere_is_the_same_judge(tmp_path):
    prints = []
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(JUDGE.format("1.0"), encoding="utf-8")
        prints.append(judge_print(RewardConfig.model_validate(own(tmp_path / name))))
    assert prints[0] == prints[1]


@pytest.mark.parametrize(
    "changes", [{"options": {"extract": ["hash"]}}, {"success_threshold": 0.5}, {"name": "format", "options": {}}]
)
def test_options_name_and_threshold_make_another_judge_and_limits_of_a_call_do_not(changes):
    plain = RewardConfig(name="math_answer")
    assert judge_print(plain.model_copy(update=changes)) != judge_print(plain)
    limits = {"workers": 7, "timeout_seconds": 9.0, "memory_limit_mb": 0, "max_error_fraction": 0.5}
    assert judge_print(plain.model_copy(update=limits)) == judge_print(plain)


def test_files_are_named_for_a_spec_that_has_some_and_for_no_other(tmp_path):
    path = str(tmp_path / "judge.py")
    found = {
        kind: files_of(
            RewardSpec(of.get("name", ""), file=of.get("file"), function=of.get("function"), options=of.get("options"))
        )
        for kind, of in specs(Path(path)).items()
    }
    assert found == dict.fromkeys(found, (path,))
    assert files_of(RewardSpec("math_answer")) == files_of(RewardSpec("instructions")) == ()
