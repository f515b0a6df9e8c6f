"""Which tokens top-k, top-p and min-p leave to draw from."""

import torch
from torch import Tensor


def kept_tokens(logits: Tensor, *, top_k: int, top_p: float, min_p: float) -> Tensor | None:
    """Mask [R, V] of the tokens left of tempered `logits` [R, V]; None when all three are off.

    They apply in the order top-k, top-p, min-p. top_p looks at the probabilities that top-k left, renormalised, as
    transformers does; the likeliest token always stays. Sources: Holtzman et al. (2020), arXiv 1904.09751 (top-p);
    Nguyen et al. (2024), arXiv 2407.01082 (min-p)."""
    if top_k == 0 and top_p == 1 and min_p == 0:
        return None
    kept = torch.ones_like(logits, dtype=torch.bool)
    if 0 < top_k < logits.shape[-1]:
        # Ties at the edge are cut by rank, so that exactly k stay.
        kept = torch.zeros_like(kept).scatter_(-1, logits.topk(top_k, dim=-1).indices, True)
    if top_p < 1:
        probabilities = logits.masked_fill(~kept, -torch.inf).softmax(dim=-1)
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered  # probability of all likelier tokens
        kept &= torch.zeros_like(kept).scatter_(-1, order, before < top_p)
    if min_p > 0:
        probabilities = logits.softmax(dim=-1)
        kept &= probabilities >= min_p * probabilities.amax(dim=-1, keepdim=True)
    return kept
