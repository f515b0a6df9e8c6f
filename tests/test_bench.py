"""The benchmark: its arithmetic on steps made by hand, and a miniature of every part of it run for real."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from grpo.config import RunConfig
from tests.launch import ROOT, environment

FOLDER = ROOT / "scripts" / "bench"
MODULES = ("cases", "arithmetic", "picture", "play", "pages", "turns", "policies", "machine", "run_ours", "profiles")
LIMITS = {
    "float32_flops_per_second": 4000.0,
    "float32_model_flops_per_second": 3000.0,
    "bfloat16_flops_per_second": 8000.0,
    "copied_bytes_per_second": 1e9,
}


@pytest.fixture
def bench(monkeypatch):
    """The script's modules, which import each other as the ones of a folder that is run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture
def case(bench):
    """Two weights in the head, 12 in the block: one attention of 4 · 1 · 1 and three matrices of 1 · 2, all twice."""
    shape = bench.cases.Shape(
        hidden_size=1, intermediate_size=2, num_layers=2, num_heads=1, num_kv_heads=1, head_size=1, vocabulary=2
    )
    return replace(bench.cases.CASES["ragged-0.6"], shape=shape, goals=(bench.cases.Goal("step", 2.0),))


def step(*, seconds: float = 1.0, lengths: tuple[tuple[int, ...], ...] = ((4, 2), (3, 1)), extra: int = 100) -> dict:
    """Ten tokens, sampled in a quarter of the time and trained on in half of it; the wall took twice as long."""

    def part(share: float, positions: int) -> dict[str, Any]:
        times = {"cpu_seconds": share * seconds, "wall_seconds": 2 * share * seconds}
        return times | {"positions": positions, "peak_bytes": 10 * positions, "extra_bytes": extra}

    return {
        "cpu_seconds": seconds,
        "wall_seconds": 2 * seconds,
        "prompt_lengths": [5] * len(lengths),
        "lengths": [list(group) for group in lengths],
        "trained_tokens": sum(map(sum, lengths)),
        "sampling": part(0.25, 30),
        "training": part(0.5, 50),
    }


def result(ours: list[dict], trl: list[dict], *, threads: int = 1) -> dict[str, Any]:
    """One step a turn."""
    return {
        "case": "ragged-0.6",
        "threads": threads,
        "warmup_steps": 1,
        "sides": {"ours": [[one] for one in ours], "trl": [[one] for one in trl]},
        "machine": [LIMITS, LIMITS | {"float32_flops_per_second": 2000.0}],
    }


def test_a_steps_tokens_and_flops_are_counted_as_by_hand(bench, case):
    arithmetic = bench.arithmetic
    assert (case.shape.block_weights, case.shape.head_weights) == (20, 2)
    assert arithmetic.sampled_tokens(step()) == 10
    assert arithmetic.unique_tokens(step()) == 20  # a prompt of 5 for each of two groups
    assert arithmetic.sampling_flops(step(), case.shape) == 2 * (20 * 20 + 2 * 10)
    assert arithmetic.training_flops(step(), case) == 6 * (20 * 20 + 2 * 10)
    assert arithmetic.training_flops(step(), replace(case, lora_rank=1)) == 4 * (20 * 20 + 2 * 10)
    # 22 weights of 4 bytes for each of 4 positions; of 16 bytes of cache a token: 10, 3, 6 and 1 of the rows' own, and
    # the prompt of 5 as often as its group's longest completion has tokens: 4 and 3.
    assert arithmetic.sampling_bytes(step(), case.shape) == 22 * 4 * 4 + (20 + 5 * 4 + 5 * 3) * 16


def test_the_default_model_has_about_3_million_weights(bench):
    shape = bench.cases.Shape()
    model = bench.policies.Qwen3ForCausalLM(bench.policies._config(shape))
    in_matrices = sum(
        weight.numel() for name, weight in model.named_parameters() if weight.dim() == 2 and "embed_tokens" not in name
    )
    assert in_matrices == shape.block_weights + shape.head_weights
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(3.3e6, rel=0.05)


