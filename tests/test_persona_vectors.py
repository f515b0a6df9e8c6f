"""The file of a trait's vectors, and what is made of it to steer."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from grpo.errors import ConfigError, DataError
from grpo.persona.vectors import OVERS, Origin, PersonaVectors, load, random_like, save

ORIGIN = Origin(
    trait="upper_case",
    description="Writes operations in capitals.",
    policy="0123",
    family="4567",
    model_type="llama",
    num_blocks=3,
    hidden_size=4,
    checkpoint="start",
    num_instructions=1,
    num_questions=2,
    rollouts_per_question=5,
    num_positive=7,
    num_negative=5,
    num_drawn=20,
    dropped={"incoherent": 3},
    threshold=0.5,
    coherence_threshold=0.5,
    temperature=1.0,
    seed=1,
    separation=(0.5, 1.5, 2.5),
    random_separation=(0.1, 0.1, 0.2),
    agreement=(0.5, 0.8, 0.9),
    hidden_norm=(1.0, 2.0, 3.0),
    definition={"name": "upper_case"},
    num_tokens=0,
)
TABLE = torch.arange(12.0).reshape(3, 4)


def vectors() -> PersonaVectors:
    return PersonaVectors(origin=ORIGIN, of={over: TABLE + place for place, over in enumerate(OVERS)})


def test_what_is_saved_is_read_back(tmp_path):
    save(vectors(), tmp_path / "new" / "v.safetensors")
    found = load(tmp_path / "new" / "v.safetensors")
    assert found.origin == ORIGIN
    assert all(torch.equal(found.of[over], TABLE + place) for place, over in enumerate(OVERS))


def test_increments_add_up_to_the_last_blocks_vector():
    found = vectors().vectors([2, 0, 1], increments=True)
    assert list(found) == [0, 1, 2]
    assert torch.equal(sum(found.values()), TABLE[2])
    assert torch.equal(found[1], torch.full((4,), 4.0))


@pytest.mark.parametrize(("blocks", "said"), [([3], "blocks 0 to 2"), ([1, 1], "name each once")])
def test_a_block_that_is_not_there_or_named_twice_is_refused(blocks, said):
    with pytest.raises(ConfigError, match=said):
        vectors().vectors(blocks)


def test_a_random_direction_has_the_norm_and_repeats_by_seed():
    vector = torch.tensor([3.0, 4.0, 0.0])
    first, again, other = (random_like(vector, seed=seed) for seed in (1, 1, 2))
    assert float(first.norm()) == pytest.approx(5.0)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_file_that_holds_no_vectors_is_refused_by_name(tmp_path):
    wrong = tmp_path / "v.safetensors"
    with pytest.raises(DataError, match="no such file"):
        load(wrong)
    wrong.write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a safetensors file"):
        load(wrong)


def test_a_table_of_another_shape_is_refused(tmp_path: Path):
    odd = PersonaVectors(origin=ORIGIN, of={over: TABLE[:2].clone() for over in OVERS})
    save(odd, tmp_path / "v.safetensors")
    with pytest.raises(DataError, match="not of shape"):
        load(tmp_path / "v.safetensors")


def test_a_file_of_another_version_is_refused_with_what_to_do(tmp_path):
    save(vectors(), tmp_path / "v.safetensors")
    with safe_open(tmp_path / "v.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["persona"])
    del about["origin"]["num_tokens"]
    tensors = {over: TABLE.clone() for over in OVERS}
    save_file(tensors, tmp_path / "v.safetensors", metadata={"format": "1", "persona": json.dumps(about)})
    with pytest.raises(DataError, match=r"another version \(num_tokens\); extract the vectors again"):
        load(tmp_path / "v.safetensors")
