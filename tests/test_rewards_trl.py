"""Rewards in TRL's form and TRL's functions as verifiers, in a real GRPOTrainer too."""

import json
import warnings
from collections import defaultdict

import pytest

from grpo.tasks.list_machine import rows as list_machine_rows
from rewards import Pool, Reward, RewardSpec, as_trl, from_trl
from tests.conftest import tiny_config, tiny_policy

MATHS = RewardSpec("math_answer", options={"extract": ["boxed"]})


def test_values_come_in_order_and_a_lost_verdict_is_none():
    with Pool(workers=1) as pool, pytest.warns(UserWarning, match=r"math_answer: error: the gold answer cannot"):
        values = as_trl(MATHS, pool=pool)(
            prompts=["1+1?"] * 3, completions=[r"\boxed{2}", r"\boxed{3}", r"\boxed{2}"], answer=["2", "2", ""]
        )
    assert values == [1.0, 0.0, None]


def test_the_same_cause_of_a_loss_is_a_warning_once():
    function = as_trl(lambda completion, problem: Reward.error("no power"))
    with pytest.warns(UserWarning, match="no power"):
        function(prompts=["a"], completions=["b"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function(prompts=["a"], completions=["b"]) == [None]


def test_messages_are_judged_by_the_last_text_of_the_policy():
    seen = []

    def look(completion, problem):
        seen.append((completion, dict(problem)))
        return 1.0

    prompt = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1?"}]
    turns = [
        {"role": "assistant", "content": "a tool?"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": [{"type": "text", "text": "it is "}, {"type": "text", "text": "2"}]},
    ]
    as_trl(look)(
        prompts=[prompt], completions=[turns], completion_ids=[[5, 6, 7]], answer=["2"], trainer_state=object()
    )
    assert seen == [("it is 2", {"answer": "2", "prompt": "1+1?", "messages": prompt, "num_tokens": 3})]


@pytest.mark.parametrize(("wanted", "value"), [([{"play": {"artist": ["M5"]}}], 1.0), ([], 0.0)])
def test_calls_that_trl_has_parsed_off_the_text_are_judged(wanted, value):
    call = {"type": "function", "function": {"name": "play", "arguments": {"artist": "M5"}}}
    turns = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    parameters = {"type": "dict", "properties": {"artist": {"type": "string"}}, "required": ["artist"]}
    functions = [{"name": "play", "description": "", "parameters": parameters}]
    with Pool(workers=0) as pool:
        function = as_trl("tool_call", pool=pool)
        values = function(
            prompts=[[{"role": "user", "content": "M5!"}]],
            completions=[turns],
            functions=[functions],
            possible_answers=[wanted],
        )
    assert values == [value]


def test_parts_and_losses_are_logged_under_the_reward_s_name():
    logged = {}

    def judge(completion, problem):
        return Reward.scored(1.0, parts={"boxed": float(completion)}) if completion else None

    with pytest.warns(UserWarning, match="returned None"):
        as_trl(judge)(prompts=["q"] * 4, completions=["1", "0", "0", ""], log_metric=logged.__setitem__)
    assert logged == {"judge/errors": 0.25, "judge/boxed": pytest.approx(1 / 3)}


def test_a_reward_that_cannot_be_built_is_refused_before_training():
    with pytest.raises(ValueError, match="did you mean 'math_answer'"):
        as_trl("math_anser")


def test_a_pool_that_would_kill_a_reward_before_its_own_limit_is_refused():
    spec = RewardSpec("code_tests", options={"timeout_seconds": 8.0})
    with Pool(workers=1, timeout_seconds=5.0) as pool, pytest.raises(ValueError, match=r"may take 9\.5 s by its own"):
        as_trl(spec, pool=pool)


def test_trl_s_own_overlong_punishment_is_a_verifier_here():
    from trl.rewards import get_soft_overlong_punishment

    verifier = from_trl(get_soft_overlong_punishment(10, 5), conversational=True)
    assert [verifier("", {"num_tokens": number}).value for number in (5, 7, 11)] == [0.0, pytest.approx(-0.4), -1.0]


def test_a_function_of_trl_sees_one_row_as_columns():
    def shaped(prompts, completions, solution, **columns):
        return [
            float(completion[0]["content"] == wanted) for completion, wanted in zip(completions, solution, strict=True)
        ]

    verifier = from_trl(shaped, conversational=True)
    assert verifier("4", {"prompt": "2+2?", "solution": "4"}).value == 1.0
    assert verifier("5", {"prompt": "2+2?", "solution": "4"}).value == 0.0
    assert "solution" in verifier("5", {"prompt": "2+2?"}).detail


def test_an_async_function_of_trl_is_awaited_and_none_is_no_verdict():
    async def later(prompts, completions, **columns):
        return [None if completion == "" else float(len(completion)) for completion in completions]

    verifier = from_trl(later, conversational=False)
    assert verifier("abc", {}).value == 3.0
    assert verifier("", {}).status == "abstained"


def test_trl_s_own_accuracy_reward_is_a_verifier_here():
    from trl.rewards import accuracy_reward

    verifier = from_trl(accuracy_reward, conversational=True)
    assert verifier(r"\boxed{\frac{1}{2}}", {"prompt": "?", "solution": r"$\frac{1}{2}$"}).value == 1.0
    assert verifier(r"\boxed{3}", {"prompt": "?", "solution": r"$\frac{1}{2}$"}).value == 0.0


def test_a_reward_goes_to_trl_and_back_unchanged():
    there = as_trl(lambda completion, problem: float(completion == problem["answer"]))
    back = from_trl(there, conversational=False)
    assert [back(text, {"answer": "yes"}).value for text in ("yes", "no")] == [1.0, 0.0]


@pytest.mark.slow
def test_trl_s_grpo_trainer_trains_on_a_reward_of_this_package(tmp_path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from grpo.model import load_tokenizer

    rows = [{"prompt": row["prompt"]} for row in list_machine_rows({"num_rows": 8, "operations": {1: 1}}, 0)]
    rows[0]["prompt"] = "not a program"  # an error for the list machine: no verdict, and no zero
    seen = defaultdict(list)

    def remember(prompts, completions, **columns):
        values = reward(prompts=prompts, completions=completions, **columns)
        for prompt, value in zip(prompts, values, strict=True):
            seen[prompt].append(value)
        return values

    with Pool(workers=1) as pool:
        reward = as_trl("list_machine", pool=pool)
        remember.__name__ = reward.__name__
        trainer = GRPOTrainer(
            model=tiny_policy("llama").model,
            processing_class=load_tokenizer(tiny_config("llama")),
            reward_funcs=[remember, as_trl(lambda completion, problem: float("l" in completion))],
            train_dataset=Dataset.from_list(rows),
            args=GRPOConfig(
                output_dir=str(tmp_path),
                per_device_train_batch_size=8,
                num_generations=4,
                max_completion_length=8,
                max_steps=4,
                logging_steps=1,
                report_to=[],
                save_strategy="no",
                use_cpu=True,
                bf16=False,
            ),
        )
        with pytest.warns(UserWarning, match="list_machine: error"):
            trainer.train()
    logged = [entry for entry in trainer.state.log_history if "rewards/list_machine/mean" in entry]
    assert len(logged) == 4
    assert seen.pop("not a program") == [None] * 4
    assert all(value in (0.0, 1.0) for values in seen.values() for value in values)
    assert max(entry["list_machine/errors"] for entry in logged) == 0.5
    assert {"list_machine/correct", "list_machine/finished"} <= set(json.loads(json.dumps(logged[-1])))
