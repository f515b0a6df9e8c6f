"""Chunked log-probs are the plain ones, value and gradient, and no [A, V] tensor outlives its chunk."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from grpo import logprobs
from grpo.logprobs import Choices, chunked_logprobs, chunked_loss, kept_mask, tempered
from grpo.types import KeptSets

TOKENS, WIDTH, VOCABULARY = 37, 8, 50
WAYS = ("recomputed", "token by token", "whole")


class Inputs:
    """Random hidden states, a head and targets, in float32."""

    def __init__(self, *, tokens: int = TOKENS, vocabulary: int = VOCABULARY) -> None:
        generator = torch.Generator().manual_seed(0)
        self.vocabulary = vocabulary
        self.hidden = torch.randn(tokens, WIDTH, generator=generator)
        self.weight = torch.randn(vocabulary, WIDTH, generator=generator)
        self.targets = torch.randint(vocabulary, (tokens,), generator=generator)
        self.temperature = torch.tensor([0.5, 1.0, 2.0])[torch.arange(tokens) % 3]
        self.loss_weights = torch.randn(tokens, generator=generator)
        others = torch.randint(vocabulary, (tokens, 4), generator=generator).tolist()
        # Every fifth token was drawn from the whole vocabulary.
        self.kept = KeptSets.of(
            () if i % 5 == 0 else tuple(sorted({target, *ids}))
            for i, (target, ids) in enumerate(zip(self.targets.tolist(), others, strict=True))
        )


def plain(inputs: Inputs, *, kept: KeptSets | None) -> list[Tensor]:
    """Log-probs, entropy and the gradients of hidden states and head, one token at a time, from torch.distributions."""
    hidden, weight = (t.double().requires_grad_() for t in (inputs.hidden, inputs.weight))
    found, entropies = [], []
    sets = [[]] * len(inputs.targets) if kept is None else kept
    for i, (target, listed) in enumerate(zip(inputs.targets.tolist(), sets, strict=True)):
        ids = list(listed) or list(range(inputs.vocabulary))
        logits = (weight[ids] @ hidden[i]) / inputs.temperature[i].double()
        distribution = torch.distributions.Categorical(logits=logits)
        found.append(distribution.log_prob(torch.tensor(ids.index(target))))
        entropies.append(distribution.entropy())
    (torch.stack(found) * inputs.loss_weights).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return [t.detach().float() for t in (torch.stack(found), torch.stack(entropies), hidden.grad, weight.grad)]


def choices_of(inputs: Inputs, hidden: Tensor, *, kept: KeptSets | None) -> Choices:
    return Choices(
        hidden=hidden, targets=inputs.targets, temperature=inputs.temperature, kept=kept, vocabulary=inputs.vocabulary
    )


def chunked(inputs: Inputs, *, kept: KeptSets | None, way: str = "recomputed") -> list[Tensor]:
    """The same four from the functions under test: logits computed again in the backward pass, or a loss whose gradient
    is taken chunk by chunk, at once or after a pass for the log-probs."""
    hidden, weight = (t.clone().requires_grad_() for t in (inputs.hidden, inputs.weight))

    def head(of: Tensor) -> Tensor:
        return nn.functional.linear(of, weight)

    choices = choices_of(inputs, hidden, kept=kept)
    if way == "recomputed":
        found, entropies = chunked_logprobs(choices, head=head, with_entropy=True)
        (found * inputs.loss_weights).sum().backward()
    else:
        loss, found, entropies = chunked_loss(
            choices,
            lambda logprobs, part: (logprobs * inputs.loss_weights[part]).sum(),
            head=head,
            head_weights=[weight],
            token_by_token=way == "token by token",
            with_entropy=True,
        )
        assert_close(loss.detach(), (found * inputs.loss_weights).sum(), rtol=1e-5, atol=1e-5)
        loss.backward()
    assert entropies is not None
    assert hidden.grad is not None
    assert weight.grad is not None
    return [found.detach(), entropies.detach(), hidden.grad, weight.grad]


@pytest.mark.parametrize("tokens_per_chunk", [1, 2, 7, 36, 37, 1000])
@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_any_chunk_size_gives_the_log_probs_entropies_and_gradients_of_one_token_at_a_time(
    monkeypatch, tokens_per_chunk, restricted, way
):
    inputs = Inputs()
    kept = inputs.kept if restricted else None
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", {"cpu": tokens_per_chunk * VOCABULARY})
    for found, expected in zip(chunked(inputs, kept=kept, way=way), plain(inputs, kept=kept), strict=True):
        assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_vocabulary_above_the_chunks_elements_goes_token_by_token(monkeypatch):
    inputs = Inputs()
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", {"cpu": VOCABULARY - 1})
    for found, expected in zip(chunked(inputs, kept=None), plain(inputs, kept=None), strict=True):
        assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_with_and_without_a_gradient_the_values_are_the_same_bits(monkeypatch):
    inputs = Inputs()
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", {"cpu": 7 * VOCABULARY})
    with_gradient = chunked(inputs, kept=inputs.kept)[:2]
    with torch.no_grad():
        without = chunked_logprobs(
            choices_of(inputs, inputs.hidden, kept=inputs.kept),
            head=lambda h: nn.functional.linear(h, inputs.weight),
            with_entropy=True,
        )
    for one, two in zip(with_gradient, without, strict=True):
        assert torch.equal(one, two)


def test_temperatures_mixed_in_one_batch_score_as_each_alone():
    inputs = Inputs()
    mixed = chunked(inputs, kept=None)[0]
    for temperature in (0.5, 1.0, 2.0):
        alone = Inputs()
        alone.temperature = torch.full((TOKENS,), temperature)
        rows = inputs.temperature == temperature
        assert torch.equal(mixed[rows], chunked(alone, kept=None)[0][rows])


def test_leaving_the_temperature_out_would_be_seen():
    inputs = Inputs()
    hot = chunked(inputs, kept=None)[0]
    inputs.temperature = torch.ones(TOKENS)
    changed = (hot - chunked(inputs, kept=None)[0]).abs()
    assert int((changed > 0.01).sum()) >= 20  # two thirds of the tokens are not at temperature 1


def test_entropy_has_no_gradient():
    inputs = Inputs()
    hidden = inputs.hidden.clone().requires_grad_()
    logprobs, entropy = chunked_logprobs(
        choices_of(inputs, hidden, kept=None),
        head=lambda h: nn.functional.linear(h, inputs.weight),
        with_entropy=True,
    )
    assert entropy is not None
    (entropy.sum() + 0 * logprobs.sum()).backward()
    assert hidden.grad is None or not hidden.grad.any()


def test_logits_in_bfloat16_are_normalised_in_float32():
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = tempered(logits, temperature=torch.ones(5))
    assert found.dtype == torch.float32
    assert_close(found.log_softmax(-1).exp().sum(-1), torch.ones(5), rtol=1e-6, atol=0)


def test_a_token_is_certain_when_nothing_else_was_kept():
    inputs = Inputs()
    alone = KeptSets.of((target,) for target in inputs.targets.tolist())
    found, entropy, to_hidden, _ = chunked(inputs, kept=alone)
    assert not found.any()
    assert not entropy.any()
    assert not to_hidden.any()


def test_a_mask_holds_exactly_the_kept_ids_and_everything_for_an_empty_list():
    mask = kept_mask(KeptSets.of([(2, 0), (), (3,)]), vocabulary=4, device=torch.device("cpu"))
    assert mask.int().tolist() == [[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]]
    assert kept_mask(KeptSets.of([(), ()]), vocabulary=2, device=torch.device("cpu")).all()


def test_kept_sets_hold_an_id_in_four_bytes_and_are_cut_and_joined_without_loss():
    sets = [(2, 0), (), (3,), (151_935, 7, 1), ()]
    kept = KeptSets.of(sets)
    assert (len(kept), [tuple(ids) for ids in kept]) == (5, sets)
    assert kept.ids.itemsize * len(kept.ids) == 4 * 6
    for start in range(5):
        for stop in range(start, 7):
            assert [tuple(ids) for ids in kept.part(start, stop)] == sets[start:stop]
    assert KeptSets.joined([kept.part(0, 2), kept.part(2, 3), kept.part(3, 9)]) == kept


# --- memory -------------------------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """The most bytes that the tensors made inside hold at once, and the largest of them."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        self.largest = max(self.largest, *(size for _, size in self._alive.values()))
        return result


