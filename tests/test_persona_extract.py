"""Extraction: what is averaged, which pairs are kept, how it goes on, and that a planted trait is found."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from grpo.config import RunConfig
from grpo.errors import ConfigError, DataError, Interrupted
from grpo.persona.asking import judge_of, under
from grpo.persona.contrast import INCOHERENT, NO_VERDICT, NOT_HELD_BACK, NOT_SHOWN, Scored, Unit, halves, kept_pairs
from grpo.persona.kept import KeptCompletions
from grpo.persona.means import Spread, Sums, Text, averages, separation, with_random
from grpo.persona.traits import Trait, load_trait
from grpo.persona.vectors import OVERS, load, save
from grpo.persona_commands.extract import extract
from grpo.starts import Run
from grpo.steering import Steering
from grpo.types import Message, Problem
from rewards import RewardSpec
from tests.launch import launched
from tests.runs import grpo, opened_run, read_jsonl, small_run_config, small_run_file

SCORER = str(Path(__file__).with_name("persona_scorer.py"))
FIELDS: dict[str, Any] = {
    "name": "planted",
    "description": "Is asked with a plus.",
    "instructions": [{"positive": "+", "negative": "-"}],
    "questions": {
        "extract": {"path": "task:list_machine", "options": {"num_rows": 6, "operations": {1: 1}}},
        "evaluate": {"path": "task:list_machine", "options": {"num_rows": 3, "operations": {2: 1}}},
    },
    "scorer": {"file": SCORER, "function": "by_tag"},
}
TRAIT = Trait.model_validate(FIELDS)
PERSONA = {"rollouts_per_question": 2, "min_pairs": 2}


def config_of(folder: Path, **changes: Any) -> RunConfig:
    return small_run_config(folder, **{"sft": None, "persona": PERSONA, "curriculum": {"kind": "uniform"}, **changes})


@contextmanager
def run_of(folder: Path, **changes: Any) -> Iterator[Run]:
    with opened_run(config_of(folder, **changes)) as run:
        yield run


# --- averages and sums ------------------------------------------------------------------------------------------------


def test_means_are_those_of_a_computation_by_hand(tmp_path):
    texts = [Text((5, 6, 7, 8, 9), num_prompt=2), Text((4, 3, 2), num_prompt=2)]
    with run_of(tmp_path) as run:
        policy = run.policy
        states = [policy.model(torch.tensor([t.token_ids]), output_hidden_states=True).hidden_states for t in texts]
        # hidden_states[1] is what the first of two blocks gives out; the last entry is after the final norm.
        first, second = (of_text[1][0].detach() for of_text in states)  # [5, D], [3, D]
        found = list(averages(policy, texts, budget_tokens=1000))
        ((places, of_parts),) = found
        sums = Sums(2, policy.hidden_size)
        sums.add(of_parts)
    assert places == [0, 1]
    torch.testing.assert_close(of_parts["response"][:, 0], torch.stack([first[2:].mean(0), second[2]]))
    torch.testing.assert_close(of_parts["prompt"][:, 0], torch.stack([first[:2].mean(0), second[:2].mean(0)]))
    torch.testing.assert_close(of_parts["last_prompt"][:, 0], torch.stack([first[1], second[1]]))
    torch.testing.assert_close(sums.mean("response")[0].float(), (first[2:].mean(0) + second[2]) / 2)


def test_averages_do_not_depend_on_how_texts_are_put_into_batches(tmp_path):
    texts = [Text(tuple(range(3, 3 + length)), num_prompt=2) for length in (4, 9, 5, 7)]
    with run_of(tmp_path) as run:
        found: dict[int, list[torch.Tensor]] = {}
        for budget in (1, 18, 1000):
            for places, of_parts in averages(run.policy, texts, budget_tokens=budget):
                for place, of_text in zip(places, of_parts["response"], strict=True):
                    found.setdefault(place, []).append(of_text)
    assert {place: len(of_budgets) for place, of_budgets in found.items()} == dict.fromkeys(range(4), 3)
    for alone, some, all_of_them in found.values():
        torch.testing.assert_close(alone, some)
        torch.testing.assert_close(alone, all_of_them)


def test_separation_is_the_difference_of_means_over_the_spread():
    directions = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # [L=1, 1 + R=2, D=2]
    positive, negative = Spread(directions), Spread(directions)
    positive.add({"response": torch.tensor([[[4.0, 1.0]], [[6.0, 3.0]]])})  # along the first: mean 5, variance 1
    negative.add({"response": torch.tensor([[[1.0, 2.0]], [[3.0, 2.0]]])})  # mean 2, variance 1
    found = separation(positive, negative)
    assert found.own.tolist() == [3.0]
    assert found.random.tolist() == [0.0]  # both means are 2


def test_random_directions_are_unit_vectors_and_repeat_by_seed():
    vectors = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    found = with_random(vectors, seed=1)
    assert found.shape == (2, 9, 3)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, 9))
    torch.testing.assert_close(found[0, 0], torch.tensor([0.6, 0.8, 0.0]))
    assert torch.equal(found, with_random(vectors, seed=1))
    assert not torch.equal(found[0, 1], found[1, 1])


# --- the filter -------------------------------------------------------------------------------------------------------


def scored(*, shows: bool, trait: float | None, coherence: float = 1.0, attempt: int = 0) -> Scored:
    return Scored(
        question="q",
        instructions=0,
        shows=shows,
        attempt=attempt,
        token_ids=(1, 2),
        num_prompt=1,
        trait=trait,
        coherence=coherence,
        asked="?",
        completion="!",
        detail="",
    )


def test_a_pair_is_kept_where_the_trait_shows_and_is_held_back_and_both_are_coherent():
    verdicts = [  # of each attempt: under the positive instruction, under the negative one
        ((0.5, 1.0), (0.49, 0.5)),  # kept: both at the edge
        ((0.49, 1.0), (0.0, 1.0)),
        ((1.0, 1.0), (0.5, 1.0)),
        ((1.0, 0.4), (0.0, 1.0)),
        ((1.0, 1.0), (0.0, 0.4)),
        ((None, 1.0), (0.0, 1.0)),
    ]
    completions = [
        scored(shows=shows, trait=trait, coherence=coherence, attempt=attempt)
        for attempt, sides in enumerate(verdicts)
        for shows, (trait, coherence) in zip((True, False), sides, strict=True)
    ]
    kept = kept_pairs(completions, threshold=0.5, coherence_threshold=0.5)
    assert [(pair.positive.attempt, pair.negative.attempt) for pair in kept.pairs] == [(0, 0)]
    assert kept.dropped == {NOT_SHOWN: 1, NOT_HELD_BACK: 1, INCOHERENT: 2, NO_VERDICT: 1}


def test_halves_share_no_question_unless_there_is_but_one():
    units = [Unit(question, pair) for question in "abc" for pair in (0, 1)]
    first, second = halves(units)
    assert {unit.question for unit in first} == {"a", "c"}
    assert {unit.question for unit in second} == {"b"}
    assert halves(units[:2]) == ([Unit("a", 0)], [Unit("a", 1)])


# --- asking -----------------------------------------------------------------------------------------------------------


def test_an_instruction_takes_the_place_of_a_system_turn_or_stands_before_the_question():
    turns = (Message("system", "be kind"), Message("user", "why?"))
    problem = Problem(id="p", messages=turns, answer="", reward=RewardSpec("length"))
    as_system = under(problem, "be rude", name="t", role="system")
    assert as_system.messages == (Message("system", "be rude"), Message("user", "why?"))
    assert under(problem, "be rude", name="t", role="user").messages == (Message("user", "be rude\n\nwhy?"),)
    assert as_system.id == "t/p"


def test_a_judge_takes_its_endpoint_from_the_config_and_says_where_it_is_missing(tmp_path):
    fields = FIELDS | {"scorer": {"name": "judge", "options": {"rubric": "Rate {completion}"}}}
    trait = Trait.model_validate(fields)
    with pytest.raises(ConfigError, match=r"trait planted: .*(\n.*)*section persona: judge"):
        judge_of(trait, config_of(tmp_path))
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    config = config_of(tmp_path, **{"persona": {"judge": endpoint}, "reward.timeout_seconds": 90.0})
    assert judge_of(trait, config).options == endpoint | {"rubric": "Rate {completion}"}


def test_coherence_is_a_part_of_the_verdict_that_counts_nothing_in_it(tmp_path):
    trait = Trait.model_validate(FIELDS | {"coherence": {"file": SCORER, "function": "never"}})
    options = judge_of(trait, config_of(tmp_path)).options
    assert options["rewards"]["coherence"]["weight"] == 0
    assert set(options["rewards"]) == {"trait", "coherence"}


# --- the whole --------------------------------------------------------------------------------------------------------


@contextmanager
def planted(run: Run, direction: torch.Tensor) -> Iterator[None]:
    """Block 1 adds `direction` at every position of a row that begins with the tag +."""
    tag = run.chat.tokenizer.encode("+", add_special_tokens=False)[0]
    is_tagged: list[torch.Tensor] = []

    def look(module: torch.nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        is_tagged[:] = [(named["input_ids"][:, :1] == tag).float()]  # [B, 1]

    def add(module: torch.nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output + is_tagged[0].unsqueeze(-1) * direction

    model: Any = run.policy.model
    hooks = [
        model.base_model.register_forward_pre_hook(look, with_kwargs=True),
        run.policy.blocks[1].register_forward_hook(add),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def test_a_planted_trait_is_found_at_its_block(tmp_path):
    torch.manual_seed(0)
    with run_of(tmp_path) as run:
        direction = 20 * torch.randn(run.policy.hidden_size)
        with planted(run, direction):
            found = extract(run, TRAIT, checkpoint="start")
    for over in OVERS:
        cosines = torch.cosine_similarity(found.of[over], direction.expand(2, -1), dim=-1)
        assert cosines[1] > 0.98, over
        assert abs(cosines[0]) < 0.5, over
    torch.testing.assert_close(found.of["response"][1].norm(), direction.norm(), rtol=0.05, atol=0)
    origin = found.origin
    assert origin.separation[1] > 4 * origin.random_separation[1]  # 1 : sqrt(2 / pi / 32) is expected
    assert origin.agreement[1] > 0.98
    assert (origin.num_drawn, origin.num_positive, origin.dropped) == (24, 12, {})


def test_too_few_pairs_are_an_error_with_the_counts_and_the_remedy(tmp_path):
    trait = Trait.model_validate(FIELDS | {"scorer": {"file": SCORER, "function": "never"}})
    with run_of(tmp_path) as run, pytest.raises(DataError) as error:
        extract(run, trait, checkpoint="start")
    assert "0 of 12 pairs are kept, fewer than persona.min_pairs = 2 (12 trait not shown" in str(error.value)
    assert "take clearer instructions" in str(error.value)


def test_what_steers_the_policy_does_not_steer_an_extraction_and_goes_on_after_it(tmp_path):
    with run_of(tmp_path) as run:
        plain = extract(run, TRAIT, checkpoint="start")
        steering = Steering({0: torch.full((run.policy.hidden_size,), 9.0)}, coefficient=1.0)
        run.policy.steer(steering)
        found = extract(run, TRAIT, checkpoint="start")
        assert run.policy.steering is steering
    assert torch.equal(found.of["response"], plain.of["response"])


@pytest.mark.parametrize("part_kept", [0.3, 0.62, 0.9])
def test_a_killed_extraction_goes_on_and_ends_as_if_it_had_not_been(tmp_path, part_kept):
    kept = tmp_path / "kept.jsonl"
    drawn: list[int] = []
    with run_of(tmp_path) as run:
        expected = extract(run, TRAIT, checkpoint="start", keep_in=kept)
        whole = kept.read_bytes()
        kept.write_bytes(whole[: int(part_kept * len(whole))])  # in the middle of a line
        draw = run.rollouts.run

        def counted(attempts: Any, **named: Any) -> Any:
            drawn.append(sum(of.num_rollouts for of in attempts))
            return draw(attempts, **named)

        run.rollouts.run = counted  # type: ignore[method-assign]
        found = extract(run, TRAIT, checkpoint="start", keep_in=kept)
    assert 0 < sum(drawn) < 24
    rows = [json.loads(line) for line in kept.read_bytes().splitlines()]
    assert {(row["question"], row["shows"], row["attempt"]) for row in rows[1:]} == {
        (row["question"], row["shows"], row["attempt"]) for row in map(json.loads, whole.splitlines()[1:])
    }
    for over in OVERS:
        torch.testing.assert_close(found.of[over], expected.of[over], rtol=0, atol=1e-6)
    assert found.origin.num_positive == expected.origin.num_positive


def test_one_that_is_asked_to_stop_ends_between_two_waves_and_keeps_what_it_drew(tmp_path):
    kept = tmp_path / "kept.jsonl"
    with run_of(tmp_path) as run:
        stopped = replace(run, should_stop=lambda: True)
        with pytest.raises(Interrupted, match="give the same command again"):
            extract(stopped, TRAIT, checkpoint="start", keep_in=kept, may_stop=True)
    assert len(read_jsonl(kept)) == 1 + 12  # the wave of the first half


def test_completions_of_something_else_are_not_gone_on_with(tmp_path):
    path = tmp_path / "kept.jsonl"
    first = KeptCompletions(path, rests_on={"seed": 1}, per_side=1)
    first.add([scored(shows=True, trait=1.0)])
    assert KeptCompletions(path, rests_on={"seed": 1}, per_side=1).sides == {(Unit("q", 0), True)}
    assert KeptCompletions(path, rests_on={"seed": 1}, per_side=2).sides == frozenset()
    assert KeptCompletions(path, rests_on={"seed": 2}, per_side=1).sides == frozenset()
    assert len(read_jsonl(path)) == 1


def trait_file(folder: Path, **changes: Any) -> Path:
    path = folder / "planted.yaml"
    path.write_text(yaml.safe_dump(FIELDS | changes), encoding="utf-8")
    return path


def command_of(folder: Path, *more: str) -> tuple[Path, list[str]]:
    config = small_run_file(folder, **{"sft": None, "persona": PERSONA, "curriculum": {"kind": "uniform"}})
    arguments = ["persona", "extract", str(config), *more, "--trait", str(trait_file(folder))]
    return folder / "runs" / "small" / "persona", arguments


def test_the_command_writes_the_file_and_refuses_one_of_another_policy(tmp_path, capsys):
    folder, arguments = command_of(tmp_path)
    assert grpo(*arguments) == 0
    said = capsys.readouterr().out
    assert "12 pairs of 12 are kept" in said
    assert "along random" in said
    vectors = load(folder / "planted.safetensors")
    assert vectors.origin.checkpoint == "start"
    assert len(read_jsonl(folder / "planted_rollouts.jsonl")) == 25
    assert not (folder.parent / "metrics.jsonl").exists()
    save(replace(vectors, recommended_block=1, recommended_coefficient=2.0), folder / "planted.safetensors")
    assert grpo(*arguments) == 0  # the same again draws nothing, and what a sweep recommended stays
    assert load(folder / "planted.safetensors").default_block == 1
    assert grpo(*arguments, "run.seed=4", "--output", str(folder / "planted.safetensors")) == 2
    assert "of another policy" in capsys.readouterr().err


def test_an_unknown_trait_is_an_error_before_the_model_is_loaded(tmp_path, capsys):
    _, arguments = command_of(tmp_path)
    assert grpo(*arguments[:-1], "kindness") == 2
    assert "no such trait is shipped (" in capsys.readouterr().err
    assert grpo(*arguments[:-1], "humour") == 2
    captured = capsys.readouterr()
    assert "A judge's endpoint stands in the section persona" in captured.err
    assert captured.out == ""  # nothing was said of rows or of a model


@pytest.mark.slow
def test_two_ranks_give_the_same_vectors(tmp_path):
    folder, arguments = command_of(tmp_path)
    assert grpo(*arguments) == 0
    alone = load(folder / "planted.safetensors")
    output = tmp_path / "two.safetensors"
    launched("-m", "grpo.cli", *arguments, "--output", str(output), ranks=2)
    both = load(output)
    for over in OVERS:
        torch.testing.assert_close(both.of[over], alone.of[over], rtol=1e-4, atol=1e-5)
    assert both.origin.num_positive == alone.origin.num_positive
    torch.testing.assert_close(torch.tensor(both.origin.separation), torch.tensor(alone.origin.separation))


def test_every_shipped_trait_can_be_read():
    assert load_trait("upper_case").scorer.name == "letter_case"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_ranks_that_share_the_weights_give_the_same_vectors(tmp_path, strategy):
    folder, arguments = command_of(tmp_path)
    assert grpo(*arguments) == 0
    output = tmp_path / "sharded.safetensors"
    launched("-m", "grpo.cli", *arguments, "--output", str(output), f"distributed.strategy={strategy}", ranks=2)
    sharded, alone = load(output), load(folder / "planted.safetensors")
    for over in OVERS:
        torch.testing.assert_close(sharded.of[over], alone.of[over], rtol=1e-4, atol=1e-5)
