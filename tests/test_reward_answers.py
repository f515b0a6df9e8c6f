"""The answer that a verifier read: equal answers are equal texts, and it travels with the verdict."""

from __future__ import annotations

import pickle

import pytest

from rewards import Pool, Reward, RewardSpec, build

CHOICES = {"choices": ["Rome", "Paris", "Oslo"], "answer": "B"}


def math_answer(completion: str) -> str | None:
    return build("math_answer", {})(completion, {"answer": "1200"}).answer


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\boxed{1200}", r"\boxed{1,200}"),
        (r"\boxed{1200}", "#### 1200"),
        (r"\boxed{\$1200.00}", r"\boxed{1200 apples}"),
        (r"\boxed{0.5}", r"\boxed{\frac{1}{2}}"),
        (r"\boxed{x = 5}", r"\boxed{5}"),
        (r"\boxed{\text{Tuesday}}", r"\boxed{tuesday}"),
        (r"\boxed{\dfrac{x}{2}}", r"\boxed{\frac{x}{2}}"),
    ],
)
def test_equal_answers_in_mathematics_are_equal_texts(one, other):
    assert math_answer(one) == math_answer(other) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\boxed{1200}", r"\boxed{1201}"),
        (r"\boxed{-5}", r"\boxed{5}"),
        (r"\boxed{50\%}", r"\boxed{50}"),
        (r"\boxed{3} or \boxed{4}", r"\boxed{3}"),
        (r"\boxed{x+1}", r"\boxed{x+2}"),
    ],
)
def test_different_answers_in_mathematics_are_different_texts(one, other):
    assert math_answer(one) != math_answer(other)


@pytest.mark.parametrize("completion", ["", r"\boxed{", r"\boxed{}"])
def test_a_completion_without_an_answer_has_none(completion):
    assert math_answer(completion) is None


def test_a_choice_is_its_label_however_it_is_named_and_several_are_no_answer():
    verifier = build("multiple_choice", {})
    assert verifier("The answer is B.", CHOICES).answer == verifier("Answer: Paris", CHOICES).answer == "B"
    assert verifier("The answer is C.", CHOICES).answer == "C"
    assert verifier("The answer is B or C.", CHOICES).answer is None


def test_the_list_machine_answers_with_its_last_list_finished_or_not():
    verifier = build("list_machine", {})
    problem = {"prompt": ">lr?>13431"}
    assert (
        verifier("l34311r11343", problem).answer == verifier("11343", problem | {"finished": False}).answer == "11343"
    )
    assert verifier("l343", problem).answer is None


def test_a_composed_reward_hands_on_the_answer_of_the_first_component_that_read_one():
    options = {"rewards": {"form": {"name": "format"}, "right": {"name": "math_answer"}}, "gate": {"right": 1.0}}
    reward = build("compose", options)(r"\boxed{7}", {"answer": "7"})
    assert reward.answer == "7"
    only_form = build("compose", {"rewards": {"form": {"name": "format"}}})
    assert only_form(r"\boxed{7}", {"answer": "7"}).answer is None


@pytest.mark.parametrize("workers", [0, 1])
def test_the_answer_comes_back_from_a_worker(workers):
    with Pool(workers, memory_limit_mb=4096) as pool:
        reward = pool.submit(RewardSpec("math_answer"), r"\boxed{1,200}", {"answer": "1200"}).result()
    assert (reward.value, reward.answer) == (1.0, "1200")


def test_the_answer_survives_pickling_and_is_a_text_or_none():
    reward = Reward.scored(1.0, answer="7")
    assert pickle.loads(pickle.dumps(reward)) == reward
    assert Reward.scored(1.0).answer is None
    with pytest.raises(ValueError, match=r"Reward\.answer = 7: must be a text"):
        Reward.scored(1.0, answer=7)