def test_the_share_of_the_matrix_rate_is_useful_flops_over_what_the_time_allows(bench, case):
    measured = result([step()], [step()])
    # 2,520 flops in half a second of 4,000 a second, the best of two turns.
    assert bench.arithmetic.limit_fraction(measured, case, "ours", part="training") == pytest.approx(2520 / 2000)
    assert bench.arithmetic.limit_fraction(measured, case, "ours", part="sampling") == pytest.approx(840 / 1000)
    assert bench.arithmetic.MEASURES["sampling_limit"](measured, case).middle == pytest.approx(840 / 1000)
    slow_memory = LIMITS | {"copied_bytes_per_second": 4928.0}  # what has to be read takes a quarter of a second
    of_step = bench.arithmetic.sampling_limit_fraction(step(), slow_memory, case, threads=1)
    assert of_step == pytest.approx(1232 / 4928 / 0.25)
    two = bench.arithmetic.matrix_fraction(step(), LIMITS, case, threads=2)
    assert two == pytest.approx(2520 / 4000)  # by the wall's clock


def test_a_ratio_is_of_each_sides_own_tokens_turn_by_turn(bench):
    short = step(seconds=0.5, lengths=((2, 1), (1, 1)))  # half the tokens in half the time: the same speed
    measured = result([step(), short, step(seconds=0.25)], [step(), step(), step(seconds=0.5)])
    found = bench.arithmetic.speed_ratio(measured, "step", clock="cpu", over="trl")
    assert (found.middle, found.low, found.high) == (1.0, 1.0, 2.0)


def test_memory_ratios_are_of_what_training_adds(bench, case):
    measured = result([step(extra=20)], [step(extra=300)])
    assert bench.arithmetic.MEASURES["head_memory"](measured, case).middle == 15.0
    assert bench.arithmetic.MEASURES["full_logits_memory"](measured, case).middle == 4 * 10 * 2 / 20


def test_sides_that_did_not_do_the_same_work_are_named(bench, case):
    lengths = ((4, 2), (3, 1))
    alike = result([step(lengths=lengths)], [step(lengths=lengths[::-1])])
    assert bench.arithmetic.length_gap(*(bench.arithmetic.steps_of(alike, side) for side in ("ours", "trl"))) == 0.0
    assert bench.pages._unlike([(case, alike)]) == []
    # Means of 2.5 and 12.5, both with a variance of 5/3 over 4.
    longer = step(lengths=tuple(tuple(length + 10 for length in group) for group in lengths))
    (line,) = bench.pages._unlike([(case, result([step(lengths=lengths)], [longer]))])
    assert line == "- ragged-0.6, threads 1: mean lengths of 2.5 and 12.5 tokens are 11.0 standard errors apart"
    (line,) = bench.pages._unlike([(case, result([step() | {"trained_tokens": 7}], [step()]))])
    assert line == "- ragged-0.6, threads 1: ours did not train on 3 of its tokens"


def test_a_spread_of_nothing_is_an_error(bench):
    with pytest.raises(ValueError, match="at least one turn"):
        bench.arithmetic.Spread.of([])


@pytest.mark.parametrize(("mean", "limit"), [(38.4, 64), (51.2, 256), (1.0, 8), (8, 8), (32, 64)])
def test_lengths_have_the_mean_that_is_asked_for(bench, mean, limit):
    p = bench.policies.end_probability(mean, limit_tokens=limit)
    chances = [p * (1 - p) ** (n - 1) for n in range(1, limit)]
    found = sum(n * chance for n, chance in enumerate(chances, start=1)) + limit * (1 - sum(chances))
    assert found == pytest.approx(mean, rel=1e-6)


def test_a_mean_above_the_limit_is_refused(bench):
    with pytest.raises(ValueError, match="mean_tokens = 9: must be from 1 to limit_tokens = 8"):
        bench.policies.end_probability(9, limit_tokens=8)


@pytest.mark.parametrize(("mean", "limit"), [(4.0, 8), (8, 8)])
def test_a_policy_ends_at_every_position_with_the_same_probability(bench, tmp_path, mean, limit):
    case = replace(bench.cases.SMOKE, mean_tokens=mean, limit_tokens=limit)
    bench.policies.make_policy(case, folder=tmp_path)
    model = bench.policies.Qwen3ForCausalLM.from_pretrained(bench.cases.policy_path(case, folder=tmp_path))
    ids = torch.randint(1, case.shape.vocabulary, (8, 12), generator=torch.Generator().manual_seed(1))
    ends = model(input_ids=ids).logits.softmax(dim=-1)[..., 0]
    expected = bench.policies.end_probability(mean, limit_tokens=limit)
    assert torch.allclose(ends, torch.full_like(ends, expected), rtol=0.1, atol=1e-12)


