"""Vectors added to the residual stream, at the output of decoder blocks, at chosen positions.

The positions are those whose next token is the policy's own: the last prompt token and the completion. Under that
mask sampling with a cache and scoring in one pass are the same function (facts of arXiv 2507.21509's method: other
masks are off by 0.06 nats and more). The vectors live outside the state dict, so checkpoints stay clean."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Steering:
    """h_l ← h_l + coefficient · v_l at the output of each block l in `vectors` (each [D], unnormalised)."""

    vectors: Mapping[int, Tensor]
    coefficient: float


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The model's blocks, in order. Raises ValueError where there is not exactly one list of them."""
    depth = model.config.get_text_config().num_hidden_layers
    found = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__}: found {len(found)} lists of {depth} blocks; cannot tell which to steer"
        )
    return found[0]


def check(steering: Steering, blocks: nn.ModuleList, *, hidden_size: int) -> None:
    """Raises ValueError for a block that is not there or a vector of another width."""
    for block, vector in steering.vectors.items():
        if not 0 <= block < len(blocks):
            raise ValueError(f"steering block {block}: the model has blocks 0 to {len(blocks) - 1}")
        if vector.shape != (hidden_size,):
            raise ValueError(
                f"steering block {block}: a vector of shape {tuple(vector.shape)}; the model's is ({hidden_size},)"
            )


@contextmanager
def steered(blocks: nn.ModuleList, steering: Steering | None, positions: Tensor | None) -> Iterator[None]:
    """Add the vectors where `positions` [B, T] bool is True, in every forward inside; nowhere when either is None."""
    with ExitStack() as stack:
        if steering is not None and positions is not None:
            for block, vector in steering.vectors.items():
                handle = blocks[block].register_forward_hook(_adds(steering.coefficient * vector, positions))
                stack.callback(handle.remove)
        yield


def _adds(vector: Tensor, positions: Tensor) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(block: nn.Module, inputs: Any, output: Any) -> Any:
        hidden = output if isinstance(output, Tensor) else output[0]  # [B, T, D]; older architectures return a tuple
        moved = hidden + positions.unsqueeze(-1) * vector.to(hidden)
        return moved if isinstance(output, Tensor) else (moved, *output[1:])

    return hook
