"""The sweep: what steering does by block and coefficient, what is recommended, and vectors of other models."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.errors import ConfigError, Interrupted
from grpo.evaluation import Estimate
from grpo.persona.heat_map import heat_map
from grpo.persona.traits import Trait
from grpo.persona.vectors import OVERS, Origin, PersonaVectors, load, save
from grpo.persona_commands.loading import check_model
from grpo.persona_commands.measure import Measured
from grpo.persona_commands.sweep import Cell, Grid, Swept, default_blocks, sweep
from grpo.starts import Run, print_of
from tests.runs import grpo, opened_run, read_jsonl, small_run_file
from tests.test_persona_extract import FIELDS, PERSONA, SCORER, config_of

# Tied, the head's rows are as long as the embeddings: what points along one of them is said.
TIED = {"model.architecture.tie_word_embeddings": True}
SAYS_A = Trait.model_validate(FIELDS | {"name": "says_a", "scorer": {"file": SCORER, "function": "says_a"}})


def vectors_of(run: Run, *, trait: Trait = SAYS_A) -> PersonaVectors:
    """At the last block the head's row of the letter a: adding it makes that letter likelier, whatever the model."""
    head: Any = run.policy.model.get_output_embeddings()  # type: ignore[operator]
    (letter,) = run.chat.tokenizer.encode("a", add_special_tokens=False)
    row = head.weight[letter].detach().clone()
    table = torch.stack([torch.ones_like(row), 30 * row / row.norm()])
    origin = Origin(
        trait=trait.name,
        description=trait.description,
        policy=print_of(run).content,
        family=print_of(run).family,
        model_type="llama",
        num_blocks=2,
        hidden_size=run.policy.hidden_size,
        checkpoint="start",
        num_instructions=1,
        num_questions=6,
        rollouts_per_question=2,
        num_positive=12,
        num_negative=12,
        num_drawn=24,
        dropped={},
        threshold=0.5,
        coherence_threshold=0.5,
        temperature=1.0,
        seed=3,
        separation=(0.0, 1.0),
        random_separation=(0.1, 0.1),
        agreement=(0.0, 1.0),
        hidden_norm=(1.0, 1.0),
        definition=trait.model_dump(mode="json"),
        num_tokens=0,
    )
    return PersonaVectors(origin=origin, of={over: table.clone() for over in OVERS})


@contextmanager
def run_of(folder: Path, **changes: Any) -> Iterator[Run]:
    with opened_run(config_of(folder, **TIED, **changes)) as run:
        yield run


def measured(rate: float, *, coherent: float = 1.0, accuracy: float | None = None) -> Measured:
    return Measured(
        rate=Estimate(rate, rate, rate),
        score=rate,
        coherent=coherent,
        accuracy=None if accuracy is None else Estimate(accuracy, accuracy, accuracy),
        num_completions=10,
        num_without_verdict=0,
    )


def swept(*cells: Cell, plain: Measured) -> Swept:
    grid = Grid(
        blocks=tuple(dict.fromkeys(cell.block for cell in cells)),
        coefficients=tuple(dict.fromkeys(cell.coefficient for cell in cells)),
        over="response",
        num_problems=0,
    )
    return Swept(grid=grid, plain=plain, cells=cells)


def test_the_recommended_cell_has_the_largest_effect_above_random_at_a_small_cost():
    none = measured(0.1, accuracy=0.6)
    best = Cell(1, 1.0, steered=measured(0.8, accuracy=0.55), random=measured(0.1))
    cells = [
        Cell(0, 1.0, steered=measured(0.9, accuracy=0.6), random=measured(0.7)),  # a random direction does it too
        best,
        Cell(1, 2.0, steered=measured(1.0, accuracy=0.4), random=measured(0.1)),  # costs accuracy
        Cell(0, 2.0, steered=measured(1.0, accuracy=0.6, coherent=0.8), random=measured(0.1)),  # costs coherence
    ]
    found = swept(*cells, plain=none)
    assert found.recommended() is best
    assert found.recommended(adds=False) is None


def test_of_equal_effects_the_smaller_coefficient_is_recommended_and_removing_has_its_own():
    cells = [
        Cell(0, 2.0, steered=measured(0.9), random=measured(0.1)),
        Cell(0, 1.0, steered=measured(0.9), random=measured(0.1)),
        Cell(0, -1.0, steered=measured(0.0), random=measured(0.1)),
    ]
    found = swept(*cells, plain=measured(0.1))
    assert found.recommended() is cells[1]
    assert found.recommended(adds=False) is cells[2]


@pytest.mark.parametrize(("num_blocks", "expected"), [(3, (0, 1, 2)), (32, (3, 7, 11, 15, 19, 23, 27, 31))])
def test_of_a_deep_model_blocks_are_spread_evenly(num_blocks, expected):
    assert default_blocks(num_blocks) == expected


def test_steering_by_the_heads_own_row_is_seen_and_a_random_direction_is_not(tmp_path):
    grid = Grid(blocks=(1,), coefficients=(-1.0, 1.0), over="response", num_problems=4)
    with run_of(tmp_path) as run:
        found = sweep(run, vectors_of(run), grid, keep_in=tmp_path / "s.jsonl")
        assert run.policy.steering is None
    removes, adds = found.cells
    assert adds.steered.rate.value > 0.9
    assert adds.random.rate.value < 0.3
    assert removes.steered.score <= found.plain.score
    assert found.plain.accuracy is not None
    assert adds.steered.num_completions == 6


