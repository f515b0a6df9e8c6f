"""The policy: a causal language model that the sampler and the trainer call through the same two functions.

`hidden` runs the backbone, `head` turns hidden states into logits; sampling is hidden + head on one position a row,
training is hidden + the chunked loss of `grpo.logprobs`. Because both go through here, what the sampler drew from is
what the trainer scores. Its forward takes a micro-batch and returns loss and log-probs: DDP or ZeRO can wrap it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from grpo import recompute
from grpo import steering as steer
from grpo.attention import check_gradient, packed
from grpo.batch import MicroBatch
from grpo.logprobs import Choices, LossOf, chunked_logprobs, chunked_loss
from grpo.model import base_of
from grpo.packing import Layout, Segment

# Share of the hidden states' spread by which a packed row may differ from rows alone: above rounding, below what a
# wrong mask or position does.
PACKING_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


class Policy(nn.Module):
    """Wraps a model of `grpo.model`. `model` may carry adapters; `steering` is None or applied in every forward."""

    def __init__(self, model: nn.Module) -> None:
        """Raises ValueError where head(hidden(x)) is not the model's own logits, so that nothing is scored wrongly."""
        super().__init__()
        self.model = model
        self.steering: steer.Steering | None = None
        base = base_of(model)
        # Held in a tuple: a module attribute would register the same weights a second time.
        self._parts: tuple[Any, Any] = (base.base_model, base.get_output_embeddings())
        self._blocks = (steer.decoder_blocks(base),)
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

    def steer(self, steering: steer.Steering | None) -> None:
        """Steer every forward from here on, or none. Raises ValueError for a block or width that the model has not."""
        if steering is not None:
            steer.check(steering, self._blocks[0], hidden_size=self.hidden_size)
        self.steering = steering

    def hidden(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        cache: Cache | None = None,
        steer_at: Tensor | None = None,
        layout: Layout | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, D] of `input_ids` [B, T].

        Without a mask, attention is causal and rows are padded on the right. `steer_at` [B, T] bool are the
        positions whose next token is the policy's own. With a `layout` the input is one packed row, B = 1."""
        with recompute.kept(
            lambda: steer.steered(self._blocks[0], self.steering, steer_at),
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
        self,
        batch: MicroBatch,
        loss_of: LossOf | None = None,
        *,
        token_by_token: bool = True,
        with_entropy: bool = True,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Loss [], the action tokens' log-probs under the distributions that they were drawn from, and the entropies
        of these: both [A], nats. The loss alone has a gradient.

        Without `loss_of` there is no loss. `token_by_token` and `with_entropy` as in `grpo.logprobs.chunked_loss`."""
        with self._recomputing():
            choices = Choices(
                hidden=self.action_hidden(batch),
                targets=batch.targets,
                temperature=batch.temperature,
                kept=batch.kept,
                vocabulary=self.vocabulary,
            )
            if loss_of is not None and not self.shards_head:
                return chunked_loss(
                    choices,
                    loss_of,
                    head=self.head,
                    head_weights=[weight for weight in self._parts[1].parameters() if weight.requires_grad],
                    token_by_token=token_by_token,
                    with_entropy=with_entropy,
                )
            logprobs, entropy = chunked_logprobs(
                choices, head=self.head, with_entropy=with_entropy, most_tokens=batch.most_actions
            )
            loss = None if loss_of is None else loss_of(logprobs, slice(0, len(logprobs)))
            return loss, logprobs.detach(), entropy

    def action_hidden(self, batch: MicroBatch) -> Tensor:
        """Hidden states [A, D] of the positions whose next token the policy chose."""
        steers = self.steering is not None
        if self.packs:
            hidden = self.hidden(
                batch.input_ids.unsqueeze(0),
                position_ids=batch.layout.position_ids.unsqueeze(0),
                steer_at=batch.predicts_action.unsqueeze(0) if steers else None,
                layout=batch.layout,
            )[0]  # [T, D]
            return hidden[batch.predicts_action]
        places, real = batch.layout.padded()  # [B, L], [B, L]
        predicts = batch.predicts_action[places] & real
        return self.hidden(batch.input_ids[places], steer_at=predicts if steers else None)[predicts]

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
