"""Drawing in two rounds: each token as often as its probability says, and alike for rounded logits."""

import math

import pytest
import torch

from grpo.sampling.drawing import BLOCK_TOKENS, block_masses, draw_tokens


def drawn(logits: torch.Tensor, *, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`number` tokens from one row of logits [V], each by a key of its own, and their log-probs."""
    keys = torch.arange(number) * 2_654_435_761 - 2**47
    return draw_tokens(logits.expand(number, -1), keys=keys, positions=torch.zeros(number, dtype=torch.long))


@pytest.mark.parametrize("vocabulary", [5, BLOCK_TOKENS, BLOCK_TOKENS + 1, 300, 3 * BLOCK_TOKENS])
def test_tokens_come_as_often_as_their_probability_says(vocabulary):
    """Chi-square less its degrees of freedom, in its own standard deviations; above 4.5 has a chance below 1e-4."""
    number = 60_000
    logits = 1.5 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    tokens, logprobs = drawn(logits, number=number)
    assert torch.allclose(logprobs, logits.log_softmax(0)[tokens], atol=2e-6)
    expected = number * logits.double().softmax(0)
    common = expected > 5
    counts = tokens.bincount(minlength=vocabulary)
    square = float(((counts - expected)[common] ** 2 / expected[common]).sum())
    freedom = int(common.sum()) - 1
    assert (square - freedom) / math.sqrt(2 * max(1, freedom)) < 4.5


def test_tokens_left_out_are_never_drawn_even_where_they_fill_whole_blocks():
    logits = torch.full((5 * BLOCK_TOKENS + 7,), -torch.inf)
    left = torch.tensor([2 * BLOCK_TOKENS, 5 * BLOCK_TOKENS + 6])
    logits[left] = torch.tensor([1.0, 0.0])
    tokens, logprobs = drawn(logits, number=5000)
    assert set(tokens.tolist()) == set(left.tolist())
    assert float((tokens == left[0]).float().mean()) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)
    assert torch.allclose(logprobs, logits.log_softmax(0)[tokens], atol=2e-6)


def test_a_token_beyond_the_vocabulary_is_never_drawn():
    tokens, _ = drawn(torch.zeros(BLOCK_TOKENS + 1), number=20_000)
    assert int(tokens.max()) == BLOCK_TOKENS  # the last block has one token
    assert int((tokens == BLOCK_TOKENS).sum()) == pytest.approx(20_000 / 129, abs=4 * math.sqrt(20_000 / 129))


def test_the_two_rounds_draw_independently():
    """Of equally likely tokens, the place in a block says nothing of the block."""
    tokens, _ = drawn(torch.zeros(4 * BLOCK_TOKENS), number=50_000)
    blocks, places = (tokens // BLOCK_TOKENS).double(), (tokens % BLOCK_TOKENS).double()
    for block in range(4):
        of_block = places[blocks == block]
        assert len(of_block) == pytest.approx(12_500, abs=4 * math.sqrt(12_500))
        assert float(of_block.mean()) == pytest.approx(63.5, abs=4 * 37 / math.sqrt(len(of_block)))


def test_a_row_draws_alike_beside_any_others_and_with_padding_at_the_end_of_the_vocabulary():
    logits = torch.randn(40, 1000, generator=torch.Generator().manual_seed(3))
    keys, positions = torch.arange(40) * 7919, torch.arange(40)
    tokens, logprobs = draw_tokens(logits, keys=keys, positions=positions)
    for row in (0, 17, 39):
        alone = draw_tokens(logits[[row]], keys=keys[[row]], positions=positions[[row]])
        assert (alone[0].item(), alone[1].item()) == (tokens[row].item(), logprobs[row].item())
    padded = torch.cat([logits, torch.full((40, 24), -torch.inf)], dim=1)
    assert torch.equal(draw_tokens(padded, keys=keys, positions=positions)[0], tokens)


def test_rounding_flips_about_as_many_tokens_as_in_one_round():
    """With logits moved by up to 3e-3; the chance in one round is the mean difference of two tokens' moves, halved."""
    generator = torch.Generator().manual_seed(1)
    logits = 2.75 * torch.randn(1000, generator=generator)
    moved = logits + 3e-3 * (2 * torch.rand(1000, generator=generator) - 1)
    number = 60_000
    flips = int((drawn(logits, number=number)[0] != drawn(moved, number=number)[0]).sum())
    p, change = logits.double().softmax(0), (moved - logits).double()
    in_one_round = number * float((p[:, None] * p * (change[:, None] - change).abs()).sum()) / 2
    assert in_one_round > 20
    assert in_one_round / 2 < flips < 2 * in_one_round + 5 * math.sqrt(in_one_round)


def test_masses_of_blocks_add_up_to_one():
    probabilities = torch.randn(6, 1000, generator=torch.Generator().manual_seed(0)).softmax(-1)
    masses = block_masses(probabilities)
    assert masses.shape == (6, 32)
    assert float(masses[:, 8:].sum()) == 0
    assert torch.allclose(masses.sum(-1), torch.ones(6))
    assert torch.allclose(masses[:, 7], probabilities[:, 896:].sum(-1))
