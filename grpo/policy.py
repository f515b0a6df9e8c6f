"""The policy: a causal language model that the sampler and the trainer call through the same two functions.

`hidden` runs the backbone, `head` turns hidden states into logits; sampling is hidden + head on one position a row,
training is hidden + the chunked log-probs of `grpo.logprobs`. Because both go through here, what the sampler drew
from is what the trainer scores. Its forward takes a micro-batch and returns log-probs: DDP or ZeRO can wrap it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from grpo import steering as steer
from grpo.batch import MicroBatch
from grpo.logprobs import chunked_logprobs
from grpo.model import base_of


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
        self._compare_with_model()

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
    ) -> Tensor:
        """Final hidden states [B, T, D] of `input_ids` [B, T].

        Without a mask, attention is causal and rows are padded on the right. `steer_at` [B, T] bool are the
        positions whose next token is the policy's own."""
        with steer.steered(self._blocks[0], self.steering, steer_at):
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

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-prob of each action token under the distribution it was drawn from, and its entropy: both [A], nats."""
        steer_at = batch.predicts_action if self.steering is not None else None
        with self._recomputing():
            hidden = self.hidden(batch.input_ids, steer_at=steer_at)  # [B, T, D]
            return chunked_logprobs(
                hidden[batch.predicts_action],  # [A, D]
                batch.targets,
                head=self.head,
                temperature=batch.temperature,
                vocabulary=self.vocabulary,
                kept=batch.kept,
                most_tokens=batch.most_actions,
            )

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