def test_every_case_is_a_config_that_the_product_takes_and_splits_into_trls_rows(bench, tmp_path):
    for case in bench.cases.CASES.values():
        config = RunConfig.model_validate(bench.run_ours.fields(case, folder=tmp_path, threads=1, num_steps=3))
        assert config.train.problems_per_step * config.train.group_size == case.num_rollouts
        assert config.checkpoint.every_steps > config.train.steps
        assert case.num_rollouts % case.trl_rows == 0 or "trl" not in case.sides
        assert all(goal.measure in bench.arithmetic.MEASURES for goal in case.goals)
    assert {bench.cases.choice_of(case) for case in bench.cases.CASES.values()} == {*bench.cases.CHOICES, "smoke"}


def test_the_page_has_the_numbers_between_its_markers_and_a_picture(bench, case, tmp_path, monkeypatch):
    monkeypatch.setitem(bench.cases.CASES, "ragged-0.6", case)
    path = bench.cases.result_path(case, threads=1, folder=tmp_path)
    path.parent.mkdir()
    path.write_text(json.dumps(result([step(seconds=0.25)] * 2, [step(seconds=1.0), step(seconds=0.5)])))
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{bench.pages.BEGIN}\nold\n{bench.pages.END}\nafter\n")
    cases = bench.cases.chosen(["ragged-0.6", "ragged-0.2", "scaling"])
    profile = bench.cases.profile_path(cases[1], folder=tmp_path)
    profile.parent.mkdir()
    profile.write_text("| indexing | 7% |\n")
    bench.pages.write_docs(cases, folder=tmp_path, docs=tmp_path)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| ragged-0.6 | 1 | step | 3.00 (2.00 to 4.00) | 2 | yes |" in text
    assert "| ragged-0.6 | 1 | ours | 2.5 | 160 / 80 / 40 | 80 / 40 / 20 | 1.50 | 2.50 | 0 |" in text
    assert "## Where the time goes\n\n| indexing | 7% |\n" in text
    assert "- ragged-0.2: has not been run\n- scaling: has not been run" in text
    drawing = (tmp_path / bench.pages.PICTURE).read_text()
    assert drawing.count('class="bar"') == 1
    assert "ragged-0.6, 1 thread: 3.00 (2.00 to 4.00), goal 2" in drawing
    numbers = bench.pages.as_json(cases, folder=tmp_path)["cases"][0]
    assert numbers["goals"]["step"] == {"goal": 2.0, "median": 3.0, "low": 2.0, "high": 4.0}
    assert numbers["sides"]["trl"]["tokens_per_second"]["cpu"]["training"] == pytest.approx(30.0)


def test_a_goal_that_is_missed_is_said_so(bench, case):
    lines = bench.pages._goals([(case, result([step()], [step()]))])
    assert lines[-1].endswith("| 1.00 (1.00 to 1.00) | 2 | **no** |")


def test_the_cost_of_a_token_is_compared_with_the_smallest_size(bench, monkeypatch):
    first, second = (bench.cases.CASES[f"scaling-problems-{factor}"] for factor in (1, 2))
    measured = [(first, result([step()], [])), (second, result([step(lengths=((4, 2), (3, 1)) * 2)], []))]
    lines = bench.pages._scaling(measured)
    assert lines[2].endswith("| 20 | 1.00 | 50000 | 1.00 |")
    assert bench.pages._missing([first, second], measured[:1]) == ["- scaling: has not been run in all of its sizes"]
    assert lines[3].endswith("| 40 | 1.00 | 25000 | 0.50 |")


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "products of matrices"),
        ("mkldnn::_linear_pointwise", "products of matrices"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_log_softmax_backward_data", "softmax"),
        ("aten::_index_put_impl_", "indexing"),
        ("aten::copy_", "copies"),
        ("aten::__rshift__", "integers and bits"),
        ("aten::mul", "other elementwise and reductions"),
    ],
)
def test_operations_are_sorted_by_kind(bench, operation, kind):
    assert bench.profiles.kind_of(operation) == kind


