"""Traits written by a model, those that are shipped, and what the commands refuse."""

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.persona.asking import judge_of, questions_of
from grpo.persona.traits import SHIPPED, load_trait
from grpo.persona_commands.draft import text_of_trait, trait_of_answer
from tests.judge_server import fails, serving, writes
from tests.runs import grpo, small_run_config, small_run_file

JUDGED = sorted(path.name.removesuffix(".yaml") for path in SHIPPED.iterdir() if path.name != "upper_case.yaml")
ANSWER: dict[str, Any] = {
    "instructions": [{"positive": f"be dreamy {n}", "negative": f"be dry {n}"} for n in range(5)],
    "extract": [f"what of {n}?" for n in range(20)],
    "evaluate": [f"and {n}?" for n in range(20)],
    "signs": "It drifts off {like this}.",
}


def draft(server: Any, output: Path, *more: str, name: str = "dreaminess") -> int:
    options = {"base_url": server.base_url, "model": "writer", "retry_wait_seconds": 0.01, "max_retries": 1}
    return grpo(
        *("persona", "draft", name, "Drifts off.", "--output", str(output), "--judge", json.dumps(options), *more)
    )


def test_a_draft_is_a_trait_that_can_be_loaded_and_scored(tmp_path, capsys):
    output = tmp_path / "dreaminess.yaml"
    with serving(writes("Here it is:\n```json\n" + json.dumps(ANSWER) + "\n```")) as server:
        assert draft(server, output) == 0
        (request,) = server.requests
    assert "Trait: dreaminess" in request.body["messages"][0]["content"]
    assert request.body["max_tokens"] == 8000
    trait = load_trait(str(output))
    assert (len(trait.instructions), len(trait.questions.extract), len(trait.questions.evaluate)) == (5, 20, 20)
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    changes = {"persona": {"judge": endpoint}, "reward.timeout_seconds": 180.0}
    judge = judge_of(trait, small_run_config(tmp_path, **changes))
    assert "It drifts off (like this)." in judge.options["rewards"]["trait"]["options"]["rubric"]
    assert judge.options["rewards"]["coherence"]["options"]["base_url"] == endpoint["base_url"]
    assert "read it, and mend it" in capsys.readouterr().out


def test_a_model_is_told_what_was_wrong_and_asked_again(tmp_path, capsys):
    short = ANSWER | {"extract": ["one?"]}
    twice = ANSWER | {"evaluate": ["what of 3?", *ANSWER["evaluate"][1:]]}
    output = tmp_path / "dreaminess.yaml"
    with serving(writes(json.dumps(short)), writes(json.dumps(twice)), writes(json.dumps(ANSWER))) as server:
        assert draft(server, output) == 0
        prompts = [request.body["messages"][0]["content"] for request in server.requests]
    assert "extract has not 20 entries (1)" in prompts[1]
    assert "what a vector is judged by must be new" in prompts[2]
    assert output.is_file()


def test_three_answers_that_are_no_trait_are_an_error_and_no_file(tmp_path, capsys):
    output = tmp_path / "dreaminess.yaml"
    with serving(writes("I would rather not.")) as server:
        assert draft(server, output) == 3
        assert len(server.requests) == 3
    assert "3 answers of writer were no trait; the last one: it is not one JSON object" in capsys.readouterr().err
    assert not output.exists()


def test_an_endpoint_that_fails_is_an_error_with_its_words(tmp_path, capsys):
    with serving(fails(401)) as server:
        assert draft(server, tmp_path / "d.yaml") == 6
    assert "draft: writer at http://127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("Big Dreams", "x", "--output", "d.yaml"), "NAME = 'Big Dreams'"),
        (("dreams", "x", "--output", "d.json"), "must end with .yaml"),
        (("dreams", "x", "--output", "d.yaml"), "base_url"),
        (("dreams", "x", "--output", "d.yaml", "--judge", "[]"), "--judge = '[]': must be a JSON object"),
    ],
)
def test_what_cannot_be_drafted_is_refused_before_anything_is_sent(tmp_path, monkeypatch, capsys, more, said):
    monkeypatch.chdir(tmp_path)
    assert grpo("persona", "draft", *more) == 2
    assert said in capsys.readouterr().err


def test_a_file_that_is_there_is_not_drafted_over(tmp_path, capsys):
    output = tmp_path / "d.yaml"
    output.write_text("mine", encoding="utf-8")
    with serving(writes(json.dumps(ANSWER))) as server:
        assert draft(server, output) == 2
    assert output.read_text() == "mine"


def test_the_endpoint_of_a_config_is_asked(tmp_path):
    with serving(writes(json.dumps(ANSWER))) as server:
        config = small_run_file(tmp_path, persona={"judge": {"base_url": server.base_url, "model": "of the config"}})
        arguments = ("persona", "draft", "dreams", "x", "--output", str(tmp_path / "d.yaml"), "--config", str(config))
        assert grpo(*arguments) == 0
        assert server.requests[0].body["model"] == "of the config"


def test_there_are_six_judged_traits():
    assert JUDGED == ["evil", "hallucination", "humour", "impoliteness", "optimism", "sycophancy"]


@pytest.mark.parametrize("name", JUDGED)
def test_a_shipped_trait_has_five_pairs_and_forty_questions_and_a_rubric_that_can_be_asked(tmp_path, name):
    trait = load_trait(name)
    assert trait.name == name
    assert len({(pair.positive, pair.negative) for pair in trait.instructions}) == 5
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    config = small_run_config(tmp_path, **{"persona": {"judge": endpoint}, "reward.timeout_seconds": 180.0})
    questions = questions_of(trait, config)
    assert (len(questions.extract), len(questions.evaluate)) == (20, 20)
    assert trait.coherence is not None


def test_a_judge_that_may_take_longer_than_the_pool_allows_is_refused_with_the_field(tmp_path):
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    config = small_run_config(tmp_path, **{"persona": {"judge": endpoint}, "reward.workers": 2})
    with pytest.raises(ValueError, match=r"reward.timeout_seconds = 5: .* set it above 1"):
        judge_of(load_trait("humour"), config)


def test_a_trait_written_out_is_read_back_the_same(tmp_path):
    trait, fault = trait_of_answer(json.dumps(ANSWER), name="dreams", description="Drifts: off.")
    assert fault == ""
    assert trait is not None
    path = tmp_path / "t.yaml"
    path.write_text(text_of_trait(trait), encoding="utf-8")
    assert load_trait(str(path)) == trait
