"""pass@k and avg@k by hand, intervals whose unit is the problem, and noise that training never shares."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from curricula.intervals import share_difference_interval, share_interval
from grpo.errors import RewardError
from grpo.evaluation import Evaluation, ProblemScore, by_column, compare, evaluate
from grpo.rollout import Attempts, Rollouts, Sampled
from grpo.seeds import key
from grpo.types import Group, Message, Problem, Rollout, StopReason
from rewards import Reward, RewardSpec
from tests.runs import grpo, read_jsonl, small_run_file

SEED = 7


def problem(name: str, *, kind: str = "a") -> Problem:
    return Problem(name, (Message("user", name),), answer=name, reward=RewardSpec("list_machine"), meta={"kind": kind})


@dataclass
class Scripted:
    """Stands in for `Rollouts`: the values of each problem's rollouts are given; None is a lost verdict."""

    values: dict[str, Sequence[float | None]]
    threshold: float = 1.0
    answers: dict[str, Sequence[str | None]] = field(default_factory=dict)
    more_tokens: dict[str, int] = field(default_factory=dict)  # of a problem's completions
    asked: list[dict[str, Any]] = field(default_factory=list)

    def run(self, attempts: Sequence[Attempts], *, temperature: float, phase: str, step: int) -> Sampled:
        self.asked.append({"temperature": temperature, "phase": phase, "step": step, "attempts": attempts})
        groups = tuple(self._group(wanted, temperature) for wanted in attempts)
        return Sampled(groups=groups, sampling_seconds=0.0, reward_seconds=0.0, num_tokens=0)

    def _group(self, wanted: Attempts, temperature: float) -> Group:
        values = self.values[wanted.problem.id]
        assert (wanted.first_attempt, wanted.num_rollouts) == (0, len(values))
        more = self.more_tokens.get(wanted.problem.id, 0)
        rollouts = tuple(
            Rollout(
                problem_id=wanted.problem.id,
                attempt=attempt,
                token_ids=(1,) * (3 + attempt + more),
                action_mask=(False, *(True,) * (2 + attempt + more)),
                logprobs=(0.0,) * (3 + attempt + more),
                kept=None,
                stop_reason=StopReason.END_TOKEN if attempt % 2 else StopReason.LIMIT,
                temperature=temperature,
                policy_step=0,
            )
            for attempt in range(len(values))
        )
        answers = self.answers.get(wanted.problem.id, [None] * len(values))
        rewards = tuple(
            Reward.error("crash") if value is None else Reward.scored(value, answer=answer)
            for value, answer in zip(values, answers, strict=True)
        )
        texts = ("",) * len(values)
        return Group(wanted.problem, rollouts, completions=texts, rewards=rewards, success_threshold=self.threshold)


def scored(values: dict[str, Sequence[float | None]], *, k: Sequence[int], **options: Any) -> Evaluation:
    threshold = options.pop("threshold", 1.0)
    problems = options.pop("problems", None) or [problem(name) for name in values]
    more_tokens = options.pop("more_tokens", {})
    scripted: Any = Scripted(values, threshold=threshold, answers=options.pop("answers", {}), more_tokens=more_tokens)
    num_rollouts = len(next(iter(values.values())))
    return evaluate(
        scripted,
        problems,
        num_rollouts=num_rollouts,
        temperature=0.8,
        k=k,
        max_error_fraction=1.0,
        **options,
    )


def test_pass_at_k_and_avg_at_k_are_those_that_one_counts_by_hand():
    result = scored({"one": [1, 0, 0, 0], "all": [1, 1, 1, 1], "none": [0, 0, 0, 0], "half": [1, 1, 0, 0]}, k=[1, 2, 4])
    found = {name: estimate.value for name, estimate in result.overall.metrics.items()}
    # pass@2 of one in four: 1 - C(3,2)/C(4,2) = 1/2; of two in four: 1 - 1/6. pass^2 of two in four: C(2,2)/C(4,2).
    # Rollouts have 2, 3, 4 and 5 tokens, and every other one is cut.
    assert found == pytest.approx(
        {
            "avg@4": (0.25 + 1 + 0 + 0.5) / 4,
            "pass@1": (0.25 + 1 + 0 + 0.5) / 4,
            "pass@2": (0.5 + 1 + 0 + 5 / 6) / 4,
            "pass@4": (1 + 1 + 0 + 1) / 4,
            "pass^2": (0 + 1 + 0 + 1 / 6) / 4,
            "pass^4": (0 + 1 + 0 + 0) / 4,
            "mean_tokens": 3.5,
            "truncated_fraction": 0.5,
        }
    )
    assert result.scores == {"one": 0.25, "all": 1.0, "none": 0.0, "half": 0.5}
    assert result.overall.num_problems == 4
    assert (result.truncated_fraction, result.mean_tokens, result.without_value) == (0.5, 3.5, 0)


