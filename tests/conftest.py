"""Tiny models and problems made here: no hub, no network."""

from pathlib import Path

import hypothesis
import pytest
import torch

from grpo.config import ModelConfig
from grpo.model import base_of, load_model, load_tokenizer
from grpo.policy import Policy

# How long an example takes is the machine's to say, and no property of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

ARCHITECTURES = {
    "llama": {"model_type": "llama"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral": {"model_type": "mistral", "sliding_window": 8},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Rounding, and so the bit-for-bit tests, depends on the number of threads."""
    torch.set_num_threads(1)


def tiny_config(name: str, **changes: object) -> ModelConfig:
    """A model of two layers with the list machine's tokenizer; embeddings wide enough that its logits differ."""
    architecture = ARCHITECTURES[name] | ({} if name == "gpt2" else SIZES)
    fields = {
        "architecture": architecture,
        "tokenizer": "task:list_machine",
        "dtype": "float32",
        "initial_embedding_std": 1.0,
    }
    return ModelConfig.model_validate(fields | changes)


def tiny_policy(name: str, *, seed: int = 0, **changes: object) -> Policy:
    """A policy drawn from a seed."""
    config = tiny_config(name, **changes)
    model = load_model(config, tokenizer=load_tokenizer(config), seed=seed, device=torch.device("cpu"))
    base = base_of(model)
    head = base.get_output_embeddings().weight
    if head is not base.get_input_embeddings().weight:
        with torch.no_grad():
            head *= 15  # a fresh head is so flat that every token is as likely; this one has opinions
    return Policy(model)


@pytest.fixture(params=sorted(ARCHITECTURES))
def policy(request: pytest.FixtureRequest) -> Policy:
    """A tiny policy of each architecture."""
    return tiny_policy(request.param)
