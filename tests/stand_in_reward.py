"""A stand-in for luck: the reward of a config judges, and may not fail, but right is every other completion.

An untrained model solves nothing, and a step without a right completion updates nothing."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from rewards import RewardSpec, Status, Verifier, build_spec


@cache
def _verifier(spec: RewardSpec) -> Verifier:
    return build_spec(spec)


def judge(completion: str, problem: Mapping[str, Any], *, name: str, options: Mapping[str, Any]) -> float:
    """1.0 where the completion has an even number of characters. Raises what keeps the config's reward from judging."""
    found = _verifier(RewardSpec(name, options=options))(completion, problem)
    assert found.status in (Status.SCORED, Status.ABSTAINED), found.detail
    return float(len(completion) % 2 == 0)