def test_an_interval_of_lengths_does_not_go_below_none():
    # Lengths 2 and 10: mean 6, s / sqrt(2) = 4, and t of 1 degree is 12.706: 6 - 50.8 would be the lower bound.
    tokens = scored({"a": [1], "b": [1]}, k=[1], more_tokens={"b": 8}).overall.metrics["mean_tokens"]
    assert (tokens.value, tokens.low) == (6.0, 0.0)
    assert tokens.high == pytest.approx(6 + 12.7062 * 4, abs=1e-3)


def test_a_graded_reward_passes_from_its_threshold_on_and_averages_as_it_is():
    result = scored({"a": [0.5, 0.2], "b": [0.9, 1.0]}, k=[1, 2], threshold=0.5)
    assert result.overall.metrics["avg@2"].value == pytest.approx((0.35 + 0.95) / 2)
    assert result.overall.metrics["pass@1"].value == pytest.approx((0.5 + 1) / 2)
    assert result.overall.metrics["pass@2"].value == 1.0


def test_lost_verdicts_leave_the_scores_and_are_counted():
    result = scored({"a": [1, None, 0, None], "b": [None] * 4, "c": [1, 1, 1, 0]}, k=[1, 3])
    assert result.lost == {"error": 6, "timeout": 0, "abstained": 0}
    assert result.without_value == 6
    assert result.scores == {"a": 0.5, "c": 0.75}
    assert result.overall.num_problems == 2
    assert result.overall.metrics["pass@1"].value == pytest.approx((0.5 + 0.75) / 2)
    assert result.overall.metrics["pass@3"].value == 1.0  # of c alone: a has two verdicts
    assert result.overall.metrics["avg@4"].value == pytest.approx((0.5 + 0.75) / 2)


def test_a_k_that_no_problem_has_verdicts_for_is_left_out():
    assert "pass@2" not in scored({"a": [1, None], "b": [None, 0]}, k=[1, 2]).overall.metrics


def test_an_evaluation_without_any_verdict_ends_by_name():
    with pytest.raises(RewardError, match=r"none of 2 problems .* 4 times: crash"):
        scored({"a": [None, None], "b": [None, None]}, k=[1])


def test_intervals_are_of_problems_and_not_of_rollouts():
    # Ten problems, each all right or all wrong: 80 rollouts say no more than 10 problems do.
    values = {str(index): [float(index < 5)] * 8 for index in range(10)}
    wide = scored(values, k=[1]).overall.metrics["pass@1"]
    narrow = scored({str(index): [1, 0] * 4 for index in range(10)}, k=[1]).overall.metrics["pass@1"]
    assert wide.value == narrow.value == 0.5
    assert (narrow.low, narrow.high) == (0.5, 0.5)
    # The standard error of a mean of ten coins is 0.158; of eighty it would be 0.056.
    assert 0.5 < wide.high - wide.low < 0.75
    assert (wide.value, wide.low, wide.high) == tuple(share_interval([1.0] * 5 + [0.0] * 5))


def test_a_majority_is_that_of_the_answers_that_the_verifier_read():
    values = {"split": [1, 1, 0, 0], "wrong": [1, 0, 0, 0], "silent": [0, 0, 0, 0]}
    answers = {"split": ["7", "7", "8", "9"], "wrong": ["7", "8", "8", "8"], "silent": [None] * 4}
    metrics = scored(values, k=[1, 2, 4], answers=answers).overall.metrics
    # Of two of 7 7 8 9: 7 7 wins (1 of 6), each of the four pairs with one 7 is a tie, 8 9 loses: (1 + 4/2) / 6.
    # Of two of 7 8 8 8: the three pairs with 7 are ties, the others lose: (3/2) / 6.
    assert metrics["majority@2"].value == pytest.approx((0.5 + 0.25 + 0) / 3)
    assert metrics["majority@4"].value == pytest.approx((1 + 0 + 0) / 3)
    assert "majority@1" not in metrics


