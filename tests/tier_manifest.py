"""A tier manifest of made-up problems, for pages and tables that show one."""

from grpo.manifest import Manifest


def profiled(counts: dict[str, int]) -> Manifest:
    """A manifest with so many problems of each tier."""
    rules = {"trivial": ("fixed", 8, 8), "extreme": ("first_success", 100, 1), "unsolved": ("exhausted", 512, 0)}
    rows = []
    for tier, count in counts.items():
        rule, num_rollouts, num_correct = rules.get(tier, ("fixed", 8, 3))
        row = {
            "num_rollouts": num_rollouts,
            "num_correct": num_correct,
            "stopping_rule": rule,
            "tier": tier,
            "estimate": num_correct / 8 if rule == "fixed" else 0.0,
            "low": 0.1,
            "high": 0.9,
            "confidence": 0.95,
            "label_error": 0.25,
            **dict.fromkeys(("pass@1", "pass@2", "pass@4", "pass@8"), 0.5),
            "first_success_attempt": None,
            "mean_tokens": 200.0,
            "num_attempts": num_rollouts,
            "num_without_value": 0,
            "total_tokens": 200 * num_rollouts,
            "policy": tier,
            "temperature": 1.0,
            "first_rollouts": 8,
            "relabel_rollouts": 32,
            "max_rollouts": 512,
            "trivial_rate": 1.0,
        }
        rows += [row | {"id": f"{tier}-{index}"} for index in range(count)]
    return Manifest(
        rows=tuple(rows),
        num_problems=len(rows) + 7,
        num_rollouts=12345,
        num_tokens=2_469_000,
        fingerprint={"policy": "x"},
    )
