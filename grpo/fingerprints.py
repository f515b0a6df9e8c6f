"""What an outcome of a profile depends on, spelled out: the name under which its store keeps it.

A policy is known by the content of its weights and not by a name: a cold start that is trained again, or a checkpoint
that is copied, is told apart or recognised by what it is."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grpo.chat import Chat
from grpo.config import RewardConfig, RunConfig
from rewards import RewardSpec, files_of

MAX_ELEMENTS = 4096
PIECE_ELEMENTS = 2**24
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class PolicyPrint(NamedTuple):
    """Hashes of a policy: of its weights' names, shapes and types, and of these with the content."""

    family: str
    content: str


def policy_print(weights: Mapping[str, Tensor]) -> PolicyPrint:
    """Of whole weights on the CPU, by name.

    Of each tensor it takes at most MAX_ELEMENTS elements, evenly spaced, and the sum of all its elements' bits as
    integers. That sum is exact: unlike one of floats it does not depend on the number of threads, and any one element
    that changes shows in it."""
    family, content = hashlib.sha256(), hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        shape = f"{name}\x1f{tuple(tensor.shape)}\x1f{tensor.dtype}\x1e".encode()
        family.update(shape)
        content.update(shape)
        words = tensor.detach().contiguous().flatten().view(WORDS[tensor.element_size()])
        stride = max(1, -(-words.numel() // MAX_ELEMENTS))
        content.update(words[::stride].contiguous().numpy().tobytes())
        # In pieces: torch may make a whole copy of what it sums in another type.
        content.update(str(sum(int(piece.sum(dtype=torch.int64)) for piece in words.split(PIECE_ELEMENTS))).encode())
    return PolicyPrint(family=family.hexdigest()[:16], content=content.hexdigest()[:32])


def profile_fingerprint(
    config: RunConfig, chat: Chat, *, policy: PolicyPrint, temperature: float, phase: str = "profile", step: int = 0
) -> dict[str, Any]:
    """All that the outcome of an attempt depends on but for the problem and the attempt's number.

    Sizes of batches are left out: they move logits by rounding alone."""
    sampling = config.sampling
    return {
        "policy": policy.content,
        "family": policy.family,
        # Adapters are all that is trained, and so all that the content is of: the base is known by its name.
        "base": None if config.model.lora is None else config.model.path or config.model.architecture,
        "float32_head": config.model.float32_head,
        "temperature": temperature,
        "sampling": sampling.model_dump(mode="json", exclude={"max_rows", "prefill_tokens", "vllm"}),
        "chat": _hash("\x1f".join((chat.template, config.chat.system_prompt or "", str(chat.end_token_ids)))),
        "reward": judge_print(config.reward) | {"format": config.data.train.format},
        "seed": config.run.seed,
        "phase": phase,
        "step": step,
    }


def judge_print(reward: RewardConfig) -> dict[str, Any]:
    """All that a verdict depends on but for the completion and the problem.

    The user's own files count by their content, so that an edited one is another judge: a reward's file, the files of
    a composition's parts, a rubric, checkers. What they import or open themselves is not looked at. Limits of calls
    and processes are left out. Raises ValueError for options that no reward takes."""
    spec = RewardSpec(reward.name or "", file=reward.file, function=reward.function, options=reward.options)
    contents = [_hash(Path(file).read_text(encoding="utf-8")) for file in files_of(spec)]
    of_options = contents if reward.file is None else []
    return {
        "name": reward.name,
        "file": None if reward.file is None else contents[0],
        "function": reward.function,
        "options": reward.options,
        "success_threshold": reward.success_threshold,
    } | ({"files": of_options} if of_options else {})


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