def test_an_answer_that_is_right_in_most_of_its_rollouts_is_right_in_the_vote():
    # The third rollout gave the right answer and was cut, so that its verdict is wrong.
    answers = {"a": ["7", "7", "7", "8"]}
    assert scored({"a": [1, 1, 0, 0]}, k=[4], answers=answers).overall.metrics["majority@4"].value == 1.0


def test_the_best_of_k_is_told_of_graded_rewards_alone():
    graded = scored({"a": [0.2, 0.4, 0.4, 1.0]}, k=[2]).overall.metrics
    # Of six pairs three hold the 1.0, and each of the other three a 0.4.
    assert graded["best@2"].value == pytest.approx((3 * 1.0 + 3 * 0.4) / 6)
    assert "best@2" not in scored({"a": [0, 1, 1, 0]}, k=[2]).overall.metrics


def test_a_judge_of_its_own_has_a_threshold_of_its_own():
    result = scored({"a": [0.5, 0.2]}, k=[1], threshold=1.0, success_threshold=0.4)
    assert result.overall.metrics["pass@1"].value == 0.5


def score(num_correct: int, *, of: int = 4, mean_reward: float | None = None) -> ProblemScore:
    return ProblemScore(of, num_correct, mean_reward=num_correct / of if mean_reward is None else mean_reward)


def test_two_policies_are_compared_on_the_problems_that_both_have():
    own = {"a": score(3), "b": score(0), "c": score(4), "only here": score(4)}
    other = {"a": score(1), "b": score(0), "c": score(4), "only there": score(0)}
    compared = compare(own, other, num_rollouts=4, k=[1, 4], groupings={"kind": {"a": "x", "b": "y", "c": "y"}})
    assert compared["num_problems"] == 3
    assert (compared["wins"], compared["losses"], compared["ties"]) == (1, 0, 2)
    assert compared["metrics"]["pass@1"]["value"] == pytest.approx(0.5 / 3)
    assert compared["metrics"]["pass@4"]["value"] == 0.0
    interval = share_difference_interval([0.75, 0, 1], [0.25, 0, 1])
    assert tuple(compared["metrics"]["avg@4"].values()) == pytest.approx(tuple(interval))
    assert {part: table["num_problems"] for part, table in compared["by_kind"].items()} == {"x": 1, "y": 2}
    assert compared["by_kind"]["x"]["metrics"]["pass@1"]["value"] == 0.5


def test_a_difference_of_graded_rewards_is_one_of_rewards_and_passes_count_what_is_correct():
    own, other = {"a": score(1, mean_reward=-2.0)}, {"a": score(0, mean_reward=3.0)}
    metrics = compare(own, other, num_rollouts=4, k=[1])["metrics"]
    assert metrics["avg@4"]["value"] == -5.0
    assert metrics["pass@1"]["value"] == 0.25


def test_a_pass_at_k_is_compared_where_both_kept_k_rollouts():
    own, other = {"a": score(2), "b": score(2, of=2)}, {"a": score(0), "b": score(1)}
    metrics = compare(own, other, num_rollouts=4, k=[1, 4])["metrics"]
    assert metrics["pass@1"]["value"] == pytest.approx((0.5 + 0.75) / 2)
    assert metrics["pass@4"]["value"] == 1.0


