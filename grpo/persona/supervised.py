"""Steering in supervised finetuning, where another trainer calls the model and the labels say what is the completion.

Preventative steering as in arXiv 2507.21509: +v while the traces are learned, and off afterwards."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from grpo import recompute
from grpo.policy import Policy
from grpo.steering import Steering, hooked


@contextmanager
def steered_by_labels(policy: Policy, steering: Steering, *, ignored_label: int) -> Iterator[None]:
    """Steer every call of `policy.model` inside that is given labels, at the positions of `steering`.

    Labels [B, T] are `ignored_label` but for the tokens that are learned. What calls the policy's own forwards, such as
    a sampler between two steps, is not steered. Raises ValueError for a call without labels."""
    during = ExitStack()

    def before(module: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        if options.get("labels") is None:
            raise ValueError("a forward without labels does not say where its completions are, so it cannot be steered")
        at = steered_positions(options["labels"] != ignored_label, steering)
        during.enter_context(recompute.kept(lambda: hooked(policy.blocks, steering=steering, at=at)))

    def after(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        during.close()

    with ExitStack() as hooks:
        hooks.callback(policy.model.register_forward_pre_hook(before, with_kwargs=True).remove)
        hooks.callback(policy.model.register_forward_hook(after, always_call=True).remove)
        yield


def steered_positions(learned: Tensor, steering: Steering) -> Tensor:
    """Where to steer rows in which the tokens `learned` [B, T] are the completion: as when they had been sampled."""
    chooses = torch.zeros_like(learned)
    chooses[:, :-1] = learned[:, 1:]
    return steering.where(chooses=chooses, chosen=learned)
