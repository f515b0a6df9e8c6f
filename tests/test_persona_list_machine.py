"""The whole of it on the list machine: two styles are taught, and the vector from instructions alone leads from one to
the other."""

from pathlib import Path

import pytest

from grpo.config import load
from grpo.distributed.world import World
from grpo.persona.vectors import load as load_vectors
from grpo.persona.vectors import random_like
from grpo.persona_commands.loading import trait_of
from grpo.persona_commands.measure import Meter
from grpo.starts import load_start
from grpo.steering import Steering
from grpo.tracking.console import Console
from grpo.wiring import opened
from tests.runs import grpo

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "persona_list_machine.yaml"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_vector_from_instructions_alone_adds_and_removes_a_style_that_was_taught(tmp_path):
    # A gate below the config's: the styles are there long before the lists are right.
    overrides = [f"run.folder={tmp_path}", "sft.gate_pass_at_1=0.2"]
    assert grpo("sft", CONFIG, *overrides) == 0
    assert grpo("persona", "extract", CONFIG, *overrides, "--trait", "upper_case") == 0
    vectors = load_vectors(tmp_path / "persona_list_machine" / "persona" / "upper_case.safetensors")
    last = vectors.origin.num_blocks - 1
    vector = vectors.of["response"][last]
    config = load(CONFIG, overrides)
    with opened(
        config,
        world=World.alone(),
        start="resume",
        phases=(),
        console=Console(num_steps=1),
        should_stop=lambda: False,
        must_stop=lambda: False,
    ) as run:
        load_start(run)
        meter = Meter(run, trait_of(vectors), num_problems=0)
        plain = meter.measure(None).rate.value
        adds, removes = (meter.measure(Steering({last: vector}, coefficient=c)).rate.value for c in (3.0, -3.0))
        random = meter.measure(Steering({last: random_like(vector, seed=0)}, coefficient=3.0)).rate.value
    assert plain < 0.35
    assert adds > plain + 0.4
    assert removes < min(plain, 0.05)
    assert abs(random - plain) < 0.25
    assert vectors.origin.separation[last] > 4 * vectors.origin.random_separation[last]
    assert vectors.origin.agreement[last] > 0.9
