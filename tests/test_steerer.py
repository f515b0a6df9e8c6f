"""Steering in the loop: on in the halves of a step that the mode says, off in everything else, and said in the log."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo import checkpoint
from grpo.config import RunConfig, SteeringConfig
from grpo.distributed.world import World
from grpo.errors import ConfigError
from grpo.folder import Phase, Start
from grpo.persona import steerer as steerers
from grpo.persona.coefficient import Scheduled, coefficient_of
from grpo.policy import Policy
from grpo.recipe import run_train, trainer_of
from grpo.replay import find, replay
from grpo.starts import Run, load_start
from grpo.steering import Steering
from grpo.tracking.console import Console
from grpo.wiring import looked_at, opened
from tests.runs import opened_run, read_jsonl, small_run_config
from tests.steering import TRAIT, save_vectors

UNIFORM = {"curriculum": {"kind": "uniform", "max_refill_waves": 0}, "profile": None, "sft": None}
COEFFICIENT = f"persona/{TRAIT}/coefficient"


def config_of(folder: Path, *, origin: dict[str, Any] | None = None, scale: float = 1.0, **changes: Any) -> RunConfig:
    """A small run without a cold start. Dotted changes; those of steering.X are of the section."""
    fields = {**UNIFORM, "train.steps": 3, **changes}
    own = {"vectors": str(folder / "loud.safetensors"), "coefficient": 2.0, "blocks": [0]}
    own |= {name.partition(".")[2]: fields.pop(name) for name in list(fields) if name.startswith("steering.")}
    config = small_run_config(folder, steering=own, **fields)
    save_vectors(folder / "loud.safetensors", config, scale=scale, **(origin or {}))
    return config


@contextmanager
def opened_for(config: RunConfig, *, phases: tuple[Phase, ...], start: Start = "fresh") -> Iterator[Run]:
    console = Console(num_steps=config.train.steps)
    stops = {"should_stop": lambda: False, "must_stop": lambda: False}
    with opened(config, world=World.alone(), start=start, phases=phases, console=console, **stops) as run:
        yield run


class Seen:
    """What every forward of the policy was steered by, by what was being done at the time."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: dict[str, list[Steering | None]] = {}
        doing = ["?"]
        hidden, drawn = Policy.hidden, run.rollouts.run

        def noted_hidden(policy: Policy, *arguments: Any, **options: Any) -> torch.Tensor:
            self.of.setdefault("training" if torch.is_grad_enabled() else doing[0], []).append(policy.steering)
            return hidden(policy, *arguments, **options)

        def noted_run(*arguments: Any, **options: Any) -> Any:
            doing[0] = options["phase"]
            try:
                return drawn(*arguments, **options)
            finally:
                doing[0] = "training"

        monkeypatch.setattr(Policy, "hidden", noted_hidden)
        monkeypatch.setattr(run.rollouts, "run", noted_run)

    def coefficients(self, doing: str) -> set[float | None]:
        return {None if steering is None else steering.coefficient for steering in self.of[doing]}


@pytest.mark.parametrize(
    ("mode", "sampling", "training"),
    [("preventative", 2.0, 2.0), ("train_only", None, 2.0), ("sample_only", 2.0, None)],
)
def test_a_mode_steers_its_halves_of_a_step_and_nothing_else(tmp_path, monkeypatch, mode, sampling, training):
    allowed = {} if mode == "preventative" else {"steering.allow_off_policy": True}
    adaptive = {"kind": "adaptive", "window_steps": 4, "window_rise": 10.0, "cooldown_steps": 0}
    adaptive |= {"rollouts_per_problem": 2, "max_rollouts_per_problem": 4}
    changes = {"evaluation.every_steps": 1, "train.steps": 6, "temperature": adaptive}
    config = config_of(tmp_path, **changes, **{"steering.mode": mode, **allowed})
    with opened_run(config) as run:
        seen = Seen(run, monkeypatch)
        run_train(run)
        assert any("tokens/temperature" in row for row in read_jsonl(run.folder.metrics))
    assert seen.coefficients("train") == {sampling}
    assert seen.coefficients("training") == {training}
    assert seen.coefficients("evaluation") == {None}


def test_the_first_ratio_is_one_and_the_samplers_gap_is_rounding_under_preventative_steering(tmp_path):
    config = config_of(tmp_path, **{"steering.blocks": [0, 1], "train.minibatches_per_step": 1})
    with opened_run(config) as run:
        run_train(run)
        rows = read_jsonl(run.folder.metrics)
    assert [row[COEFFICIENT] for row in rows] == [2.0] * 3
    trained = [row for row in rows if "optim/tokens" in row]
    assert trained
    for row in trained:
        assert row["policy/ratio_max"] == 1.0
        assert row["policy/sampler_logprob_gap_max"] < 3e-5  # the logits of this model spread by about 3


