"""What an engine beside the policy is handed: a folder to start from, the weights by name, adapters; and whether it
holds them.

Names are those of a checkpoint of transformers. This file knows no engine but for how one lays out fused weights."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from grpo.errors import RunError
from grpo.model import base_of

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Weights that vLLM holds as the rows of several, in this order."""
VOCABULARY_STEP = 64
"""vLLM fills the rows of embeddings and head up to a multiple of it, with zeros."""
WEIGHTS_FILE = "model.safetensors"
NO_BYTES = hashlib.sha256(b"").hexdigest()


class WeightsDifferError(RunError):
    """An engine holds other weights than it was handed."""


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every weight of the model below its adapters, as they stand; tied ones once."""
    seen: set[int] = set()
    for name, tensor in base_of(model).state_dict(keep_vars=True).items():
        # A buffer follows from the config, and an adapter goes its own way.
        if not isinstance(tensor, nn.Parameter) or ".lora_" in name or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        yield name.replace(".base_layer.", "."), tensor.detach()


def write_shape(model: nn.Module, folder: Path, *, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add a model's config and tokenizer to `folder`, which an engine starts from."""
    base = base_of(model)
    folder.mkdir(exist_ok=True)
    config = base.config.to_dict() | {
        "architectures": [type(base).__name__]
    }  # by which an engine knows the head is one
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str), encoding="utf-8")
    tokenizer.save_pretrained(folder)


def write_weights(model: nn.Module, folder: Path) -> None:
    """`named_weights` into `folder`, which appears whole, or not at all."""
    temporary = _emptied(folder)
    save_file({name: tensor.to("cpu").contiguous() for name, tensor in named_weights(model)}, temporary / WEIGHTS_FILE)
    _put_in_place(temporary, folder)


def write_adapters(model: nn.Module, folder: Path) -> None:
    """The adapters of a model that has some, as peft writes them; the folder appears whole, or not at all."""
    temporary = _emptied(folder)
    adapted: Any = model
    adapted.save_pretrained(temporary, save_embedding_layers=False)
    _put_in_place(temporary, folder)


def remove(folder: Path) -> None:
    """Delete what was written there, if anything was."""
    shutil.rmtree(folder, ignore_errors=True)


def adapter_rank(model: nn.Module) -> int | None:
    """Rank of the adapters, or None where every weight is trained."""
    adapted: Any = model
    return int(adapted.peft_config["default"].r) if base_of(model) is not model else None


def check_held(digests: Mapping[str, str], model: nn.Module, *, holder: str) -> str:
    """What a comparison of an engine's `digests` with the model's weights found, as a clause for people to read.

    Raises WeightsDifferError where one differs."""
    wrong, compared = differing(digests, dict(named_weights(model)))
    if wrong:
        raise WeightsDifferError(
            f"sampling.engine = 'vllm': {holder} holds another {wrong[0]} than the policy ({len(wrong)} of {compared} "
            "weights that can be compared differ), so that it draws from another policy; set sampling.engine: native"
        )
    return f"{compared} of its {len(digests)} weights are in a form that can be compared, and are the policy's"


def differing(digests: Mapping[str, str], weights: Mapping[str, Tensor]) -> tuple[list[str], int]:
    """The engine's weights that are not `weights`, by the engine's names, and how many could be compared.

    `digests` are SHA-256 of each weight's bytes, by names that end in that of the weight after a colon. A weight that
    the engine has brought into a form of its own is told apart by its name or by holding no bytes, and not compared."""
    wrong, compared = [], 0
    for own_name, digest in digests.items():
        name = own_name.rsplit(":", 1)[-1].replace(".base_layer.", ".")
        expected = _as_held(name, weights)
        if expected is None or digest == NO_BYTES:
            continue
        compared += 1
        if digest not in {_digest(form) for form in expected}:
            wrong.append(name)
    return wrong, compared


def _as_held(name: str, weights: Mapping[str, Tensor]) -> Sequence[Tensor] | None:
    """The forms in which an engine may hold the weight of that name; None where it is of no known one."""
    for fused, parts in FUSED.items():
        names = [name.replace(f".{fused}.", f".{part}.") for part in parts]
        if f".{fused}." in name and all(part in weights for part in names):
            return [torch.cat([weights[part] for part in names])]
    if name not in weights:
        return None
    own = weights[name]
    missing = -own.shape[0] % VOCABULARY_STEP
    filled = torch.cat([own, own.new_zeros(missing, *own.shape[1:])])
    return [own, filled]


def _digest(tensor: Tensor) -> str:
    held = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(held.numpy().data).hexdigest()


def _emptied(folder: Path) -> Path:
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def _put_in_place(temporary: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
