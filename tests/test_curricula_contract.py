"""What every curriculum owes the trainer, over all members of the family."""

import json
import textwrap
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import curricula
from curricula.curriculum import Uniform
from curricula.mixture import Mixture
from curricula.online import Online
from curricula.plateau import PlateauRule
from curricula.stages import StageRule, TwoStages
from curricula.tiers import MoveRule
from curricula.types import TIERS, Outcome, Tier
from curricula.weighted import Weighted

IDS = [f"p{index:03d}" for index in range(60)]
TIER_OF = {problem_id: TIERS[index % 4] for index, problem_id in enumerate(IDS)}
STAGES = [
    StageRule("one", (Tier.moderate,), steps=9, plateau=PlateauRule(window_steps=6), trivial_fraction=0.8),
    StageRule("two", (Tier.extreme,), mix_tiers=(Tier.moderate,), mix_fraction=0.3, steps=30),
]

MEMBERS = {
    "uniform": lambda seed: Uniform(IDS, seed=seed),
    "two_stages": lambda seed: TwoStages(TIER_OF, stages=STAGES, seed=seed),
    "two_stages_following": lambda seed: TwoStages(
        TIER_OF, stages=[StageRule("one", (Tier.extreme,), follow_moves=True)], seed=seed
    ),
    "weighted": lambda seed: Weighted(IDS, seed=seed),
    "mixture": lambda seed: Mixture(TIER_OF, shares={Tier.moderate: 3, Tier.extreme: 1}, seed=seed),
    "online": lambda seed: Online(IDS, seed=seed),
    "online_two_groups": lambda seed: Online(
        IDS, seed=seed, moves=MoveRule(min_observations=2, check_every_epochs=None), max_wait_epochs=1
    ),
}
LABELLED = {"two_stages", "two_stages_following", "mixture"}
members = pytest.mark.parametrize("build", MEMBERS.values(), ids=MEMBERS.keys())


def practise(curriculum, *, steps, first_step=0, rate=0.5, waves=2, problems=8):
    """Play steps with refills; outcomes are a function of (step, problem). Returns what was practised."""
    history = []
    for step in range(first_step, first_step + steps):
        for wave in range(waves):
            chosen = curriculum.next(problems if wave == 0 else 3)
            history.append(chosen)
            generator = np.random.Generator(np.random.PCG64([step, wave]))
            curriculum.observe([Outcome(name, 8, int(generator.binomial(8, rate))) for name in chosen])
        curriculum.end_step()
    return history


def through_json(state):
    return json.loads(json.dumps(state, allow_nan=False))


@members
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), cut=st.integers(0, 25), rate=st.sampled_from([0.1, 0.6, 0.97]))
def test_a_state_through_json_goes_on_exactly_as_if_nothing_had_happened(build, seed, cut, rate):
    whole = build(seed)
    expected = practise(whole, steps=30, rate=rate)
    first, second = build(seed), build(seed)
    history = practise(first, steps=cut, rate=rate)
    second.load_state_dict(through_json(first.state_dict()))
    assert second.metrics() == first.metrics()
    history += practise(second, steps=30 - cut, first_step=cut, rate=rate)
    assert history == expected
    assert second.metrics() == whole.metrics()
    assert through_json(second.state_dict()) == through_json(whole.state_dict())
    assert (second.stage, second.stage_name, second.finished) == (whole.stage, whole.stage_name, whole.finished)


@members
@settings(max_examples=15, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32), before=st.integers(0, 20), elsewhere=st.integers(0, 20))
def test_a_state_saved_within_a_step_is_that_of_its_beginning(build, data, seed, before, elsewhere):
    curriculum, other = build(seed), build(seed)
    practise(curriculum, steps=before, rate=0.6)
    practise(other, steps=elsewhere, rate=0.3)
    boundary, metrics = through_json(curriculum.state_dict()), curriculum.metrics()
    requests = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    given = []
    for request in requests:
        given.append(curriculum.next(request))
        curriculum.observe([Outcome(name, 8, data.draw(st.integers(0, 8))) for name in given[-1]])
        assert through_json(curriculum.state_dict()) == boundary
        assert curriculum.metrics() == metrics
    other.next(3)
    other.load_state_dict(through_json(curriculum.state_dict()))
    assert [other.next(request) for request in requests] == given


@members
def test_what_is_told_within_a_step_does_not_change_what_the_step_is_given(build):
    told, untold = build(1), build(1)
    practise(told, steps=5)
    practise(untold, steps=5)
    first = told.next(8)
    assert first == untold.next(8)
    told.observe([Outcome(name, 8, 8 * (index % 2)) for index, name in enumerate(first * 3)])
    assert told.next(8) == untold.next(8)


@members
def test_a_group_without_a_value_says_nothing_of_a_pass_rate(build):
    told, untold = build(1), build(1)
    for curriculum in (told, untold):
        practise(curriculum, steps=5)
        chosen = curriculum.next(8)
        curriculum.observe([Outcome(name, 0, 0) for name in chosen] if curriculum is told else [])
        curriculum.end_step()
    state, expected = told.state_dict(), untold.state_dict()
    if state["kind"] == "online":  # where it is a look that found nothing, and the problem rests
        state, expected = state["rates"], expected["rates"]
    assert state == expected