def test_a_stopped_sweep_goes_on_with_the_cells_that_are_missing(tmp_path):
    grid = Grid(blocks=(0, 1), coefficients=(1.0,), over="response", num_problems=0)
    kept = tmp_path / "s.jsonl"
    with run_of(tmp_path) as run:
        vectors = vectors_of(run)
        asked = iter([False, True])
        with pytest.raises(Interrupted, match="give the command again"):
            sweep(replace(run, should_stop=lambda: next(asked)), vectors, grid, keep_in=kept)
        assert len(read_jsonl(kept)) == 2  # what it rests on, and a cell
        content = kept.read_bytes()
        kept.write_bytes(content + b'{"block": 1, "coef')  # as a kill would leave it
        again = sweep(run, vectors, grid, keep_in=kept)
        assert kept.read_bytes().startswith(content)
        expected = sweep(run, vectors, grid, keep_in=tmp_path / "other.jsonl")
    assert again == expected


@pytest.mark.parametrize(
    ("blocks", "coefficients", "said"),
    [((0, 0), (1.0,), "--blocks: 0"), ((0,), (1.0, 1.0), "--coefficients: 1"), ((0,), (0.0,), "or is 0")],
)
def test_a_grid_that_cannot_be_is_refused(tmp_path, blocks, coefficients, said):
    with run_of(tmp_path) as run, pytest.raises(ConfigError, match=said):
        sweep(run, vectors_of(run), Grid(blocks, coefficients, "response", 0), keep_in=tmp_path / "s.jsonl")


def test_the_picture_has_a_cell_for_every_number_and_a_frame_around_the_marked_one():
    picture = heat_map([("a < b", [[0.0, 1.0], [None, 0.25]])], rows=["r0", "r1"], columns=["-1", "1"], marked=(0, 1))
    assert picture.count("<rect") == 1 + 3
    assert picture.count("#d62728") == 1
    assert "a &lt; b" in picture
    assert ">0.25<" in picture
    assert 'fill="#08306b"' in picture  # the darkest, for 1


def written(folder: Path, name: str = "says_a", **changes: Any) -> Path:
    """A file of vectors in the run's folder."""
    with run_of(folder, **changes) as run:
        path = run.folder.path / "persona" / f"{name}.safetensors"
        save(vectors_of(run), path)
    return path


def command(folder: Path, *more: str, action: str = "sweep") -> list[str]:
    config = small_run_file(folder, **{"sft": None, "persona": PERSONA, "curriculum": {"kind": "uniform"}, **TIED})
    return ["persona", action, str(config), "--vectors", "says_a", *more]


def test_the_command_writes_table_picture_and_recommendation(tmp_path, capsys):
    path = written(tmp_path)
    assert grpo(*command(tmp_path, "--coefficients", "-1", "1", "--problems", "0")) == 0
    said = capsys.readouterr().out
    assert "to add the trait: block 1, coefficient 1" in said
    found = json.loads((path.parent / "says_a_sweep.json").read_text())
    assert found["adds"] == {"block": 1, "coefficient": 1.0}
    assert len(found["cells"]) == 4
    assert (path.parent / "says_a_sweep.svg").read_text().startswith("<svg")
    vectors = load(path)
    assert (vectors.recommended_block, vectors.recommended_coefficient) == (1, 1.0)
    assert vectors.default_block == 1


def test_vectors_of_another_policy_are_refused_and_with_the_option_their_transfer_is_measured(tmp_path, capsys):
    path = written(tmp_path)
    other = written(tmp_path / "other", **{"run.seed": 4})
    (path.parent / "elsewhere.safetensors").write_bytes(other.read_bytes())
    arguments = command(tmp_path, "--coefficients", "1", "--problems", "0")
    arguments[arguments.index("says_a")] = "elsewhere"
    assert grpo(*arguments) == 2
    assert "of another policy (start" in capsys.readouterr().err
    assert grpo(*arguments, "--allow-other-model") == 0
    said = capsys.readouterr().out
    assert "cosine with" in said
    assert "says_a.safetensors, by block: 1.00, " in said  # block 0 is the same by its making
    carried = json.loads((path.parent / "elsewhere_sweep.json").read_text())["transfer"]
    assert carried["cosines"][0] == pytest.approx(1.0)
    assert abs(carried["cosines"][1]) < 0.9
    assert set(carried) >= {"plain", "steered", "random"}
    assert load(path.parent / "elsewhere.safetensors").recommended_block is None


def test_vectors_of_another_shape_are_refused_whatever_is_allowed(tmp_path):
    with run_of(tmp_path) as run:
        vectors = vectors_of(run)
        wider = replace(vectors, origin=replace(vectors.origin, hidden_size=64))
        with pytest.raises(ConfigError, match="2 blocks of width 64; this one has 2 of 32"):
            check_model(run, wider, allow_other=True)


def test_a_file_that_is_not_there_is_an_error_with_its_name(tmp_path, capsys):
    assert grpo(*command(tmp_path)) == 3
    assert "--vectors: says_a: no such file; make it with `grpo persona extract`" in capsys.readouterr().err