def test_a_step_that_samples_unsteered_and_trains_steered_is_off_policy_and_says_so(tmp_path):
    config = config_of(tmp_path, **{"steering.mode": "train_only", "train.old_logprobs": "sampler"})
    with opened_run(config) as run:
        run_train(run)
        first = next(row for row in read_jsonl(run.folder.metrics) if "optim/tokens" in row)
    assert first["policy/sampler_logprob_gap_max"] > 0.1
    assert first["policy/ratio_max"] > 1.1


def test_a_stage_that_is_not_named_is_not_steered(tmp_path):
    stages = [{"name": "one", "tiers": ["moderate"], "steps": 2}, {"name": "two", "tiers": ["extreme"]}]
    fields = {"curriculum": {"kind": "two_stages", "stages": stages}, "profile": {"reuse_steps": 0}}
    config = config_of(tmp_path, **fields, **{"steering.stages": ["two"]})
    with opened_run(config) as run:
        steerer = run.steerer
    assert steerer.steering_of_sampling(5, "one") is None
    assert steerer.steering_of_training(5, "one") is None
    assert steerer.metrics(5, "one") == {COEFFICIENT: 0.0}
    assert steerer.steering_of_sampling(5, "two") == steerer.steering_of_training(5, "two")
    assert steerer.metrics(5, "two") == {COEFFICIENT: 2.0}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("constant", [4.0, 4.0, 4.0, 4.0]), ("linear", [4.0, 2.5, 1.0, -2.0]), ("cosine", [4.0, 3.1213, 1.0, -2.0])],
)
def test_a_schedule_goes_to_its_last_value_and_stays(kind, expected):
    coefficient = Scheduled(4.0, kind=kind, last=-2.0, steps=4)
    assert [coefficient.value(step) for step in (0, 1, 2, 4)] == pytest.approx(expected, abs=1e-4)
    assert coefficient.value(100) == coefficient.value(4)


def test_a_config_without_a_schedule_is_constant_and_one_with_is_not():
    fields = {"vectors": "v", "coefficient": 4.0}
    scheduled = {"schedule": "linear", "final_coefficient": 0.0, "schedule_steps": 2}
    assert coefficient_of(SteeringConfig(**fields), trait="loud").value(7) == 4.0
    assert [coefficient_of(SteeringConfig(**fields, **scheduled), trait="loud").value(step) for step in range(4)] == [
        4,
        2,
        0,
        0,
    ]


def test_what_the_coefficient_knows_survives_a_restart(tmp_path, monkeypatch):
    class Counts(Scheduled):
        """1 more for each step that it was told of, if it was told what the step measured."""

        def observe(self, step, measures):
            assert {"reward/mean", COEFFICIENT, "sampling/temperature"} <= measures.keys()
            self._first += 1.0

        def state_dict(self):
            return {"first": self._first}

        def load_state_dict(self, state):
            self._first = state["first"]

    monkeypatch.setattr(steerers, "coefficient_of", lambda config, trait: Counts(config.coefficient))
    config = config_of(tmp_path, **{"checkpoint.every_steps": 1})
    with opened_run(config) as run:
        run_train(run)
        assert [row[COEFFICIENT] for row in read_jsonl(run.folder.metrics)] == [2.0, 3.0, 4.0]
        state = run.steerer.state_dict()
        trainer_of(run)
        run.steerer.load_state_dict({"coefficient": {"first": 9.0}})
        assert run.steerer.metrics(0, "") == {COEFFICIENT: 9.0}
    assert state == {"coefficient": {"first": 5.0}}


# --- what is refused before the first step ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steering.blocks": [2]}, "steering: block 2: the vectors of loud are of blocks 0 to 1"),
        ({"origin": {"hidden_size": 16}}, "with 2 blocks of width 16, and the policy has 2 of width 32"),
        ({"origin": {"num_blocks": 5}}, "with 5 blocks of width 32, and the policy has 2"),
        ({"scale": 0.0}, "steering: steering block 0 changes no hidden state"),
        ({"scale": 1e-12}, "steering: steering block 0 changes no hidden state"),
    ],
)
def test_vectors_that_do_not_fit_are_refused_when_the_run_is_opened(tmp_path, changes, said):
    config = config_of(tmp_path, **changes)
    with pytest.raises(ConfigError) as error, opened_run(config):
        pass
    assert said in str(error.value)


def test_a_hook_that_does_not_attach_is_refused_when_the_run_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(Steering, "moved", lambda self, hidden, *, block, at: hidden)
    with pytest.raises(ConfigError, match="changes no hidden state"), opened_run(config_of(tmp_path)):
        pass


def test_a_file_that_is_not_there_is_missed_by_who_trains_and_not_before(tmp_path):
    """Vectors are extracted from the cold start, by the same config."""
    config = config_of(tmp_path)
    Path(config.steering.vectors).unlink()
    with (
        pytest.raises(ConfigError, match=r"steering: .*no such file; make it with `grpo persona extract`"),
        opened_run(config),
    ):
        pass
    with opened_for(config, phases=("profile",)) as run:
        assert run.steerer.metrics(0, "") == {}