MANY_TOKENS, LARGE_VOCABULARY = 512, 4096
MASK_BYTES = MANY_TOKENS * LARGE_VOCABULARY  # a bool [A, V], the smallest tensor of that shape
LOGITS_BYTES = 4 * MASK_BYTES


def memory(monkeypatch: pytest.MonkeyPatch, *, tokens_per_chunk: int, restricted: bool, way: str) -> LiveBytes:
    """Of a forward and a backward pass."""
    inputs = Inputs(tokens=MANY_TOKENS, vocabulary=LARGE_VOCABULARY)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", {"cpu": tokens_per_chunk * LARGE_VOCABULARY})
    with LiveBytes() as live:
        chunked(inputs, kept=inputs.kept if restricted else None, way=way)
    return live


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_forward_and_backward_hold_a_few_chunks_of_logits_and_never_so_much_as_a_mask_of_all(
    monkeypatch, restricted, way
):
    live = memory(monkeypatch, tokens_per_chunk=4, restricted=restricted, way=way)
    assert live.largest <= 4 * WIDTH * LARGE_VOCABULARY  # the head's weight; a chunk of logits is half of it
    assert live.peak < MASK_BYTES / 2


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_scoring_without_chunks_would_be_seen_to_hold_all_logits(monkeypatch, restricted, way):
    live = memory(monkeypatch, tokens_per_chunk=MANY_TOKENS, restricted=restricted, way=way)
    assert live.largest == LOGITS_BYTES
    assert live.peak >= 3 * LOGITS_BYTES
