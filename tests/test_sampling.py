"""The native sampler: what it draws depends on noise keys alone, and the trainer scores it alike."""

import random
from collections.abc import Sequence

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from grpo.batch import TrainedRollout, micro_batches
from grpo.config import SamplingConfig
from grpo.model import base_of, load_tokenizer
from grpo.policy import Policy
from grpo.sampling import rows
from grpo.sampling.cache import SlotCache
from grpo.sampling.drawing import BLOCK_TOKENS
from grpo.sampling.native import NativeSampler
from grpo.sampling.noise import gumbel, signed
from grpo.sampling.protocol import Completion, Request
from grpo.sampling.restrict import kept_tokens
from grpo.sampling.rows import LEAST_WIDTH_TOKENS
from grpo.seeds import key
from grpo.steering import Steering
from grpo.tasks.list_machine import tokenizer
from grpo.types import Rollout, StopReason
from tests.chatml import chatml_tokenizer
from tests.conftest import tiny_config, tiny_policy

END = 95


def sampler_of(policy: Policy, **changes: object) -> NativeSampler:
    config = SamplingConfig.model_validate({"max_completion_tokens": 24, "max_rows": 16} | changes)
    return NativeSampler(policy, config, end_token_ids=(END,), tokenizer=tokenizer())


def requests_of(number: int, *, rollouts: int, temperature: float = 1.0) -> list[Request]:
    rng = random.Random(number)
    return [
        Request(
            prompt_ids=tuple(rng.randrange(95) for _ in range(rng.randrange(1, 20))),
            keys=tuple(key(0, "test", index, attempt) for attempt in range(rollouts)),
            temperature=temperature,
        )
        for index in range(number)
    ]


def drawn(sampler: NativeSampler, requests: Sequence[Request]) -> dict[int, Completion]:
    """Completions by noise key."""
    return {requests[c.request].keys[c.index]: c for c in sampler.sample(requests)}


def rollouts_of(requests: Sequence[Request], completions: Sequence[Completion]) -> list[Rollout]:
    rollouts = []
    for c in completions:
        prompt = requests[c.request].prompt_ids
        zeros = (0.0,) * len(prompt)
        rollouts.append(
            Rollout(
                problem_id=str(c.request),
                attempt=c.index,
                token_ids=prompt + c.token_ids,
                action_mask=(False,) * len(prompt) + (True,) * len(c.token_ids),
                logprobs=zeros + c.logprobs,
                kept=c.kept,
                stop_reason=c.stop_reason,
                temperature=requests[c.request].temperature,
                policy_step=0,
            )
        )
    return rollouts


def largest_gap(policy: Policy, requests: Sequence[Request], completions: Sequence[Completion]) -> float:
    """Largest difference between the sampler's and the trainer's log-probs, over the bound of the design."""
    trained = [
        TrainedRollout(rollout=r, advantage=1.0, group_tokens=r.num_actions, group_rollouts=1)
        for r in rollouts_of(requests, completions)
    ]
    batches = micro_batches(
        [trained], tokens_per_micro_batch=400, limit_tokens=24, aggregation="token", device=torch.device("cpu")
    )
    gaps = []
    with torch.no_grad():
        for batch in batches:
            std = float(policy.head(policy.action_hidden(batch)[0]).std())
            temperature = requests[0].temperature
            bound = 1e-5 * max(1.0, 1 / temperature) * max(1.0, std)
            gaps.append(float((policy(batch)[1] - batch.sampler_logprobs).abs().max()) / bound)
    return max(gaps)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 2.0])
def test_sampler_and_trainer_log_probs_agree_to_rounding(policy, temperature):
    requests = requests_of(6, rollouts=5, temperature=temperature)
    completions = list(sampler_of(policy).sample(requests))
    assert len(completions) == 30
    assert largest_gap(policy, requests, completions) < 1


