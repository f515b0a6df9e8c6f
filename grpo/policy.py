"""The policy: a causal language model that the sampler and the trainer call through the same two functions.

`hidden` runs the backbone, `head` turns hidden states into logits; sampling is hidden + head on one position a row,
training is hidden + the chunked loss of `grpo.logprobs`. Because both go through here, what the sampler drew from is
what the trainer scores. Its forward takes a micro-batch and returns loss and log-probs: DDP or ZeRO can wrap it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache

from grpo import recompute
from grpo.attention import check_gradient, packed
from grpo.batch import MicroBatch
from grpo.logprobs import Choices, LossOf, chunked_logprobs, chunked_loss
from grpo.model import base_of
from grpo.packing import Layout, Segment
from grpo.steering import Readings, Steering, Watched, check_vectors, decoder_blocks, hooked

# Share of the hidden states' spread by which a packed row may differ from rows alone: above rounding, below what a
# wrong mask or position does.
PACKING_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a forward is asked for beside log-probs."""

    loss_of: LossOf | None = None  # the loss to make of them
    token_by_token: bool = True  # whether a token's loss is a function of its own log-prob
    entropy: bool = True
    projections: bool = True  # on what is watched, where anything is


class Scored(NamedTuple):
    """What a forward gives: tensors of A action tokens, in row order."""

    loss: Tensor | None  # [], with a gradient; None where none was asked for
    logprobs: Tensor  # [A], nats
    entropy: Tensor | None  # [A], nats; None where it was not asked for
    projections: Tensor | None  # [A, W], of the positions before the tokens; None where nothing is watched


SCORES = Wanted()