def test_the_example_of_the_documentation_has_the_numbers_of_the_code():
    page = (Path(__file__).resolve().parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    shown = json.loads(page.rpartition("```json\n")[2].partition("```")[0])["sets"]["heldout"]
    counts = {"start": [1, 4, 0, 2], "last": [2, 4, 0, 3]}
    policies = {
        name: scored({str(i): [1] * c + [0] * (4 - c) for i, c in enumerate(of)}, k=[1, 2, 4])
        for name, of in counts.items()
    }
    compared = compare(policies["last"].problems, policies["start"].problems, num_rollouts=4, k=[1, 2, 4])
    passed = policies["last"].report()["metrics"]["pass@1"]
    assert shown["metrics"]["pass@1"] == pytest.approx(passed, abs=5e-4)
    assert shown["against"]["metrics"]["pass@1"] == pytest.approx(compared["metrics"]["pass@1"], abs=5e-4)
    assert [shown["against"][name] for name in ("wins", "losses", "ties")] == [2, 0, 2]
    for name, policy in policies.items():
        values = [policy.overall.metrics[metric].value for metric in ("pass@1", "pass@2", "pass^2")]
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {name} | ")]
        for value, cell in zip(values, row.split("|")[3:6], strict=True):
            assert cell.strip().endswith(f"{value + 1e-9:.3f}".removeprefix("0"))


def test_tables_are_split_by_a_column():
    problems = [problem("a", kind="x"), problem("b", kind="y"), problem("c", kind="x")]
    result = scored(
        {"a": [1, 1], "b": [0, 0], "c": [0, 1]},
        k=[1],
        problems=problems,
        groupings={"kind": by_column(problems, "kind")},
    )
    parts = result.parts["kind"]
    assert {name: table.num_problems for name, table in parts.items()} == {"x": 2, "y": 1}
    assert parts["x"].metrics["pass@1"].value == 0.75
    assert parts["y"].metrics["pass@1"].value == 0.0
    report = result.report()
    assert report["by_kind"]["x"]["metrics"]["pass@1"]["value"] == 0.75
    assert report["problems"]["c"] == {"num_rollouts": 2, "num_correct": 1, "mean_reward": 0.5}
    assert (report["num_problems"], report["num_rollouts"], report["num_tokens"]) == (3, 2, 15)


def test_evaluations_ask_for_the_same_noise_whatever_the_policy_and_never_for_that_of_training():
    scripted = Scripted({"a": [1, 0]})
    stand_in: Any = scripted
    for _ in range(2):
        evaluate(stand_in, [problem("a")], num_rollouts=2, temperature=0.8, k=[1], max_error_fraction=1.0)
    assert scripted.asked[0] == scripted.asked[1]
    assert (scripted.asked[0]["phase"], scripted.asked[0]["step"]) == ("evaluation", 0)
    keys = {Rollouts._key(_Seeded(), wanted, index, phase=phase, step=step) for wanted, index, phase, step in places()}
    assert len(keys) == len(list(places()))


class _Seeded(Rollouts):
    """Rollouts of which only the seed is asked."""

    def __init__(self) -> None:
        self._seed = SEED


def places() -> list[tuple[Attempts, int, str, int]]:
    wanted = [Attempts(problem(name), first_attempt=first, num_rollouts=2) for name in "ab" for first in (0, 2)]
    return [
        (attempts, index, phase, step)
        for attempts in wanted
        for index in range(2)
        for phase in ("evaluation", "evaluation profile", "profile", "train")
        for step in (0, 1)
    ]


def test_a_key_depends_on_each_of_its_parts():
    base = (SEED, "train", 3, "id", 4)
    others = [(8, "train", 3, "id", 4), (SEED, "evaluation", 3, "id", 4), (SEED, "train", 4, "id", 4)]
    others += [(SEED, "train", 3, "ie", 4), (SEED, "train", 3, "id", 5)]
    assert len({key(*parts) for parts in (base, *others)}) == 6
    assert key(*base) == key(*base)


def test_training_under_evaluation_is_training_without_it(tmp_path):
    changes = {"sft": None, "curriculum": {"kind": "uniform"}, "train.steps": 3}
    runs = []
    for every in (0, 1):
        config = small_run_file(tmp_path / str(every), **changes, **{"evaluation.every_steps": every})
        assert grpo("train", config) == 0
        runs.append(tmp_path / str(every) / "runs" / "small")
    quiet, watched = (read_jsonl(run / "metrics.jsonl") for run in runs)
    assert [row["reward/mean"] for row in quiet] == [row["reward/mean"] for row in watched]
    assert [row["optim/grad_norm"] for row in quiet] == [row["optim/grad_norm"] for row in watched]
    for step in (1, 2, 3):
        name = f"rollouts/step_{step:06d}.jsonl"
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes()
