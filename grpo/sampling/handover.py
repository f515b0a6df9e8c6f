"""What an engine beside the policy is handed: a folder to start from, the weights by name, adapters; and whether it
holds them.

Names are those of a checkpoint of transformers. Of weights that are sharded one is whole at a time, and all ranks make
the same calls. This file knows no engine but for how one lays out fused weights."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from grpo.errors import RunError
from grpo.model import base_of
from grpo.policy import Policy

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Weights that vLLM holds as the rows of several, in this order."""
VOCABULARY_STEP = 64
"""vLLM fills the rows of embeddings and head up to a multiple of it, with zeros."""
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FILE_BYTES = 2**30
"""Weights of one file, and so of the host's memory while they are written; a larger one has a file of its own."""
NO_BYTES = hashlib.sha256(b"").hexdigest()


class WeightsDifferError(RunError):
    """An engine holds other weights than it was handed."""


def named_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every weight below the policy's adapters, as they stand; tied ones once.

    A sharded one is let go when the next is asked for."""
    seen: set[int] = set()
    for name, tensor in base_of(policy.model).state_dict(keep_vars=True).items():
        # A buffer follows from the config, and an adapter goes its own way.
        if not isinstance(tensor, nn.Parameter) or ".lora_" in name or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        with policy.gathered(tensor) as whole:
            yield name.replace(".base_layer.", "."), whole.detach()


def write_shape(model: nn.Module, folder: Path, *, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add a model's config and tokenizer to `folder`, which an engine starts from."""
    base = base_of(model)
    folder.mkdir(exist_ok=True)
    config = base.config.to_dict() | {
        "architectures": [type(base).__name__]
    }  # by which an engine knows the head is one
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str), encoding="utf-8")
    tokenizer.save_pretrained(folder)


def write_weights(policy: Policy, folder: Path, *, is_writer: bool = True) -> None:
    """`named_weights` into `folder`, which appears whole, or not at all; who is no writer helps to gather them."""
    if not is_writer:
        for _ in named_weights(policy):
            pass
        return
    temporary = _emptied(folder)
    files: dict[str, list[str]] = {}
    held: dict[str, Tensor] = {}

    def write() -> None:
        name = f"model-{len(files) + 1:05d}.safetensors"
        save_file(held, temporary / name)
        files[name] = list(held)
        held.clear()

    for name, tensor in named_weights(policy):
        if held and sum(weight.nbytes for weight in held.values()) + tensor.nbytes > FILE_BYTES:
            write()
        held[name] = tensor.to("cpu", copy=True).contiguous()
    write()
    if len(files) == 1:
        (temporary / next(iter(files))).rename(temporary / WEIGHTS_FILE)
    else:
        index = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
        (temporary / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    _put_in_place(temporary, folder)


def write_adapters(policy: Policy, folder: Path, *, is_writer: bool = True) -> None:
    """The adapters of a policy that has some, as peft writes them; the folder appears whole, or not at all. Who is no
    writer helps to gather them."""
    adapted: Any = policy.model
    held: dict[str, Tensor] = {}
    for name, tensor in adapted.state_dict(keep_vars=True).items():
        if ".lora_" in name:
            with policy.gathered(tensor) as whole:
                held[name] = whole.detach().to("cpu", copy=True)
    if not is_writer:
        return
    temporary = _emptied(folder)
    adapted.save_pretrained(temporary, state_dict=held, save_embedding_layers=False)
    _put_in_place(temporary, folder)


def remove(folder: Path) -> None:
    """Delete what was written there, if anything was."""
    shutil.rmtree(folder, ignore_errors=True)


def adapter_rank(model: nn.Module) -> int | None:
    """Rank of the adapters, or None where every weight is trained."""
    adapted: Any = model
    return int(adapted.peft_config["default"].r) if base_of(model) is not model else None


def check_held(digests: Mapping[str, str], expected: Mapping[str, frozenset[str]], *, holder: str) -> str:
    """What a comparison of an engine's `digests` with the `expected` ones found, as a clause for people to read.

    Raises WeightsDifferError where one differs."""
    wrong, compared = differing(digests, expected)
    if wrong:
        raise WeightsDifferError(
            f"sampling.engine = 'vllm': {holder} holds another {wrong[0]} than the policy ({len(wrong)} of {compared} "
            "weights that can be compared differ), so that it draws from another policy; set sampling.engine: native"
        )
    return f"{compared} of its {len(digests)} weights are in a form that can be compared, and are the policy's"


def expected_digests(policy: Policy) -> dict[str, frozenset[str]]:
    """SHA-256 of the bytes of each weight by its name, in every form in which an engine may hold it: as it is, filled
    up to whole rows of `VOCABULARY_STEP`, and of fused ones by the fused name."""
    found: dict[str, frozenset[str]] = {}
    parts: dict[str, dict[str, Tensor]] = {}  # of a fused weight, until they are all there
    for name, weight in named_weights(policy):
        missing = -weight.shape[0] % VOCABULARY_STEP
        filled = torch.cat([weight, weight.new_zeros(missing, *weight.shape[1:])])
        found[name] = frozenset({_digest(weight), _digest(filled)})
        for fused, of_fused in FUSED.items():
            part = next((part for part in of_fused if f".{part}." in name), None)
            if part is None:
                continue
            whole = name.replace(f".{part}.", f".{fused}.")
            held = parts.setdefault(whole, {})
            held[part] = weight.clone()
            if len(held) == len(of_fused):
                found[whole] = frozenset({_digest(torch.cat([held[part] for part in of_fused]))})
                del parts[whole]
    return found


def differing(digests: Mapping[str, str], expected: Mapping[str, frozenset[str]]) -> tuple[list[str], int]:
    """The engine's weights that are not as `expected`, by the engine's names, and how many could be compared.

    `digests` are SHA-256 of each weight's bytes, by names that end in that of the weight after a colon. A weight that
    the engine has brought into a form of its own is told apart by its name or by holding no bytes, and not compared."""
    wrong, compared = [], 0
    for own_name, digest in digests.items():
        name = own_name.rsplit(":", 1)[-1].replace(".base_layer.", ".")
        if name not in expected or digest == NO_BYTES:
            continue
        compared += 1
        if digest not in expected[name]:
            wrong.append(name)
    return wrong, compared


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