class Policy(nn.Module):
    """Wraps a model of `grpo.model`. `model` may carry adapters; `steering` is None or applied in every forward, and
    projections on `watched` directions, where there are any, come with those that train."""

    in_lock_step = False
    """Whether a forward is one of all ranks together."""

    def __init__(self, model: nn.Module) -> None:
        """Raises ValueError where head(hidden(x)) is not the model's own logits, so that nothing is scored wrongly."""
        super().__init__()
        self.model = model
        self.steering: Steering | None = None
        self.watched: Watched | None = None
        base = base_of(model)
        # Held in a tuple: a module attribute would register the same weights a second time.
        self._parts: tuple[Any, Any] = (base.base_model, base.get_output_embeddings())
        self._blocks = (decoder_blocks(base),)
        config = base.config.get_text_config()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)  # Gemma
        # Cohere multiplies its logits, Granite divides them.
        self._scale = float(getattr(config, "logit_scale", None) or 1) / float(
            getattr(config, "logits_scaling", None) or 1
        )
        self.vocabulary = int(self._parts[1].weight.shape[0])
        self.hidden_size = int(config.hidden_size)
        self._checkpointing = any(vars(module).get("gradient_checkpointing") for module in base.modules())
        for block in self._blocks[0]:
            # Some blocks (OPT's) drop out by a number of their own and their own `training`, not by a module.
            if isinstance(vars(block).get("dropout"), float):
                vars(block)["dropout"] = 0.0
        self._text_config = config
        self.shards_head = False  # set where the head's weights are gathered for each call, and let go after it
        self._compare_with_model()
        self.packs, self.why_not_packed = self._try_packing()

    def gathered(self, weight: Tensor) -> AbstractContextManager[Tensor]:
        """The whole of one of the model's weights while the context lasts. Where weights are sharded all ranks ask for
        the same one."""
        return nullcontext(weight)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self._parts[1].weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and hidden states."""
        dtype: torch.dtype = self._parts[0].dtype
        return dtype

    def steer(self, steering: Steering | None) -> None:
        """Steer every forward from here on, or none. Raises ValueError for a block or width that the model has not."""
        if steering is not None:
            check_vectors(steering.vectors, self._blocks[0], hidden_size=self.hidden_size, what="steering")
            if any(vector.device != self.device for vector in steering.vectors.values()):
                # Once, and not in every forward, which would wait for the device.
                here = {block: vector.to(self.device) for block, vector in steering.vectors.items()}
                steering = replace(steering, vectors=here)
        self.steering = steering

    def steered_at(self, *, chooses: Tensor, chosen: Tensor) -> Tensor | None:
        """Where `hidden` is to steer, from the masks of positions whose next token, and whose own, is the policy's.

        None where nothing is steered."""
        return None if self.steering is None else self.steering.where(chooses=chooses, chosen=chosen)

    def watch(self, watched: Watched | None) -> None:
        """Read projections from every training forward from here on, or none. Raises ValueError as `steer` does."""
        if watched is not None:
            check_vectors(watched.directions, self._blocks[0], hidden_size=self.hidden_size, what="a watched trait")
        self.watched = watched

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, in order: what steering and watching name by number."""
        return self._blocks[0]

    def hidden(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        cache: Cache | None = None,
        steer_at: Tensor | None = None,
        readings: Readings | None = None,
        layout: Layout | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, D] of `input_ids` [B, T].

        Without a mask, attention is causal and rows are padded on the right. `steer_at` [B, T] bool are the positions
        that `steering` acts at. Projections on what is watched are written into `readings`. With a `layout` the input
        is one packed row, B = 1."""
        with recompute.kept(
            lambda: hooked(
                self._blocks[0], steering=self.steering, at=steer_at, watched=self.watched, readings=readings
            ),
            lambda: nullcontext() if layout is None else packed(self._text_config, layout),
        ):
            output: Any = self._parts[0](
                input_ids=input_ids,
                position_ids=position_ids,
                attention_mask=attention_mask,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        last: Tensor = output.last_hidden_state
        return last

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [A, V] of hidden states [A, D]."""
        logits: Tensor = self._parts[1](hidden)
        logits = logits if self._scale == 1 else logits * self._scale
        return logits if self._softcap is None else torch.tanh(logits / self._softcap) * self._softcap

    def forward(
        self, batch: MicroBatch, wanted: Wanted = SCORES
    ) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
        """The fields of `Scored`: a plain tuple, which every wrapper of modules knows how to walk.

        The log-probs and entropies are of the distributions that the tokens were drawn from."""
        with self._recomputing():
            hidden, projections = self.action_hidden(batch, projects=wanted.projections)
            choices = Choices(
                hidden=hidden,
                targets=batch.targets,
                temperature=batch.temperature,
                kept=batch.kept,
                vocabulary=self.vocabulary,
            )
            if wanted.loss_of is not None and not self.shards_head:
                with_loss = chunked_loss(
                    choices,
                    wanted.loss_of,
                    head=self.head,
                    head_weights=[weight for weight in self._parts[1].parameters() if weight.requires_grad],
                    token_by_token=wanted.token_by_token,
                    with_entropy=wanted.entropy,
                )
                return *with_loss, projections
            logprobs, entropy = chunked_logprobs(
                choices, head=self.head, with_entropy=wanted.entropy, most_tokens=batch.most_actions
            )
            loss = None if wanted.loss_of is None else wanted.loss_of(logprobs, slice(0, len(logprobs)))
            return loss, logprobs.detach(), entropy, projections

    def action_hidden(self, batch: MicroBatch, *, projects: bool = True) -> tuple[Tensor, Tensor | None]:
        """Hidden states [A, D] of the positions whose next token the policy chose, and their projections [A, W]."""
        readings = Readings() if projects and self.watched is not None else None
        if self.packs:
            ids, chooses, chosen = (
                flat.unsqueeze(0) for flat in (batch.input_ids, batch.predicts_action, batch.is_action)
            )  # [1, T]
            position_ids, layout = batch.layout.position_ids.unsqueeze(0), batch.layout
        else:
            places, real = batch.layout.padded()  # [B, L], [B, L]
            ids, chooses, chosen = (
                batch.input_ids[places],
                batch.predicts_action[places] & real,
                batch.is_action[places] & real,
            )
            position_ids, layout = None, None
        hidden = self.hidden(
            ids,
            position_ids=position_ids,
            steer_at=self.steered_at(chooses=chooses, chosen=chosen),
            readings=readings,
            layout=layout,
        )
        return hidden[chooses], self._read(readings, chooses)

    def _read(self, readings: Readings | None, chooses: Tensor) -> Tensor | None:
        """The projections [A, W] of the positions [B, T] that choose."""
        if readings is None or self.watched is None:
            return None
        return torch.cat([readings.of_blocks[block][chooses] for block in self.watched.directions], dim=-1)

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        # transformers checkpoints a block's activations when its own `training` is set; its children stay in
        # evaluation mode, so dropout stays off. The flag goes back, since a training block takes no cache.
        for block in self._blocks[0] if self._checkpointing else ():
            block.training = torch.is_grad_enabled()
        try:
            yield
        finally:
            for block in self._blocks[0]:
                block.training = False

    def _compare_with_model(self) -> None:
        ids = torch.arange(4, device=self.device).unsqueeze(0) % self.vocabulary
        with torch.no_grad():
            expected = self.model(input_ids=ids, use_cache=False).logits[0].float()
            found = self.head(self.hidden(ids)[0]).float()
        spread = float(expected.std())
        gap = float((expected - found).abs().max())
        if not gap <= 1e-3 * max(1.0, spread):
            raise ValueError(
                f"{type(base_of(self.model)).__name__}: its logits are not its head on its last hidden state "
                f"(off by {gap:.2g}); "
                "this architecture transforms them in a way that grpo.policy does not know"
            )

    @torch.no_grad()
    def _try_packing(self) -> tuple[bool, str]:
        """Whether the model takes a packed row, by doing so, and if not, why."""
        segments = [Segment(3, (4, 2)), Segment(0, (5,))]
        layout = Layout(segments, device=self.device)
        ids = torch.arange(layout.num_tokens, device=self.device) % self.vocabulary  # [T]
        rows = [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 7, 8], [9, 10, 11, 12, 13]]  # places of the same as sequences
        own = [slice(3, 7), slice(3, 5), slice(0, 5)]
        config = self._text_config
        try:
            heads = config.num_attention_heads
            check_gradient(
                heads=heads,
                key_heads=getattr(config, "num_key_value_heads", None) or heads,
                size=getattr(config, "head_dim", None) or config.hidden_size // heads,
                dtype=self.dtype,
                device=self.device,
            )
            found = self.hidden(ids.unsqueeze(0), position_ids=layout.position_ids.unsqueeze(0), layout=layout)[0]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the code of any architecture raises
            return False, f"{type(error).__name__}: {error}"
        alone = torch.cat([self.hidden(ids[row].unsqueeze(0))[0, part] for row, part in zip(rows, own, strict=True)])
        found = torch.cat([found[3:9], found[9:]])  # [11, D]
        gap, spread = float((found - alone).float().square().mean().sqrt()), float(alone.float().std())
        if not gap <= PACKING_TOLERANCE[self.dtype] * spread:
            return False, f"hidden states off by {gap:.2g}, where they spread by {spread:.2g}"
        return True, ""