@pytest.mark.parametrize(
    "restriction", [{"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 20, "top_p": 0.9, "min_p": 0.05}]
)
def test_log_probs_agree_under_a_restriction_and_the_token_is_in_its_kept_set(restriction):
    policy = tiny_policy("qwen3")
    requests = requests_of(6, rollouts=4, temperature=0.8)
    completions = list(sampler_of(policy, **restriction).sample(requests))
    assert all(token in kept or not kept for c in completions for token, kept in zip(c.token_ids, c.kept, strict=True))
    assert any(0 < len(kept) < 96 for c in completions for kept in c.kept)
    assert largest_gap(policy, requests, completions) < 1


@pytest.mark.parametrize("max_rows", [8, 16, 64, 512])
def test_any_order_and_any_grouping_draw_the_same_tokens_with_the_same_log_probs(policy, max_rows):
    requests = requests_of(12, rollouts=6)
    expected = drawn(sampler_of(policy), requests)
    shuffled = [Request(r.prompt_ids, (k,), r.temperature) for r in requests for k in r.keys]
    random.Random(1).shuffle(shuffled)
    found = drawn(sampler_of(policy, max_rows=max_rows), shuffled)
    assert {k: (c.token_ids, c.logprobs) for k, c in found.items()} == {
        k: (c.token_ids, c.logprobs) for k, c in expected.items()
    }


def widest_tie(
    policy: Policy, requests: Sequence[Request], first: dict[int, Completion], second: dict[int, Completion]
) -> float:
    """How far below the best sum of logit and noise the worse token lies where two samplers first differ, at most.

    0 where they differ nowhere. The sums are those of `policy`'s own forward."""
    widest = 0.0
    for request in requests:
        for noise_key in request.keys:
            pair = first[noise_key].token_ids, second[noise_key].token_ids
            if pair[0] == pair[1]:
                continue
            at = next(i for i, (a, b) in enumerate(zip(*pair, strict=False)) if a != b)
            ids = torch.tensor([request.prompt_ids + pair[0][:at]])
            with torch.no_grad():
                logits = policy.head(policy.hidden(ids)[:, -1]).float() / request.temperature  # [1, V]
            assert logits.shape[-1] <= BLOCK_TOKENS  # one block, so that the only round is among its tokens
            noise = gumbel(torch.tensor([signed(noise_key)]), torch.tensor([at]), count=logits.shape[-1])
            sums = (logits + noise)[0]
            widest = max(widest, float(sums.max() - min(sums[pair[0][at]], sums[pair[1][at]])))
    return widest


@pytest.mark.slow
def test_on_other_threads_a_token_differs_only_where_two_are_tied(policy):
    requests = requests_of(12, rollouts=6)
    first = drawn(sampler_of(policy, max_rows=16), requests)
    torch.set_num_threads(2)
    second = drawn(sampler_of(policy, max_rows=256), requests)
    assert widest_tie(policy, requests, first, second) < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_token_differs_from_the_cpus_only_where_two_are_tied():
    policy, on_gpu = tiny_policy("qwen3"), tiny_policy("qwen3").to("cuda")
    requests = requests_of(12, rollouts=6)
    first, second = drawn(sampler_of(policy), requests), drawn(sampler_of(on_gpu), requests)
    assert widest_tie(policy, requests, first, second) < 1e-5


def test_a_policy_that_is_off_by_a_thousandth_differs_where_nothing_is_tied():
    policy, other = tiny_policy("qwen3"), tiny_policy("qwen3")
    with torch.no_grad():
        base_of(other.model).get_output_embeddings().weight *= 1.001
    requests = requests_of(12, rollouts=6)
    first, second = drawn(sampler_of(policy), requests), drawn(sampler_of(other), requests)
    assert widest_tie(policy, requests, first, second) > 1e-5


@pytest.mark.parametrize("restriction", [{"top_k": 5}, {"top_p": 0.7}, {"top_k": 20, "top_p": 0.9, "min_p": 0.05}])
def test_under_a_restriction_too_any_order_and_any_grouping_draw_the_same_tokens_of_the_same_sets(restriction):
    policy = tiny_policy("qwen3")
    requests = requests_of(12, rollouts=6)
    expected = drawn(sampler_of(policy, max_rows=16, **restriction), requests)
    shuffled = [Request(r.prompt_ids, (k,), r.temperature) for r in requests for k in r.keys]
    random.Random(1).shuffle(shuffled)
    for max_rows in (8, 512):
        found = drawn(sampler_of(policy, max_rows=max_rows, **restriction), shuffled)
        assert {k: (c.token_ids, c.logprobs, c.kept) for k, c in found.items()} == {
            k: (c.token_ids, c.logprobs, c.kept) for k, c in expected.items()
        }


@pytest.mark.parametrize("restriction", [{}, {"top_k": 20, "top_p": 0.9}])
def test_in_bfloat16_sampler_and_trainer_log_probs_agree_to_its_own_rounding(policy, restriction):
    """A number of bfloat16 has 8 bits: rounding the largest logit once moves it by up to 1/256 of its size.

    That is the bound, 0.025 to 0.16 nats, where float32 is held to 1e-5; models this small are measured at 1e-4."""
    policy.to(torch.bfloat16)
    requests = requests_of(6, rollouts=5)
    completions = list(sampler_of(policy, **restriction).sample(requests))
    rollouts = rollouts_of(requests, completions)
    trained = [TrainedRollout(rollout=r, advantage=1.0, group_tokens=r.num_actions, group_rollouts=1) for r in rollouts]
    (batch,) = micro_batches(
        [trained], tokens_per_micro_batch=10_000, limit_tokens=24, aggregation="token", device=torch.device("cpu")
    )
    with torch.no_grad():
        largest = float(policy.head(policy.action_hidden(batch)[0]).abs().max())
        gap = float((policy(batch)[1] - batch.sampler_logprobs).abs().max())
    assert gap < largest / 256


# --- stop strings -----------------------------------------------------------------------------------------------------

STORY = "one two three STOP four five six"


def metaspace_tokenizer(texts: Sequence[str], *, vocab_size: int) -> PreTrainedTokenizerBase:
    """A BPE in the manner of SentencePiece: a space is the beginning of the word after it."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<unk>", "</s>"], show_progress=False)
    bpe.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {
    # Of words, and of letters and pairs.
    "byte-level words": lambda: chatml_tokenizer([STORY] * 9, vocab_size=600),
    "byte-level pieces": lambda: chatml_tokenizer([STORY] * 9, vocab_size=263),
    "metaspace words": lambda: metaspace_tokenizer([STORY + " a"] * 9, vocab_size=200),
    "metaspace pieces": lambda: metaspace_tokenizer([STORY + " a"] * 9, vocab_size=26),
}


@pytest.mark.parametrize("stop", ["STOP ", "STOP", " three S", "e STOP f", "wo three STOP fo", " "])
@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_a_completion_ends_at_the_first_token_with_which_its_text_holds_the_stop_string(monkeypatch, name, stop):
    text = TOKENIZERS[name]()
    script = text.encode(STORY, add_special_tokens=False)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(text), **sizes)
    policy = Policy(LlamaForCausalLM(config).eval())
    sampler = NativeSampler(
        policy,
        SamplingConfig(max_completion_tokens=len(script), stop_strings=[stop]),
        end_token_ids=[text.eos_token_id],
        tokenizer=text,
    )

    def scripted(logits: Tensor, *, keys: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor(script)[positions.clamp(max=len(script) - 1)], torch.zeros(len(logits))

    monkeypatch.setattr(rows, "draw_tokens", scripted)
    (completion,) = sampler.sample([Request((3,), (1,), 1.0)])
    shortest = next(n for n in range(1, len(script) + 1) if stop in text.decode(script[:n]))
    assert completion.token_ids == tuple(script[:shortest])
    assert completion.stop_reason is StopReason.STOP_STRING
    assert shortest < len(script)


def test_the_stop_strings_of_these_tests_span_several_tokens_of_each_tokenizer():
    for make in TOKENIZERS.values():
        pieces = [make().decode([token]) for token in make().encode(STORY, add_special_tokens=False)]
        assert not any("wo three STOP fo" in piece or "e STOP f" in piece for piece in pieces)


# --- which tokens are left --------------------------------------------------------------------------------------------

FOUR = (0.5, 0.3, 0.15, 0.05)
SIX = (0.4, 0.25, 0.15, 0.1, 0.06, 0.04)
TIED = (0.3, 0.15, 0.15, 0.15, 0.15, 0.1)


def kept_ranks(probabilities: Sequence[float], *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> set[int]:
    """Places, from the likeliest, of the tokens that are left; the same with the ids in any order."""
    found = set()
    for seed in range(5):
        order = random.Random(seed).sample(range(len(probabilities)), len(probabilities))
        logits = torch.tensor([[probabilities[rank] for rank in order], probabilities]).log() + 3
        mask = kept_tokens(logits, top_k=top_k, top_p=top_p, min_p=min_p)
        assert mask is not None
        in_rank_order = tuple(mask[1].nonzero().flatten().tolist())
        if len(set(probabilities)) == len(probabilities):
            assert {order[i] for i in mask[0].nonzero().flatten().tolist()} == set(in_rank_order)
        found.add(in_rank_order)
    (ranks,) = found
    return set(ranks)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.01, {0}),
        (0.49, {0}),
        (0.51, {0, 1}),
        (0.79, {0, 1}),
        (0.81, {0, 1, 2}),
        (0.94, {0, 1, 2}),
        (0.96, {0, 1, 2, 3}),
    ],
)
def test_top_p_leaves_the_fewest_tokens_that_have_it_together(top_p, expected):
    assert kept_ranks(FOUR, top_p=top_p) == expected


def test_top_p_is_reached_exactly_by_tokens_whose_sum_it_is():
    exact = (0.5, 0.25, 0.125, 0.125)  # without rounding in any float
    assert kept_ranks(exact, top_p=0.75) == {0, 1}


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5])
def test_top_k_leaves_exactly_k_tokens_and_the_likeliest_ones(top_k):
    assert kept_ranks(SIX, top_k=top_k) == set(range(top_k))


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5])
def test_among_ties_top_k_still_leaves_exactly_k_tokens(top_k):
    kept = kept_ranks(TIED, top_k=top_k)
    assert len(kept) == top_k
    assert 0 in kept
    assert top_k == 6 or 5 not in kept


def test_a_top_k_of_the_whole_vocabulary_or_more_leaves_everything():
    assert kept_ranks(SIX, top_k=6) == kept_ranks(SIX, top_k=100) == set(range(6))


@pytest.mark.parametrize(
    ("min_p", "expected"),
    [(0.05, {0, 1, 2, 3}), (0.11, {0, 1, 2}), (0.29, {0, 1, 2}), (0.31, {0, 1}), (0.59, {0, 1}), (0.61, {0})],
)
def test_min_p_leaves_what_has_that_share_of_the_likeliest_ones_probability(min_p, expected):
    assert kept_ranks(FOUR, min_p=min_p) == expected


@pytest.mark.parametrize(
    ("restriction", "expected"),
    [
        # Of the four that top-k leaves, renormalised, two have 0.72 and three have 0.89; of all six, two have 0.65.
        ({"top_k": 4, "top_p": 0.7}, {0, 1}),
        ({"top_p": 0.7}, {0, 1, 2}),
        ({"top_k": 4, "top_p": 0.8}, {0, 1, 2}),
        ({"top_k": 2, "top_p": 0.99, "min_p": 0.01}, {0, 1}),
        # 0.25 and 0.15 are 0.625 and 0.375 of 0.4.
        ({"top_k": 4, "top_p": 0.8, "min_p": 0.3}, {0, 1, 2}),
        ({"top_k": 4, "top_p": 0.8, "min_p": 0.4}, {0, 1}),
        ({"top_k": 4, "top_p": 0.8, "min_p": 0.63}, {0}),
        ({"top_k": 5, "top_p": 0.97, "min_p": 0.2}, {0, 1, 2, 3}),
    ],
)
def test_top_k_top_p_and_min_p_together_leave_what_hand_counting_leaves(restriction, expected):
    assert kept_ranks(SIX, **restriction) == expected


def test_with_all_three_off_there_is_no_mask():
    assert kept_tokens(torch.zeros(2, 6), top_k=0, top_p=1.0, min_p=0.0) is None


# --- steering and adapters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_steered_sampling_is_scored_alike_and_differs_from_unsteered(name):
    policy = tiny_policy(name)
    requests = requests_of(6, rollouts=4)
    plain = drawn(sampler_of(policy), requests)
    vector = torch.randn(policy.hidden_size, generator=torch.Generator().manual_seed(0))
    sampler = sampler_of(policy)
    sampler.steer(Steering(vectors={0: vector}, coefficient=2.0))
    completions = list(sampler.sample(requests))
    assert largest_gap(policy, requests, completions) < 1
    assert any(plain[requests[c.request].keys[c.index]].token_ids != c.token_ids for c in completions)
    sampler.steer(None)
    assert largest_gap(policy, requests, completions) > 100
    assert drawn(sampler, requests) == plain


def test_a_vector_of_another_width_or_block_is_refused():
    policy = tiny_policy("llama")
    with pytest.raises(ValueError, match="the model's is"):
        policy.steer(Steering(vectors={0: torch.zeros(5)}, coefficient=1.0))
    with pytest.raises(ValueError, match="blocks 0 to 1"):
        policy.steer(Steering(vectors={2: torch.zeros(32)}, coefficient=1.0))


def test_eager_attention_samples_what_sdpa_samples():
    requests = requests_of(6, rollouts=4)
    one, two = (drawn(sampler_of(tiny_policy("gemma3", attention=a)), requests) for a in ("sdpa", "eager"))
    assert {k: c.token_ids for k, c in one.items()} == {k: c.token_ids for k, c in two.items()}


def test_the_tokenizer_of_the_list_machine_has_96_tokens_and_loses_nothing():
    text = load_tokenizer(tiny_config("llama"))
    assert len(text) == 96
    assert text.decode(text.encode(">lr?>13431 l34311")) == ">lr?>13431 l34311"


@pytest.mark.parametrize("max_rows", [8, 10, 13, 200])
def test_each_prompt_is_prefilled_once_even_where_a_group_is_cut_by_the_rows(max_rows, monkeypatch):
    policy = tiny_policy("llama")
    prefilled: list[int] = []
    original = Policy.hidden

    def counting(self: Policy, input_ids: torch.Tensor, **options: object) -> torch.Tensor:
        if options.get("position_ids") is None:  # a prefill; a decode names the position of each row
            prefilled.append(len(input_ids))
        return original(self, input_ids, **options)  # type: ignore[arg-type]

    requests = requests_of(3, rollouts=20)
    expected = drawn(sampler_of(policy, max_rows=512), requests)
    sampler = sampler_of(policy, max_rows=max_rows)
    monkeypatch.setattr(Policy, "hidden", counting)
    assert drawn(sampler, requests).keys() == expected.keys()
    assert sum(prefilled) == 3


@pytest.mark.parametrize("prefill_tokens", [1, 20, 60, 10_000])
def test_a_prefill_holds_no_more_tokens_than_asked_for_unless_one_prompt_is_longer(prefill_tokens, monkeypatch):
    policy = tiny_policy("llama")
    sampler = sampler_of(policy, max_rows=64, prefill_tokens=prefill_tokens)
    shapes: list[tuple[int, int]] = []
    original = Policy.hidden

    def noting(self: Policy, input_ids: torch.Tensor, **options: object) -> torch.Tensor:
        if options.get("position_ids") is None:
            shapes.append((input_ids.shape[0], input_ids.shape[1]))
        return original(self, input_ids, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Policy, "hidden", noting)
    requests = requests_of(12, rollouts=2)
    list(sampler.sample(requests))
    assert sum(rows for rows, _ in shapes) == 12
    assert all(rows == 1 or rows * length <= prefill_tokens for rows, length in shapes)
    padded = {16 if len(request.prompt_ids) <= 17 else 24 for request in requests}
    assert {length for _, length in shapes} == padded
    assert (len(shapes) == len(padded)) == (prefill_tokens == 10_000)
    assert (len(shapes) == 12) == (prefill_tokens <= 20)


def test_attention_looks_no_further_than_the_longest_row_however_many_have_gone_through(monkeypatch):
    policy = tiny_policy("llama")
    widths: list[int] = []
    original = SlotCache.write_at

    def noted(self: SlotCache, positions: torch.Tensor, *, width: int) -> None:
        widths.append(width)
        original(self, positions, width=width)

    monkeypatch.setattr(SlotCache, "write_at", noted)
    requests = requests_of(20, rollouts=8)
    list(sampler_of(policy, max_rows=8).sample(requests))
    longest = max(len(request.prompt_ids) for request in requests)
    # Each of eight rows sees 20 completions go by: without looking at who has left, attention would grow to hundreds.
    assert len(widths) > 3 * LEAST_WIDTH_TOKENS
    assert longest + 24 < max(widths) == LEAST_WIDTH_TOKENS
