"""What is watched of traits while training: projections of rollouts, their drift, and the traits as they are scored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from grpo.batch import MicroBatch, TrainedRollout, micro_batches
from grpo.config import PersonaConfig, RewardConfig, RunConfig, SteeringConfig, WatchConfig
from grpo.distributed.world import World
from grpo.errors import ConfigError, DivergenceError, RewardError, RunFolderError
from grpo.persona.applied import Applied
from grpo.persona.coefficient import Scheduled
from grpo.persona.steerer import Steerer
from grpo.persona.traits import Trait, load_trait
from grpo.persona.vectors import PersonaVectors
from grpo.persona.watch_measuring import Measuring, measured_places
from grpo.persona.watched import NUM_RANDOM, Directions, WatchedTrait, check_steered, load_watched, of_rollouts
from grpo.persona.watching import Watching
from grpo.policy import Policy, Wanted
from grpo.practice import reward_spec
from grpo.recipe import trainer_of
from grpo.starts import load_start, take_up
from grpo.steering import Steering, captured
from grpo.types import StepStats
from rewards import Pool, Reward
from tests.conftest import tiny_policy
from tests.launch import launched
from tests.personas import made_vectors, trait_file, vectors_file
from tests.runs import OF_THE_CLOCK, opened_run, read_jsonl, small_run_config, small_run_file
from tests.test_batch import CPU, LIMIT_TOKENS, WHOLE, rollout_of, trained_of
from tests.test_persona_extract import FIELDS as PLANTED
from tests.test_stock import group_of

D = 32
PRACTICE: dict[str, Any] = {
    "sft": None,
    "curriculum": {"kind": "uniform", "max_refill_waves": 0},
    "evaluation.every_steps": 0,
}


def batches_of(
    groups: Sequence[list[TrainedRollout]], *, tokens: int = WHOLE, shares_prompts: bool = True
) -> list[MicroBatch]:
    return micro_batches(
        groups,
        tokens_per_micro_batch=tokens,
        limit_tokens=LIMIT_TOKENS,
        aggregation="token",
        device=CPU,
        shares_prompts=shares_prompts,
    )


def config_of(folder: Path, *watch: WatchConfig) -> RunConfig:
    return small_run_config(folder).model_copy(update={"persona": PersonaConfig(watch=list(watch))})


def watched_trait(name: str = "ones", *, block: int = 1, seed: int = 0) -> WatchedTrait:
    of = made_vectors(trait=name, seed=seed)
    direction = of.of["response"][block] / of.of["response"][block].norm()
    return WatchedTrait(
        name=name, block=block, over="response", vectors=of, first=direction, definition=None, scorer=None
    )


def nothing_to_extract(trait: Trait, step: int) -> tuple[PersonaVectors, int]:
    raise AssertionError(f"{trait.name} was not to be extracted at step {step}")


def watching_of(*traits: WatchedTrait, policy: Policy | None = None, folder: Path = Path(), **options: Any) -> Watching:
    fields: dict[str, Any] = {
        "pool": Pool(workers=0, timeout_seconds=5),
        "world": World.alone(),
        "reextract": nothing_to_extract,
        "on_event": lambda step, name, details: None,
    }
    config = PersonaConfig(watch=[WatchConfig(vectors="of.safetensors")], **options.pop("config", {}))
    policy = policy or tiny_policy("llama")
    return Watching(traits, config, policy=policy, seed=3, max_error_fraction=0.5, folder=folder, **(fields | options))


def drawn_by(problem_id: str, *lengths: int, weights: Sequence[float] = (), **fields: Any) -> list[TrainedRollout]:
    """A group: rollouts with prompts of 3 tokens and completions of `lengths`."""
    members = trained_of([rollout_of(3, n, problem_id=problem_id, attempt=i) for i, n in enumerate(lengths)])
    weights = weights or [1.0] * len(lengths)
    return [replace(member, weight=weight, **fields) for member, weight in zip(members, weights, strict=True)]


def columns_of(values: Sequence[float]) -> Tensor:
    """Projections [A, W] of one trait that is watched, the same along every one of its directions."""
    return torch.tensor(values, dtype=torch.float32).unsqueeze(-1).repeat(1, 2 + NUM_RANDOM)


def one_step(watching: Watching, groups: Sequence[list[TrainedRollout]], values: Sequence[float]) -> dict[str, float]:
    """The metrics of a step in which a forward read `values` at the A positions that chose."""
    stats = StepStats()
    (batch,) = batches_of(groups)
    assert [t.rollout.attempt for t in batch.rollouts] == [t.rollout.attempt for of_group in groups for t in of_group]
    watching.read(batch, columns_of(values))
    watching.end_step(None, groups, stats, step=1)
    return stats.reduce()


# --- projections of rollouts ------------------------------------------------------------------------------------------


def test_a_rollouts_projection_is_the_mean_over_its_completion_and_its_last_prompt_token_stands_apart():
    # Two rollouts, with 3 and 2 tokens drawn: the positions that choose are the last prompt token and all of the
    # completion's but the last.
    (batch,) = batches_of([drawn_by("p", 3, 2)])
    found = of_rollouts(batch, torch.tensor([[10.0], [1.0], [3.0], [20.0], [5.0]]))
    assert found.tolist() == [[[2.0], [10.0]], [[5.0], [20.0]]]


def test_a_completion_of_one_token_has_a_last_prompt_token_and_no_mean():
    (batch,) = batches_of([drawn_by("p", 2, 1)])
    means, at_prompt = of_rollouts(batch, torch.tensor([[10.0], [4.0], [20.0]]))[:, :, 0].T.tolist()
    assert means[0] == 4.0
    assert means[1] != means[1]  # NaN
    assert at_prompt == [10.0, 20.0]


def test_positions_before_a_later_turn_are_of_no_completion():
    # prompt 0 1 | drawn 2 3 | the tool's 4 5 | drawn 6: those that choose are 1, 2 and 5, of which 2 alone was drawn.
    rollout = replace(rollout_of(2, 5), action_mask=(False, False, True, True, False, False, True))
    (batch,) = batches_of([trained_of([rollout])])
    assert of_rollouts(batch, torch.tensor([[10.0], [1.0], [7.0]])).tolist() == [[[1.0], [10.0]]]


def random_groups() -> list[list[TrainedRollout]]:
    return [
        [
            replace(t, rollout=replace(t.rollout, token_ids=tuple((7 * i + seed) % 96 for i in t.rollout.token_ids)))
            for seed, t in enumerate(drawn_by(name, *lengths))
        ]
        for name, lengths in (("p", (5, 2, 9)), ("q", (4, 4, 7)))
    ]


def read_by(
    policy: Policy, groups: Sequence[list[TrainedRollout]], *, tokens: int, shares_prompts: bool
) -> dict[tuple[str, int], Tensor]:
    """[2, W] of each rollout."""
    found = {}
    for batch in batches_of(groups, tokens=tokens, shares_prompts=shares_prompts):
        projections = policy(batch)[3]
        for trained, of_rollout in zip(batch.rollouts, of_rollouts(batch, projections), strict=True):
            found[trained.rollout.problem_id, trained.rollout.attempt] = of_rollout
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_packed_padded_and_one_by_one_a_rollout_projects_to_the_same(architecture):
    policy = tiny_policy(architecture)
    assert policy.packs
    traits = [watched_trait("first", block=0), watched_trait("second", block=1, seed=1)]
    directions = Directions(traits, seed=3)
    policy.watch(directions.watched)
    groups = random_groups()
    with torch.no_grad():
        packed = read_by(policy, groups, tokens=WHOLE, shares_prompts=True)
        alone = read_by(policy, groups, tokens=1, shares_prompts=True)
        policy.packs = False
        padded = read_by(policy, groups, tokens=WHOLE, shares_prompts=False)
        for of_group in groups:
            for trained in of_group:
                rollout = trained.rollout
                key, num_prompt = (rollout.problem_id, rollout.attempt), rollout.action_mask.index(True)
                outputs: dict[int, Tensor] = {}
                with captured(policy.blocks, outputs.__setitem__):
                    policy.model(input_ids=torch.tensor([rollout.token_ids]))
                for trait in traits:
                    column, along = directions.columns(trait.name)[0], outputs[trait.block][0] @ trait.direction  # [T]
                    wanted = torch.stack([along[num_prompt:-1].mean(), along[num_prompt - 1]])
                    for found in (packed, alone, padded):
                        torch.testing.assert_close(found[key][:, column], wanted, atol=1e-5, rtol=1e-5)


def test_recomputed_activations_project_to_the_same_and_change_no_gradient():
    read, gradients = [], []
    for recomputes in (False, True):
        policy = tiny_policy("llama", activation_checkpointing=recomputes)
        policy.watch(Directions([watched_trait()], seed=3).watched)
        (batch,) = batches_of(random_groups())
        loss, _, _, projections = policy(batch, Wanted(loss_of=lambda logprobs, part: logprobs.sum()))
        loss.backward()
        read.append(projections)
        gradients.append([parameter.grad for parameter in policy.parameters() if parameter.grad is not None])
    assert torch.equal(*read)
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_nothing_is_read_where_a_forward_is_not_asked_for_it():
    policy = tiny_policy("llama")
    policy.watch(Directions([watched_trait()], seed=3).watched)
    (batch,) = batches_of(random_groups())
    assert policy(batch, Wanted(projections=False))[3] is None
    assert policy(batch)[3].shape == (31, 2 + NUM_RANDOM)


def test_at_the_steered_block_projections_are_those_of_the_same_tokens_without_steering():
    policy = tiny_policy("llama")
    policy.watch(Directions([watched_trait(block=0)], seed=3).watched)
    (batch,) = batches_of(random_groups())
    plain = policy(batch)[3]
    policy.steer(Steering({0: torch.ones(D)}, coefficient=5.0))
    assert torch.equal(policy(batch)[3], plain)


# --- directions -------------------------------------------------------------------------------------------------------


def test_random_directions_are_unit_vectors_that_a_seed_and_a_block_fix():
    first, again, other = (Directions([watched_trait()], seed=seed).watched.directions[1] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first[2:], other[2:])
    assert torch.allclose(first.norm(dim=-1), torch.ones(2 + NUM_RANDOM))
    at_zero = Directions([watched_trait(block=0)], seed=3).watched.directions[0]
    assert not torch.allclose(at_zero[2:], first[2:])


def test_traits_at_one_block_have_columns_of_their_own_and_random_ones_in_common():
    traits = [watched_trait("a", block=1), watched_trait("b", block=0, seed=1), watched_trait("c", block=1, seed=2)]
    directions = Directions(traits, seed=3)
    table = torch.cat([directions.watched.directions[block] for block in directions.watched.directions])
    for trait in traits:
        assert torch.equal(table[directions.columns(trait.name)[0]], trait.direction)
        assert torch.equal(table[directions.columns(trait.name)[1]], trait.first)
    assert directions.columns("a")[2:] == directions.columns("c")[2:] != directions.columns("b")[2:]
    assert directions.watched.num_directions == 6 + 2 * NUM_RANDOM


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vectors": "absent.safetensors"}, "no such file"),
        ({"block": 2}, "persona.watch.0: block 2: the vectors of ones are of blocks 0 to 1"),
        ({"measure": True}, "the file holds no whole definition of ones .*; name the trait's file as persona"),
        ({"measure": True, "trait": "absent"}, "trait 'absent': no such trait is shipped"),
        ({"measure": True, "trait": "other.yaml"}, "the vectors are of the trait ones, and .*other.yaml is other"),
    ],
)
def test_what_cannot_be_watched_is_refused_by_its_place(tmp_path, changes, expected):
    fields = {"vectors": str(vectors_file(tmp_path)), **changes}
    trait_file(tmp_path, name="other")
    if fields.get("trait") == "other.yaml":
        fields["trait"] = str(tmp_path / "other.yaml")
    with pytest.raises((ConfigError, ValueError), match=expected):
        load_watched(config_of(tmp_path, WatchConfig(**fields)), policy=tiny_policy("llama"))


def test_vectors_of_another_model_are_refused(tmp_path):
    watch = WatchConfig(vectors=str(vectors_file(tmp_path, hidden_size=16)))
    with pytest.raises(ConfigError, match="2 blocks and width 16; the model has 2 and 32"):
        load_watched(config_of(tmp_path, watch), policy=tiny_policy("llama"))


def test_a_trait_that_is_watched_twice_needs_two_names(tmp_path):
    path = str(vectors_file(tmp_path))
    twice = [WatchConfig(vectors=path), WatchConfig(vectors=path, block=0)]
    with pytest.raises(ConfigError, match=r"persona\.watch\.1: ones is watched already"):
        load_watched(config_of(tmp_path, *twice), policy=tiny_policy("llama"))
    named = [twice[0], WatchConfig(vectors=path, block=0, name="ones_early")]
    found = load_watched(config_of(tmp_path, *named), policy=tiny_policy("llama"))
    assert [(trait.name, trait.block) for trait in found] == [("ones", 1), ("ones_early", 0)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"drift_alarm": 1.0}, "drift_alarm = 1.0 is not read where nothing is watched"),
        ({"watch": [{"vectors": "v"}], "drift_alarm_steps": 2}, "not read where drift_alarm is null"),
        ({"watch": [{"vectors": "v"}], "measure_rollouts_per_step": 8}, "no watched trait is measured"),
        ({"watch": [{"vectors": "v", "trait": "evil"}]}, "watch.0.trait = 'evil' is not read"),
        ({"watch": [{"vectors": "v"}], "reextract_steers": True}, "reextract_every_steps is null"),
    ],
)
def test_a_field_of_watching_that_nothing_reads_is_refused(fields, expected):
    with pytest.raises(ValidationError, match=expected):
        PersonaConfig.model_validate(fields)


# --- the metrics of a step ----------------------------------------------------------------------------------------


def test_means_and_variances_of_a_step_are_those_made_by_hand():
    # Completion means 1, 3 (one group: variance 1) and 5, 5 (another: 0); last prompt tokens 0, 2, 4, 6.
    groups = [drawn_by("p", 2, 2), drawn_by("q", 2, 2)]
    metrics = one_step(watching_of(watched_trait()), groups, [0, 1, 2, 3, 4, 5, 6, 5])
    assert metrics["persona/ones/projection"] == 3.5
    assert metrics["persona/ones/last_prompt"] == 3.0
    assert metrics["persona/ones/projection_group_variance"] == 0.5
    assert metrics["persona/ones/projection_std"] == pytest.approx(2.75**0.5)
    assert metrics["persona/ones/projection_random"] == 3.5


def test_a_failure_that_stands_for_several_counts_as_many():
    # A success that projects to 1 and one of three failures, with 5: (1 + 3 · 5) / 4 = 4; variance (9 + 3) / 4.
    groups = [drawn_by("p", 2, 2, weights=(1.0, 3.0))]
    metrics = one_step(watching_of(watched_trait()), groups, [0, 1, 8, 5])
    assert metrics["persona/ones/projection"] == 4.0
    assert metrics["persona/ones/last_prompt"] == 6.0
    assert metrics["persona/ones/projection_group_variance"] == pytest.approx(3.0)


def test_what_an_earlier_policy_drew_does_not_count():
    groups = [drawn_by("p", 2, 2), drawn_by("q", 2, 2, stale=True)]
    metrics = one_step(watching_of(watched_trait()), groups, [0, 1, 0, 3, 9, 9, 9, 9])
    assert metrics["persona/ones/projection"] == 2.0


def test_drift_is_the_shift_from_the_first_step_in_spreads_of_its_rollouts():
    watching = watching_of(watched_trait())
    first = one_step(watching, [drawn_by("p", 2, 2)], [0, 1, 0, 5])  # mean 3, spread 2
    later = one_step(watching, [drawn_by("q", 2, 2)], [0, 6, 0, 8])  # mean 7
    assert first["persona/ones/drift"] == 0.0
    assert later["persona/ones/drift"] == later["persona/ones/drift_random"] == 2.0
    assert later["persona/ones/drift_random_max"] == 2.0


def test_the_control_is_the_root_mean_square_of_random_directions_and_its_largest_is_told_apart():
    watching = watching_of(watched_trait())
    values = torch.zeros(4, 2 + NUM_RANDOM)
    values[1], values[3] = 1.0, 3.0  # spread 1 everywhere
    group = drawn_by("p", 2, 2)
    (batch,) = batches_of([group])
    later = values.clone()
    later[:, 2], later[:, 3] = values[:, 2] + 4, values[:, 3] - 3  # two of eight move, by 4 and by -3
    found = []
    for of_step in (values, later):
        stats = StepStats()
        watching.read(batch, of_step)
        watching.end_step(None, [group], stats, step=1)
        found.append(stats.reduce())
    assert found[1]["persona/ones/drift"] == 0.0
    assert found[1]["persona/ones/drift_random"] == pytest.approx((25 / 8) ** 0.5)
    assert found[1]["persona/ones/drift_random_max"] == 4.0


def test_how_a_step_is_split_into_micro_batches_and_over_ranks_changes_no_metric():
    policy = tiny_policy("llama")
    groups = random_groups()

    class Half(World):
        """One of two ranks, that is told what the other has."""

        other: Any = None

        def gather(self, value: Any) -> list[Any]:
            return [self.other, value]

    def metrics(watching: Watching, batches: Sequence[MicroBatch]) -> dict[str, float]:
        stats = StepStats()
        with torch.no_grad():
            for batch in batches:
                watching.read(batch, policy(batch)[3])
        watching.end_step(None, groups, stats, step=1)
        return stats.reduce()

    whole = metrics(watching_of(watched_trait(), policy=policy), batches_of(groups))
    small = metrics(watching_of(watched_trait(), policy=policy), batches_of(groups, tokens=8))
    batches = batches_of(groups, tokens=8)
    assert len(batches) > 3
    other = watching_of(watched_trait(), policy=policy)
    with torch.no_grad():
        for batch in batches[::2]:
            other.read(batch, policy(batch)[3])
    half = Half(rank=1, size=2, device=CPU)
    half.other = other._rows
    split = metrics(watching_of(watched_trait(), policy=policy, world=half), batches[1::2])
    for found in (small, split):
        assert found.keys() == whole.keys()
        assert found == pytest.approx(whole, rel=1e-4, abs=1e-5)


# --- alarms -----------------------------------------------------------------------------------------------------------


def drift_of(value: float) -> dict[str, float]:
    return {"persona/ones/drift": value, "persona/ones/drift_random": 0.25}


def test_a_drift_past_the_alarm_is_told_of_on_either_side_and_ends_nothing():
    watching = watching_of(watched_trait(), config={"drift_alarm": 1.5})
    assert watching.alarms(1, drift_of(1.5)) == ""
    assert watching.alarms(2, {}) == ""
    for step in range(3, 40):
        told = watching.alarms(step, drift_of(-1.75))
    assert told == "persona/ones/drift = -1.75 is past persona.drift_alarm = 1.5 (random directions: 0.25)"


def test_steps_in_a_row_past_the_alarm_end_the_run_where_that_is_asked_for_and_outlive_a_resume():
    config = {"drift_alarm": 1.0, "drift_alarm_steps": 3}
    watching = watching_of(watched_trait(), config=config)
    for drift in (2.0, 2.0, 0.5, 2.0, 2.0):
        watching.alarms(1, drift_of(drift))
    resumed = watching_of(watched_trait(), config=config)
    resumed.load_state_dict(json.loads(json.dumps(watching.state_dict())))
    with pytest.raises(DivergenceError, match=r"step 6: .*3 steps in a row"):
        resumed.alarms(6, drift_of(2.0))


# --- the trait as its scorer measures it ------------------------------------------------------------------------------


def measured(
    folder: Path, completions: Sequence[Sequence[str]], *, scorer: str = "ones", most: int | None = None
) -> dict[str, float]:
    trait_file(folder)
    spec = reward_spec(RewardConfig(file=str(folder / "scorer.py"), function=scorer))
    groups = [
        replace(group_of(f"p{place}", [True] * len(texts)), completions=tuple(texts))
        for place, texts in enumerate(completions)
    ]
    stats = StepStats()
    with Pool(workers=0, timeout_seconds=5) as pool:
        measuring = Measuring({"ones": spec}, pool=pool, world=World.alone(), max_error_fraction=0.5)
        asked = measuring.ask(groups, measured_places(groups, most=most, seed=3, step=1))
        measuring.count(asked, stats, step=1)
    return stats.reduce()


def test_rate_and_group_variance_are_of_the_traits_own_scorer(tmp_path):
    metrics = measured(tmp_path, [["1", "0", "0", "0"], ["11", "1", "1", "1"]])
    assert metrics == {
        "persona/ones/rate": 5 / 8,
        "persona/ones/group_variance": 3 / 32,  # 3/16 in one group and 0 in the other
        "persona/ones/measured": 8,
        "persona/ones/lost": 0,
    }


def test_too_many_lost_verdicts_end_the_run_and_name_the_trait(tmp_path):
    with pytest.raises(RewardError, match="step 1, scoring the trait ones: 2 of 2 verdicts were lost"):
        measured(tmp_path, [["1", "0"]], scorer="broken")


def test_a_lost_verdict_has_no_value_and_is_counted(tmp_path):
    (tmp_path / "scorer.py").write_text("")
    measuring = Measuring({"ones": None}, pool=None, world=World.alone(), max_error_fraction=0.5)  # type: ignore[dict-item,arg-type]
    stats = StepStats()
    rewards = [Reward.error("it broke"), Reward.scored(1.0), Reward.scored(0.0), Reward.scored(1.0)]
    measuring._count_trait("ones", rewards, [(0, i) for i in range(4)], stats, step=1)
    metrics = stats.reduce()
    assert (metrics["persona/ones/rate"], metrics["persona/ones/lost"]) == (2 / 3, 1)
    assert metrics["persona/ones/group_variance"] == pytest.approx(2 / 9)


def test_at_most_so_many_rollouts_are_measured_whole_groups_first_and_others_in_other_steps():
    groups = [group_of(f"p{place}", [True] * 4) for place in range(8)]
    chosen = measured_places(groups, most=10, seed=3, step=1)
    sizes = sorted(sum(place == of for of, _ in chosen) for place in range(8))
    assert sizes == [0, 0, 0, 0, 0, 2, 4, 4]
    assert chosen == measured_places(groups, most=10, seed=3, step=1)
    assert chosen != measured_places(groups, most=10, seed=3, step=2)
    assert len(measured_places(groups, most=None, seed=3, step=1)) == 32


# --- vectors that are extracted again ---------------------------------------------------------------------------------


def test_vectors_that_are_extracted_again_are_watched_and_billed_and_outlive_a_resume(tmp_path):
    newest, events, given = made_vectors(seed=9), [], []
    options: dict[str, Any] = {
        "config": {"reextract_every_steps": 4},
        "folder": tmp_path,
        "reextract": lambda trait, step: (newest, 70),
        "on_event": lambda *event: events.append(event),
        "on_vectors": given.append,
    }
    definition = load_trait(str(trait_file(tmp_path)))
    policy, trait = tiny_policy("llama"), replace(watched_trait(), definition=definition)
    watching = watching_of(trait, policy=policy, **options)
    assert watching.renew(3) == {}
    metrics = watching.renew(4)
    cosine = float(torch.cosine_similarity(newest.of["response"][1], trait.first, dim=0))
    assert metrics["tokens/persona"] == 70
    assert metrics["persona/ones/cosine"] == metrics["persona/ones/cosine_to_first"] == pytest.approx(cosine)
    ((step, name, details),) = events
    assert (step, name, details["trait"], details["file"]) == (4, "reextract", "ones", "ones_step_000004.safetensors")
    assert details["cosines"][1] == pytest.approx(cosine)
    assert len(details["cosines"]) == 2
    assert given == [newest]
    table = policy.watched.directions[1]
    assert torch.allclose(table[0], newest.of["response"][1] / newest.of["response"][1].norm())
    assert torch.equal(table[1], trait.first)  # which drift is of
    metrics = watching.renew(8)
    assert metrics["persona/ones/cosine"] == pytest.approx(1.0)
    assert metrics["persona/ones/cosine_to_first"] == pytest.approx(cosine)

    again = tiny_policy("llama")
    resumed = watching_of(trait, policy=again, **options)
    resumed.load_state_dict(json.loads(json.dumps(watching.state_dict())))
    assert torch.equal(again.watched.directions[1], policy.watched.directions[1])
    assert given[-1].of["response"].tolist() == newest.of["response"].tolist()


def test_a_steerer_takes_up_the_newest_vectors_of_its_own_trait_at_the_blocks_that_it_steers():
    first, newest = made_vectors(), made_vectors(seed=9)
    config = SteeringConfig(vectors="of.safetensors", coefficient=2.0)
    applied = Applied(config, first.vectors([1]), origin=first.origin, field="steering")
    steerer = Steerer(applied, config, coefficient=Scheduled(2.0))
    steerer.renew(made_vectors(trait="other", seed=8))
    assert torch.equal(steerer.steering_of_training(0, "").vectors[1], first.of["response"][1])
    steerer.renew(newest)
    steering = steerer.steering_of_training(0, "")
    assert list(steering.vectors) == [1]
    assert torch.equal(steering.vectors[1], newest.of["response"][1])


def test_steering_by_newest_vectors_needs_its_trait_to_be_watched(tmp_path):
    config = small_run_config(
        tmp_path,
        persona={"watch": [{"vectors": "v"}], "reextract_every_steps": 2, "reextract_steers": True},
        steering={"vectors": "v", "coefficient": 1.0},
        **{"profile.reuse_steps": 0},
    )
    check_steered(config, [watched_trait()], steered="ones", first_block=1)
    with pytest.raises(ConfigError, match="humour is steered, and what is extracted again is what is watched: ones"):
        check_steered(config, [watched_trait()], steered="humour", first_block=1)
    with pytest.raises(ValidationError, match=r"persona\.reextract_steers = True is not read where nothing is steered"):
        RunConfig.model_validate({**config.model_dump(), "steering": None})


def test_a_run_extracts_again_with_the_policy_as_it_stands_and_goes_on_from_the_files(tmp_path):
    watch = {"vectors": str(vectors_file(tmp_path, trait="planted", definition=PLANTED))}
    persona = {"watch": [watch], "reextract_every_steps": 2, "rollouts_per_question": 2, "min_pairs": 2}
    config = small_run_config(tmp_path / "whole", **PRACTICE, persona=persona, **{"train.steps": 5})
    with opened_run(config) as run:
        load_start(run)
        trainer_of(run).run()
        whole = rows_of(run.folder.path)
        files = sorted(path.name for path in (run.folder.path / "persona").iterdir())
        assert files == ["planted_step_000002.safetensors", "planted_step_000004.safetensors"]
    extracted = [row for row in whole if "tokens/persona" in row]
    assert [row["step"] for row in extracted] == [3, 5]
    assert all(row["tokens/persona"] > 0 and "persona/planted/cosine" in row for row in extracted)
    bill = sum(row["sampling/tokens"] + row.get("tokens/persona", 0) for row in whole)
    assert whole[-1]["tokens/total"] == bill
    again = small_run_config(tmp_path / "resumed", **PRACTICE, persona=persona, **{"train.steps": 5})
    with opened_run(again) as run:
        load_start(run)
        trainer = trainer_of(run)
        for _ in range(3):
            trainer.step()
        trainer.save()
        trainer._writer.wait()
    with opened_run(again, start="resume") as run:
        load_start(run)
        trainer = trainer_of(run)
        take_up(trainer, run.folder.checkpoints / "step_000003")
        trainer.run()
        assert rows_of(run.folder.path) == whole


# --- whole runs -------------------------------------------------------------------------------------------------------


def watch_fields(folder: Path, **changes: Any) -> dict[str, Any]:
    watch = {"vectors": str(vectors_file(folder)), "measure": True, "trait": str(trait_file(folder))}
    return {"persona": {"watch": [watch], **changes}}


def rows_of(run: Path) -> list[dict[str, Any]]:
    rows = read_jsonl(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith(OF_THE_CLOCK)} for row in rows]


def trained_in(folder: Path, **changes: Any) -> tuple[list[dict[str, Any]], Mapping[str, Tensor]]:
    """Metrics and last weights of a run."""
    config = small_run_config(folder, **PRACTICE, **changes)
    with opened_run(config) as run:
        load_start(run)
        trainer_of(run).run()
        return rows_of(run.folder.path), run.strategy.weights()


def test_watching_changes_nothing_of_the_training(tmp_path):
    plain, weights = trained_in(tmp_path / "plain")
    watched, same = trained_in(tmp_path / "watched", **watch_fields(tmp_path))
    assert any("persona/ones/drift" in row for row in watched)
    assert [{n: v for n, v in row.items() if not n.startswith("persona/")} for row in watched] == plain
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_a_killed_run_that_is_resumed_logs_what_one_that_was_not_killed_does(tmp_path):
    changes = {**PRACTICE, **watch_fields(tmp_path, drift_alarm=1.0)}
    whole, _ = trained_in(tmp_path / "whole", **watch_fields(tmp_path, drift_alarm=1.0))
    config = small_run_config(tmp_path / "killed", **changes)
    with opened_run(config) as run:
        load_start(run)
        trainer = trainer_of(run)
        for _ in range(4):
            trainer.step()
        trainer.save()
        trainer._writer.wait()
        trainer.step()  # whose numbers the resume takes back
    with opened_run(config, start="resume") as run:
        load_start(run)
        trainer = trainer_of(run)
        take_up(trainer, run.folder.checkpoints / "step_000004")
        trainer.run()
        assert rows_of(run.folder.path) == whole
    assert sum("persona/ones/drift" in row for row in whole) >= 4


def test_a_resume_refuses_other_vectors_under_the_same_name(tmp_path):
    config = small_run_config(tmp_path, **PRACTICE, **watch_fields(tmp_path))
    with opened_run(config) as run:
        run.folder.mark("train", finished=False)
    vectors_file(tmp_path, seed=5)
    with (
        pytest.raises(RunFolderError, match=r"differs in persona\.watch\.0\.vectors"),
        opened_run(config, start="resume"),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_two_ranks_log_what_one_does(tmp_path, strategy):
    fields = {**PRACTICE, **watch_fields(tmp_path), "train.steps": 3, "curriculum": {"kind": "uniform"}}
    launched("scripts/train.py", small_run_file(tmp_path / "one", **fields), ranks=1)
    two = small_run_file(tmp_path / "two", **fields, **{"distributed.strategy": strategy})
    launched("scripts/train.py", two, ranks=2)
    alone, together = (rows_of(tmp_path / name / "runs" / "small") for name in ("one", "two"))
    assert len(alone) == 3
    for row, other in zip(alone, together, strict=True):
        names = [name for name in row if name.startswith("persona/")]
        assert len(names) >= 4
        assert names == [name for name in other if name.startswith("persona/")]
        for name in names:
            assert other[name] == pytest.approx(row[name], rel=1e-3, abs=1e-3), (row["step"], name)
