"""vLLM in a config: what it cannot do, or nothing reads, is refused before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest

from grpo.config import dump, fingerprint, load
from grpo.errors import ConfigError
from tests.runs import small_run_config, small_run_file

SERVER = {"mode": "server", "urls": ["http://one:8000"], "exchange_folder": "/tmp/exchange"}
STEERING = {"vectors": "v.safetensors", "coefficient": 1.0}
ZERO3 = {"distributed.strategy": "zero3"}


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load(small_run_file(folder, **{"sampling.engine": "vllm"} | changes))
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling.engine": "native", "sampling.vllm": {"eager": True}}, "not read where engine is native"),
        ({"sampling.top_k": 5}, "top_k = 5 and engine = 'vllm'"),
        ({"sampling.top_p": 0.9}, "set top_p: 1.0 or engine: native"),
        ({"sampling.min_p": 0.1}, "set min_p: 0.0 or engine: native"),
        (
            {"sampling.vllm": {"urls": ["http://one:8000"]}},
            "urls = ['http://one:8000'] is not read where mode is coloc",
        ),
        ({"sampling.vllm": SERVER | {"urls": []}}, "mode = 'server' needs the servers' addresses"),
        ({"sampling.vllm": SERVER | {"exchange_folder": None}}, "set exchange_folder: a folder that servers see"),
        ({"sampling.vllm": SERVER | {"urls": ["one:8000"]}}, "urls has 'one:8000': must be an address such as"),
        ({"sampling.vllm": SERVER | {"sleep": False}}, "sleep = False is not read where mode is server"),
        ({"model.float32_head": True}, "model.float32_head = true and sampling.engine = 'vllm'"),
        (
            {"temperature": {"kind": "adaptive", "counterfactual": True}},
            "temperature.counterfactual = true and sampling.engine = 'vllm': it tells log-probs at the temperature of",
        ),
        (
            {"steering": STEERING, "profile.reuse_steps": 0},
            "steering.mode = 'preventative' and sampling.engine = 'vllm': it steers no draws; set steering.mode: train",
        ),
        (
            {"temperature.value": 0.005},
            "temperature.value = 0.005 and sampling.engine = 'vllm': it draws at 0.01 where",
        ),
        ({"temperature": {"kind": "steps", "milestones": {3: 0.001}}}, "set temperature.milestones.3: 0.01, or sampl"),
        ({"evaluation.temperature": 0.001}, "evaluation.temperature = 0.001 and sampling.engine = 'vllm'"),
        (ZERO3, "distributed.zero3_sampling = 'auto' and sampling.engine = 'vllm': it is handed whole weights"),
    ],
)
def test_what_vllm_cannot_do_is_refused_with_a_remedy(tmp_path, changes, said):
    assert said in refusal(tmp_path, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampling.vllm": SERVER},
        {"steering": STEERING | {"mode": "train_only"}, "loss": {"correction": "icepop"}},
        {**ZERO3, "distributed.zero3_sampling": "gather"},
        {"sampling.stop_strings": ["x"]},
        {"evaluation.temperature": 0.01},
    ],
)
def test_what_vllm_can_do_is_taken_and_loads_again_as_it_was_resolved(tmp_path, changes):
    config = small_run_config(tmp_path, **{"sampling.engine": "vllm"} | changes)
    (tmp_path / "resolved.yaml").write_text(dump(config), encoding="utf-8")
    assert load(tmp_path / "resolved.yaml") == config


def test_a_run_may_go_on_with_another_server_and_not_with_another_engine(tmp_path):
    native = fingerprint(small_run_config(tmp_path))
    here, there = (
        fingerprint(
            small_run_config(tmp_path, **{"sampling.engine": "vllm", "sampling.vllm": SERVER | {"urls": [url]}})
        )
        for url in ("http://one:8000", "http://two:8000")
    )
    assert here == there
    assert {name for name in here if here[name] != native[name]} == {"sampling.engine"}