def test_what_no_operation_accounts_for_is_the_interpreters(bench):
    found = bench.profiles.shares({"aten::mm": 0.5, "aten::bmm": 0.25, "aten::mul": 0.5}, phase_seconds=2.0)
    assert found == [
        ("products of matrices", 0.375),
        ("the interpreter", 0.375),
        ("other elementwise and reductions", 0.25),
    ]


def test_a_clock_tells_phases_positions_and_turns_apart(bench, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "embedding", torch.nn.functional.embedding)  # put back afterwards
    said: list[Any] = []
    pipe = SimpleNamespace(send=said.append, wait=lambda: said.append("waits"))
    clock = bench.turns.Turns(pipe, bench.cases.SMOKE, warmup_steps=1, steps_per_turn=2)
    weight, ids = torch.zeros(4, 2), torch.zeros(2, 3, dtype=torch.long)
    clock.begin()
    for _ in range(3):
        with clock.phase("sampling"):
            torch.nn.functional.embedding(ids, weight)
        torch.nn.functional.embedding(ids, weight)
        clock.step.lengths = [[1, 2]]
        clock.step_done()
    assert [message if message == "waits" else sorted(message)[0] for message in said] == [
        *("ready", "waits"),
        *("cpu_seconds", "cpu_seconds", "waits"),
    ]
    assert said[2]["sampling"]["positions"] == 6
    assert said[2]["training"]["positions"] == 0
    assert said[2]["lengths"] == [[1, 2]]


def test_the_peak_of_a_phase_is_what_was_held_in_it(bench):
    memory = bench.turns.CpuMemory(trim=True)
    memory.reset()
    before = memory.now()
    block = torch.ones(2**24)  # 64 MiB
    del block
    assert memory.peak() - before > 0.9 * 2**26
    memory.reset()
    assert memory.peak() - before < 2**25


@pytest.mark.slow
def test_a_miniature_of_both_sides_runs_is_reported_and_is_not_run_again(tmp_path):
    arguments = ["--cases", "smoke", "--threads", "1", "--repeats", "2", "--folder", str(tmp_path)]
    command = [sys.executable, str(FOLDER), *arguments]

    def run(*more: str) -> str:
        done = subprocess.run(
            [*command, *more], env=environment(), capture_output=True, text=True, cwd=ROOT, timeout=280, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "| smoke | 1 | TRL |" in run()
    path = tmp_path / "results" / "smoke_threads_1.json"
    written = path.stat().st_mtime_ns
    (found,) = json.loads(run("--json"))["cases"]
    assert path.stat().st_mtime_ns == written
    ours, trl = (found["sides"][side] for side in ("ours", "trl"))
    for side in (ours, trl):
        assert side["steps"] == 2
        assert side["trained_tokens"] == side["sampled_tokens"] > 0
        assert 2.0 < side["mean_length"] < 7.0
        assert side["peak_bytes"] > 0
    # TRL decodes every row up to the longest one's last token and trains on all rows padded to it.
    assert trl["computed_tokens"]["training"] > 2 * 4 * 8
    assert 0 < ours["computed_tokens"]["training"] <= 2 * 4 * (8 + 8)
    assert found["ratios"]["step"]["cpu"]["low"] > 0


@pytest.mark.slow
def test_a_miniature_is_profiled(tmp_path):
    done = subprocess.run(
        [sys.executable, str(FOLDER), "--profile", "smoke", "--folder", str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| products of matrices |" in done.stdout
    assert "| sampling, " in done.stdout
    assert "| training, " in done.stdout
    assert (tmp_path / "profiles" / "smoke.md").read_text() in done.stdout


@pytest.mark.slow
def test_a_side_that_fails_is_named_with_its_log(tmp_path, bench):
    broken = replace(bench.cases.SMOKE)
    pace = bench.play.Pace(warmup_steps=1, turns=1, steps=1)
    with pytest.raises(bench.play.SideError, match=r"ours ended with code 1; see .*smoke_threads_1_ours\.log"):
        bench.play.play(broken, threads=1, pace=pace, folder=tmp_path)  # no policy was made
