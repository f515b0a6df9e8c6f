"""The residual stream at the output of decoder blocks: vectors added to it or taken out of it, and projections read
from it. One hook a block does both, in every forward of `grpo.policy`.

The positions are those whose next token is the policy's own: the last prompt token and the completion but for its last
token. Under that mask sampling with a cache and scoring in one pass are the same function; they are under the others
too, as long as both sides steer the same ones, which they do here (arXiv 2507.21509 steers each decode step).
The vectors live outside the state dict, so checkpoints stay clean. Hooks sit at the block and not at its MLP: where a
norm follows the MLP (Glm4) these are different places.

Letters: B rows, T tokens, D hidden size, W watched directions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

Positions = Literal["choosing", "start", "completion", "all"]
"""Which positions are steered: those whose next token the policy chooses (the last prompt token included), of these the
last prompt token alone, those whose own token it chose, or all, the prompt's too."""


@dataclass(frozen=True, slots=True)
class Steering:
    """What is done at the output of each block l in `vectors`, each [D] and unnormalised.

    add: h_l ← h_l + coefficient · v_l. ablate: h_l ← h_l − coefficient · (h_l · v̂_l) v̂_l, which at 1 takes the
    direction out (arXiv 2507.21509, and its authors' code for the second)."""

    vectors: Mapping[int, Tensor]
    coefficient: float
    kind: Literal["add", "ablate"] = "add"
    positions: Positions = "choosing"

    def where(self, *, chooses: Tensor, chosen: Tensor) -> Tensor:
        """The mask to steer at, from those of positions whose next token, and whose own, is the policy's; one shape."""
        if self.positions == "all":
            return chooses.new_ones(chooses.shape)
        if self.positions == "start":
            return chooses & ~chosen
        return chooses if self.positions == "choosing" else chosen

    def moved(self, hidden: Tensor, *, block: int, at: Tensor) -> Tensor:
        """`hidden` [..., D], the output of `block`, moved where `at` [...] is True, if anything steers that block."""
        if block not in self.vectors:
            return hidden
        vector = self.vectors[block].to(hidden)  # [D]
        if self.kind == "add":
            return hidden + at.unsqueeze(-1) * (self.coefficient * vector)
        unit = vector / vector.norm()
        along = (hidden @ unit) * at  # [...]
        return hidden - (self.coefficient * along).unsqueeze(-1) * unit


@dataclass(frozen=True, slots=True)
class Watched:
    """Directions whose projections are read from every training forward, by block: [W_l, D] each, unit vectors.

    What is read at a block is its output before anything is added there, so that at the first steered block, whatever
    the coefficient, it is what the same tokens give without steering."""

    directions: Mapping[int, Tensor]

    @property
    def num_directions(self) -> int:
        """W, over all blocks, in the order of `directions`."""
        return sum(len(of_block) for of_block in self.directions.values())


@dataclass(slots=True)
class Readings:
    """What one forward's hooks read: projections [..., W_l] of each watched block, at every position."""

    of_blocks: dict[int, Tensor] = field(default_factory=dict)


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The model's blocks, in order. Raises ValueError where there is not exactly one list of them."""
    depth = model.config.get_text_config().num_hidden_layers
    found = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__}: found {len(found)} lists of {depth} blocks; cannot tell which to steer"
        )
    return found[0]


def check_vectors(vectors: Mapping[int, Tensor], blocks: nn.ModuleList, *, hidden_size: int, what: str) -> None:
    """Raises ValueError for a block that is not there or a vector (or several, [W, D]) of another width.

    `what` names them: steering or a watched trait."""
    for block, vector in vectors.items():
        if not 0 <= block < len(blocks):
            raise ValueError(f"{what}, block {block}: the model has blocks 0 to {len(blocks) - 1}")
        if vector.shape[-1] != hidden_size:
            raise ValueError(
                f"{what}, block {block}: a vector of width {vector.shape[-1]}; the model's is {hidden_size}"
            )


@contextmanager
def hooked(
    blocks: nn.ModuleList,
    *,
    steering: Steering | None = None,
    at: Tensor | None = None,
    watched: Watched | None = None,
    readings: Readings | None = None,
) -> Iterator[None]:
    """Steer where `at` [B, T] bool is True and write projections into `readings`, in every forward inside.

    Nothing is steered where `steering` or `at` is None, and nothing read where `watched` or `readings` is."""
    steers = steering is not None and at is not None
    reads = watched is not None and readings is not None
    steered = set(steering.vectors) if steering is not None and steers else set()
    read = set(watched.directions) if watched is not None and reads else set()
    with ExitStack() as stack:
        for block in sorted(steered | read):
            hook = _hook(
                block,
                steering=steering if block in steered else None,
                at=at,
                directions=watched.directions[block] if watched is not None and block in read else None,
                readings=readings,
            )
            stack.callback(blocks[block].register_forward_hook(hook).remove)
        yield


@contextmanager
def captured(blocks: nn.ModuleList, take: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call `take` with each block's number and its output [B, T, D], in every forward inside."""

    def hook_of(block: int) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: take(block, _hidden_of(output))

    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            stack.callback(block.register_forward_hook(hook_of(number)).remove)
        yield


def _hook(
    block: int,
    *,
    steering: Steering | None,
    at: Tensor | None,
    directions: Tensor | None,
    readings: Readings | None,
) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        hidden = _hidden_of(output)  # [B, T, D]
        if directions is not None and readings is not None:
            found = hidden.detach()
            readings.of_blocks[block] = (found @ directions.to(found).T).float()  # [B, T, W_l]
        if steering is None or at is None:
            return output
        moved = steering.moved(hidden, block=block, at=at)
        return moved if isinstance(output, Tensor) else (moved, *output[1:])

    return hook


def _hidden_of(output: Any) -> Tensor:
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]  # older architectures return a tuple
    return hidden