def test_a_file_of_something_else_is_refused(tmp_path):
    config = config_of(tmp_path)
    Path(config.steering.vectors).write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match=r"steering: .*not a safetensors file"), opened_run(config):
        pass


def test_vectors_of_another_policy_are_refused_before_the_first_step_unless_that_is_allowed(tmp_path):
    config = config_of(tmp_path, origin={"policy": "feedbeef" * 4})
    with (
        opened_run(config) as run,
        pytest.raises(ConfigError, match="extracted from the weights feedbeeffeed of the same"),
    ):
        run_train(run)
    assert not (run.folder.metrics).is_file() or not read_jsonl(run.folder.metrics)
    allowed = config.model_copy(update={"steering": config.steering.model_copy(update={"allow_other_model": True})})
    with opened_run(allowed) as run:
        run_train(run)
        assert len(read_jsonl(run.folder.metrics)) == 3
        assert "carried over from the weights feedbeeffeed" in run.folder.log.read_text()


def test_the_policy_that_is_compared_is_the_one_that_training_starts_from(tmp_path):
    """The fingerprint of the file is of the initial weights: a run that starts from others is told."""
    config = config_of(tmp_path, **{"run.seed": 3})
    other = config.model_copy(update={"run": config.run.model_copy(update={"seed": 4})})
    with opened_run(config) as run:
        load_start(run)
        run_train(run)
    with opened_run(other) as run, pytest.raises(ConfigError, match="of the same shape"):
        run_train(run)


def test_a_rank_that_reads_another_file_of_vectors_is_refused(tmp_path, monkeypatch):
    name = "content: steering.vectors"
    monkeypatch.setattr(World, "gather", lambda self, own: [own, own | {name: "other"}] if name in own else [own])
    with (
        pytest.raises(ConfigError, match=rf"rank 1 has not what rank 0 has \({name}\)"),
        opened_run(config_of(tmp_path)),
    ):
        pass


# --- the control ------------------------------------------------------------------------------------------------------


def test_the_control_has_the_norms_of_the_vectors_and_other_directions_by_the_runs_seed(tmp_path):
    config = config_of(tmp_path, **{"steering.blocks": [0, 1]})
    found = []
    for changes in ({}, {"random_control": True}, {"random_control": True}):
        changed = config.model_copy(update={"steering": config.steering.model_copy(update=changes)})
        with opened_run(changed) as run:
            found.append(run.steerer.steering_of_training(0, "").vectors)
    vectors, control, again = found
    for block in (0, 1):
        assert float(control[block].norm()) == pytest.approx(float(vectors[block].norm()), rel=1e-5)
        cosine = torch.nn.functional.cosine_similarity(control[block], vectors[block], dim=0)
        assert abs(float(cosine)) < 0.6
        assert torch.equal(control[block], again[block])
    assert not torch.equal(control[0] / control[0].norm(), control[1] / control[1].norm())


# --- what survives ----------------------------------------------------------------------------------------------------

RISING = {"steering.schedule": "linear", "steering.final_coefficient": 6.0, "steering.schedule_steps": 2}


def test_a_steered_run_that_is_resumed_goes_on_bit_for_bit_and_its_rollouts_are_drawn_again(tmp_path):
    found = []
    for name, stops in (("whole", (3,)), ("cut", (1, 3))):
        config = config_of(tmp_path / name, **{"checkpoint.every_steps": 1, **RISING})
        for number, steps in enumerate(stops):
            train = config.train.model_copy(update={"steps": steps})
            asked = config.model_copy(update={"train": train})
            with opened_for(asked, phases=("train",), start="resume" if number else "fresh") as run:
                run_train(run)
        found.append(run.folder)
    whole, cut = found
    assert [row[COEFFICIENT] for row in read_jsonl(cut.metrics)] == [2.0, 4.0, 6.0]
    weights, _, state = checkpoint.load(cut.checkpoints / "step_000003", device=torch.device("cpu"))
    expected, _, _ = checkpoint.load(whole.checkpoints / "step_000003", device=torch.device("cpu"))
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert weights.keys() == checkpoint.weights_of(run.policy.model).keys()  # no vector is among them
    assert state["steering"] == {"coefficient": {}}
    recorded = read_jsonl(cut.rollouts / "step_000003.jsonl")[0]
    asked = find(cut, step=3, problem=recorded["problem_id"], attempt=recorded["attempt"], say=print)
    with looked_at(config, cut.path, world=World.alone(), console=Console(num_steps=3)) as opened_again:
        again = replay(opened_again, asked, say=print)
        assert again.differences == ()
        assert again.logprob_gap == 0.0
        opened_again.steerer._coefficient = Scheduled(-2.0)  # the same policy, otherwise steered, draws other tokens
        other = replay(opened_again, asked, say=print)
    assert other.logprob_gap > 1e-3 or other.differences