@pytest.mark.parametrize("name", MEMBERS)
def test_labels_of_a_second_profile_survive_a_state_and_are_refused_where_there_are_none(name):
    first, second = MEMBERS[name](2), MEMBERS[name](2)
    practise(first, steps=5)
    labels = {problem_id: TIERS[index % 3] for index, problem_id in enumerate(IDS[5:40])}
    if name not in LABELLED:
        with pytest.raises(ValueError, match="has no labels"):
            first.relabel(labels)
        return
    first.relabel(labels)
    second.load_state_dict(through_json(first.state_dict()))
    assert practise(first, steps=20, first_step=5) == practise(second, steps=20, first_step=5)
    assert through_json(first.state_dict()) == through_json(second.state_dict())
    first.next(1)
    with pytest.raises(ValueError, match=r"middle of a step, which was given 1 problems.*call end_step first"):
        first.relabel(labels)
    second.observe([Outcome(IDS[0], 8, 1)])
    with pytest.raises(ValueError, match=r"told 1 outcomes"):
        second.relabel(labels)
    first.end_step()
    before = first.state_dict()
    with pytest.raises(ValueError, match="label of 'nobody', which is not in this curriculum's pool"):
        first.relabel({IDS[0]: Tier.extreme, "nobody": Tier.moderate})
    assert first.state_dict() == before


@members
def test_a_step_holds_no_problem_twice_while_others_are_left(build):
    curriculum = build(0)
    for _ in range(40):
        step = curriculum.next(6) + curriculum.next(4) + curriculum.next(3)
        assert len(set(step)) == 13
        curriculum.end_step()
        assert curriculum.metrics()["curriculum/repeated_problems"] == 0


@members
def test_the_seed_alone_decides_the_order(build):
    assert practise(build(5), steps=6) == practise(build(5), steps=6)
    assert practise(build(5), steps=6) != practise(build(6), steps=6)


@members
def test_metrics_are_finite_numbers_under_their_names(build):
    curriculum = build(0)
    practise(curriculum, steps=12)
    metrics = curriculum.metrics()
    assert {"curriculum/stage", "curriculum/epoch", "curriculum/repeated_problems"} <= metrics.keys()
    assert all(name.startswith("curriculum/") and np.isfinite(value) for name, value in metrics.items())


@members
def test_a_switch_or_an_end_has_a_reason_and_nothing_else_has(build):
    curriculum = build(0)
    assert curriculum.switch_reason == ""
    for step in range(45):
        practise(curriculum, steps=1, first_step=step)
        assert bool(curriculum.switch_reason) == (curriculum.stage > 0 or curriculum.finished)


@members
def test_a_state_of_another_kind_or_pool_is_refused(build):
    state = build(0).state_dict()
    other = Uniform(["a", "b"], seed=0)
    if state["kind"] == "uniform":
        with pytest.raises(ValueError, match="another pool"):
            other.load_state_dict(state)
    else:
        with pytest.raises(ValueError, match="configure it so"):
            other.load_state_dict(state)


@members
def test_impossible_requests_are_refused(build):
    with pytest.raises(ValueError, match="at least one problem"):
        build(0).next(0)
    with pytest.raises(ValueError, match="not in this curriculum"):
        build(0).observe([Outcome("nobody", 8, 1)])
    with pytest.raises(ValueError, match="seed"):
        build(-1)


@settings(max_examples=40, deadline=None)
@given(num_problems=st.integers(1, 30), requests=st.lists(st.integers(1, 12), max_size=30), seed=st.integers(0, 2**63))
def test_uniform_goes_through_the_pool_before_it_repeats(num_problems, requests, seed):
    curriculum = Uniform([str(index) for index in range(num_problems)], seed=seed)
    seen = Counter()
    for request in requests:
        step = curriculum.next(request)
        curriculum.end_step()
        seen.update(step)
        assert len(step) == request
        assert len(set(step)) == min(request, num_problems)
    counts = [seen[str(index)] for index in range(num_problems)]
    # One epoch apart at most, and one more where a problem was put off because its step had it already.
    assert max(counts) - min(counts) <= 2
    total = sum(counts)
    assert curriculum.metrics()["curriculum/epoch"] in {
        total // num_problems,
        total // num_problems - 1,
        total // num_problems + 1,
    }


def test_uniform_epochs_differ_in_order_and_agree_in_members():
    curriculum = Uniform(IDS, seed=1)
    first, second = ([curriculum.next(20) for _ in range(3)] for _ in range(2))
    epochs = []
    for epoch in (first, second):
        curriculum.end_step()
        epochs.append([name for step in epoch for name in step])
    assert sorted(epochs[0]) == sorted(epochs[1]) == IDS
    assert epochs[0] != epochs[1]


def test_the_order_of_the_ids_handed_over_does_not_matter():
    assert Uniform(IDS, seed=2).next(10) == Uniform(reversed(IDS), seed=2).next(10)


def test_repeated_and_missing_ids_are_refused():
    with pytest.raises(ValueError, match="'a' is in the pool twice"):
        Uniform(["a", "b", "a"], seed=0)
    with pytest.raises(ValueError, match="at least one problem"):
        Uniform([], seed=0)
    with pytest.raises(ValueError, match="num_correct"):
        Outcome("a", 4, 5)


def test_the_example_in_the_package_docstring_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = textwrap.dedent(curricula.__doc__.split("yours:\n")[1])
    assert len([line for line in example.splitlines() if line.strip()]) <= 16
    solvable = {"easy": 1, "fair": 2, "hard": 50}
    names = {
        "problem_ids": list(solvable),
        "solve": lambda problem_id, attempt: attempt % solvable[problem_id] == solvable[problem_id] - 1,
    }
    exec(example, names)
    assert names["tiers"] == {"easy": Tier.trivial, "fair": Tier.moderate, "hard": Tier.extreme}
    assert names["curriculum"].stage_name == "moderate"


@members
def test_a_tier_is_one_of_the_four_or_none_and_a_group_is_no_larger_than_the_stages(build):
    curriculum = build(0)
    practise(curriculum, steps=5)
    for name in IDS:
        assert curriculum.tier_of(name) in {None, *TIERS}
        assert 2 <= curriculum.group_size(name, of_stage=16) <= 16
