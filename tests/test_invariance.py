"""A rollout's tokens and log-probs are the same bits whatever is drawn beside it, and the self-test sees where not."""

import gc
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from grpo.config import SamplingConfig
from grpo.policy import Policy
from grpo.sampling import rows, trials
from grpo.sampling.cache import SlotCache
from grpo.sampling.decoder import Inputs, ModelDecoder
from grpo.sampling.fused import FusedDecoder
from grpo.sampling.invariance import layout_gap, verdict
from grpo.sampling.native import NativeSampler
from grpo.sampling.protocol import Completion, Request
from grpo.sampling.trials import decoder_of
from grpo.seeds import key
from grpo.steering import Steering
from grpo.tasks.list_machine import tokenizer
from tests.conftest import ARCHITECTURES, SIZES, tiny_policy

END = 95
NAMES = (*sorted(ARCHITECTURES), "exaone4")
EXAONE = {
    "model_type": "exaone4",
    "head_dim": 16,
    "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention"],
}
RESTRICTIONS: tuple[dict[str, object], ...] = ({}, {"top_k": 20, "top_p": 0.9, "min_p": 0.02})


def policy_of(name: str, *, attention: str = "sdpa") -> Policy:
    if name == "exaone4":
        return tiny_policy("llama", architecture=EXAONE | SIZES, attention=attention)
    return tiny_policy(name, attention=attention)


def sampler_of(policy: Policy, *, on_progress: Callable[[], None] = lambda: None, **changes: object) -> NativeSampler:
    config = SamplingConfig.model_validate({"max_completion_tokens": 24, "max_rows": 16} | changes)
    return NativeSampler(policy, config, end_token_ids=(END,), tokenizer=tokenizer(), on_progress=on_progress)


@pytest.fixture
def own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decodes by the model's own layers, whatever could be fused."""
    monkeypatch.setattr(trials, "why_not_fused", lambda policy: "a test of the model's own layers")


def gap_of(policy: Policy, **changes: object) -> float:
    """What the self-test of a sampler of this policy finds."""
    decoder, _ = decoder_of(policy)
    return layout_gap(policy, SamplingConfig.model_validate(changes), decoder=decoder)


def requests_of(number: int, *, rollouts: int, temperature: float = 1.0, longest: int = 40) -> list[Request]:
    rng = random.Random(number)
    return [
        Request(
            prompt_ids=tuple(rng.randrange(95) for _ in range(rng.randrange(1, longest))),
            keys=tuple(key(0, "invariance", index, attempt) for attempt in range(rollouts)),
            temperature=temperature,
        )
        for index in range(number)
    ]


def bits(
    policy: Policy, requests: Sequence[Request], *, lazily: bool = False, **changes: object
) -> dict[int, tuple[object, ...]]:
    """By noise key: all that a completion holds but its place."""
    found: list[Completion] = list(sampler_of(policy, **changes).sample(iter(requests) if lazily else requests))
    return {
        requests[c.request].keys[c.index]: (
            c.token_ids,
            torch.tensor(c.logprobs).view(torch.int32).tolist(),
            c.kept,
            c.stop_reason,
        )
        for c in found
    }


def one_by_one(requests: Sequence[Request]) -> list[Request]:
    """A request for each rollout, in a random order."""
    singles = [Request(r.prompt_ids, (k,), r.temperature) for r in requests for k in r.keys]
    random.Random(1).shuffle(singles)
    return singles


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("restriction", RESTRICTIONS, ids=["plain", "restricted"])
@pytest.mark.parametrize("name", NAMES)
def test_every_layout_draws_the_same_bits(name, restriction, temperature):
    policy = policy_of(name)
    requests = requests_of(10, rollouts=4, temperature=temperature)
    expected = bits(policy, requests, **restriction)
    assert len(expected) == 40
    assert bits(policy, one_by_one(requests), max_rows=11, **restriction) == expected
    assert bits(policy, requests[::-1], max_rows=512, prefill_tokens=1, **restriction) == expected
    assert bits(policy, requests, lazily=True, max_rows=13, **restriction) == expected
    # As two ranks would, each with its own part.
    first, second = requests[:3], requests[3:]
    assert bits(policy, first, **restriction) | bits(policy, second, **restriction) == expected


@pytest.mark.usefixtures("own_layers")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "gpt2"])
def test_decoded_by_the_models_own_layers_every_layout_draws_the_same_bits_too(name):
    policy = policy_of(name)
    requests = requests_of(10, rollouts=4)
    expected = bits(policy, requests)
    assert bits(policy, one_by_one(requests), max_rows=11) == expected
    assert bits(policy, requests[:3]) | bits(policy, requests[3:], max_rows=512) == expected


@pytest.mark.usefixtures("own_layers")
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_with_eager_attention_too(name):
    policy = policy_of(name, attention="eager")
    requests = requests_of(10, rollouts=4)
    expected = bits(policy, requests)
    assert bits(policy, one_by_one(requests), max_rows=64) == expected
    assert bits(policy, requests[:5]) | bits(policy, requests[5:]) == expected


def beside_long_prompts(policy: Policy) -> tuple[dict[int, tuple[object, ...]], dict[int, tuple[object, ...]]]:
    """The bits of rollouts of short prompts, drawn alone, and among others whose prompts have up to 190 tokens."""
    short, long = requests_of(4, rollouts=4, longest=8), requests_of(5, rollouts=2, longest=190)
    long = [Request(r.prompt_ids, tuple(k ^ 1 for k in r.keys), r.temperature) for r in long]
    assert max(len(r.prompt_ids) for r in long) > 128
    alone, together = bits(policy, short), bits(policy, [*long, *short], max_rows=64)
    return alone, {k: together[k] for k in alone}


@pytest.mark.parametrize("is_fused", [True, False], ids=["fused", "own layers"])
@pytest.mark.parametrize("name", NAMES)
def test_a_neighbour_with_a_long_prompt_changes_no_bit(name, is_fused, request):
    if not is_fused:
        request.getfixturevalue("own_layers")
    alone, among_others = beside_long_prompts(policy_of(name))
    assert alone == among_others


@pytest.mark.usefixtures("own_layers")
def test_without_the_step_in_width_it_does(monkeypatch):
    monkeypatch.setattr(rows, "WIDTH_STEP_TOKENS", 1)
    alone, among_others = beside_long_prompts(policy_of("exaone4"))
    assert alone != among_others


def test_the_padded_length_of_a_prefill_is_a_function_of_its_own_and_stays_in_the_context():
    policy = policy_of("gpt2")  # a context of 256 learned positions: one more would have no embedding
    batch = rows.Rows(8, config=SamplingConfig(), policy=policy, decoder=ModelDecoder(policy))
    padded = [batch.padded_tokens(length) for length in (0, 16, 17, 24, 25, 33, 100, 128, 129, 193, 256)]
    assert padded == [16, 16, 24, 24, 32, 48, 128, 128, 192, 256, 256]
    policy.model.config.max_position_embeddings = policy.model.config.n_positions = 200
    narrow = rows.Rows(8, config=SamplingConfig(), policy=policy, decoder=ModelDecoder(policy))
    assert [narrow.padded_tokens(length) for length in (100, 150, 195)] == [128, 192, 200]


# --- the self-test ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_self_test_holds_on_a_cpu_with_one_thread(name):
    gap = gap_of(policy_of(name))
    assert gap == 0
    assert "batch-invariant on this device" in verdict(gap)


def test_the_self_test_holds_with_heads_so_small_that_attention_over_few_positions_takes_another_path():
    policy = tiny_policy("llama", attention="eager", architecture=ARCHITECTURES["llama"] | SIZES | {"head_dim": 8})
    assert gap_of(policy) == 0


@pytest.mark.usefixtures("own_layers")
@pytest.mark.parametrize("name", ["llama", "gemma3", "exaone4"])
def test_the_self_test_sees_attention_over_any_number_of_positions(name, monkeypatch):
    monkeypatch.setattr(rows, "WIDTH_STEP_TOKENS", 1)
    gap = gap_of(policy_of(name))
    assert 0 < gap < 1e-4
    assert f"not batch-invariant here (logits off by up to {gap:.1g})" in verdict(gap)


@pytest.mark.parametrize("decoder", [FusedDecoder, ModelDecoder])
@pytest.mark.parametrize("broken", ["by the number of rows", "by the slot", "by the width"])
def test_the_self_test_sees_a_decode_whose_bits_depend_on_the_layout(broken, decoder, monkeypatch):
    """One bit of rounding, added where a device might."""
    original = decoder.hidden

    def rounded(self: FusedDecoder | ModelDecoder, inputs: Inputs) -> Tensor:
        hidden: Tensor = original(self, inputs)
        if broken == "by the number of rows" and len(hidden) == 11:
            return hidden * (1 + 2**-23)
        if broken == "by the slot":
            hidden[8:] *= 1 + 2**-23
        if broken == "by the width" and inputs.cache.slots[0].width > rows.LEAST_WIDTH_TOKENS:
            return hidden * (1 + 2**-23)
        return hidden

    policy = policy_of("llama")
    assert layout_gap(policy, SamplingConfig(), decoder=decoder(policy)) == 0
    monkeypatch.setattr(decoder, "hidden", rounded)
    assert 0 < layout_gap(policy, SamplingConfig(), decoder=decoder(policy)) < 1e-3


def test_the_self_test_sees_a_prefill_whose_bits_depend_on_its_prompts(monkeypatch):
    original = Policy.hidden

    def rounded(self: Policy, input_ids: Tensor, **options: object) -> Tensor:
        hidden = original(self, input_ids, **options)  # type: ignore[arg-type]
        for layer in options["cache"].layers if len(input_ids) > 1 else ():  # type: ignore[attr-defined]
            layer.values *= 1 + 2**-23
        return hidden

    policy = policy_of("llama")
    decoder = FusedDecoder(policy)
    assert layout_gap(policy, SamplingConfig(), decoder=decoder) == 0
    monkeypatch.setattr(Policy, "hidden", rounded)
    assert 0 < layout_gap(policy, SamplingConfig(), decoder=decoder) < 1e-3


def test_the_self_test_leaves_a_policy_as_it_is_and_fits_a_short_context():
    policy = tiny_policy("llama", architecture=ARCHITECTURES["llama"] | SIZES | {"max_position_embeddings": 12})
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    assert gap_of(policy, max_rows=8) == 0
    assert all(torch.equal(weight, before[name]) for name, weight in policy.state_dict().items())


# --- requests that come while others are drawn --------------------------------------------------------------------


def test_a_request_is_asked_for_only_when_a_quarter_of_the_rows_is_free_and_one_between_two_decodes():
    pulled: list[int] = []
    seen: list[int] = []  # at each decode or prefill

    def coming() -> Iterator[Request]:
        for number, request in enumerate(requests_of(12, rollouts=4)):
            pulled.append(number)
            yield request

    sampler = sampler_of(policy_of("llama"), on_progress=lambda: seen.append(len(pulled)), max_rows=16)
    stream = sampler.sample(coming())
    assert pulled == []
    next(stream)
    # Four groups of four fill sixteen rows, and the first completion frees one of them, not four.
    assert len(pulled) <= 4
    assert all(after - before <= 1 for before, after in pairwise(seen))
    assert len(list(stream)) == 47
    assert len(pulled) == 12


def test_two_samplers_of_one_short_list_each_get_a_part_of_it():
    requests = requests_of(8, rollouts=4)
    common = iter(range(len(requests)))
    taken: dict[str, list[int]] = {"one": [], "two": []}

    def coming(rank: str) -> Iterator[Request]:
        for number in common:
            taken[rank].append(number)
            yield requests[number]

    policy = policy_of("llama")
    other = sampler_of(policy, max_rows=512, max_completion_tokens=1).sample(coming("two"))
    found: list[Completion] = []
    # The second rank goes on for one completion, which is one token, at each prefill and decode of the first.
    one = sampler_of(policy, max_rows=512, max_completion_tokens=1, on_progress=lambda: found.extend(_first(other)))
    own = list(one.sample(coming("one")))
    found.extend(other)
    assert len(taken["one"]) > 1
    assert len(taken["two"]) > 1
    assert sorted(taken["one"] + taken["two"]) == list(range(8))
    assert len(own) + len(found) == 32
    expected = bits(policy, requests, max_completion_tokens=1)
    for rank, completions in (("one", own), ("two", found)):
        for c in completions:
            request = requests[taken[rank][c.request]]
            assert c.token_ids == expected[request.keys[c.index]][0]


def _first(stream: Iterator[Completion]) -> list[Completion]:
    return [c for c in [next(stream, None)] if c is not None]


@pytest.mark.parametrize("requests", [[], [Request((1, 2), (), 1.0)]])
def test_nothing_asked_for_draws_nothing(requests):
    assert list(sampler_of(policy_of("llama")).sample(requests)) == []
    assert list(sampler_of(policy_of("llama")).sample(iter(requests))) == []


def test_an_empty_prompt_that_comes_late_is_refused_too():
    late = [*requests_of(3, rollouts=2), Request((), (1,), 1.0)]
    with pytest.raises(ValueError, match="no tokens"):
        list(sampler_of(policy_of("llama")).sample(iter(late)))


# --- stopping in the middle -------------------------------------------------------------------------------------------


def caches() -> int:
    gc.collect()
    return sum(type(thing) is SlotCache for thing in gc.get_objects())


def test_a_stream_that_is_closed_leaves_no_cache_no_hook_and_no_gradient_mode_behind():
    policy = policy_of("llama")
    requests = requests_of(10, rollouts=4)
    sampler = sampler_of(policy)
    sampler.steer(Steering(vectors={0: torch.ones(policy.hidden_size)}, coefficient=0.5))
    expected = [c.token_ids for c in sampler.sample(requests)]
    before = caches()
    stream = sampler.sample(requests)
    next(stream)
    assert caches() == before + 1
    assert torch.is_grad_enabled()
    stream.close()  # type: ignore[attr-defined]
    assert caches() == before
    assert torch.is_grad_enabled()
    assert not any(module._forward_hooks for module in policy.modules())
    assert [c.token_ids for c in sampler.sample(requests)] == expected


def test_what_the_progress_hook_raises_ends_the_sampling_and_leaves_nothing_behind():
    calls: list[int] = []

    def stopping() -> None:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    policy = policy_of("llama")
    before = caches()
    with pytest.raises(KeyboardInterrupt):
        list(sampler_of(policy, on_progress=stopping).sample(requests_of(10, rollouts=4)))
    assert len(calls) == 5
    assert caches() == before
    assert torch.is_grad_enabled()


def test_the_progress_hook_is_called_for_each_prefill_and_each_decode(monkeypatch):
    policy = policy_of("llama")
    calls: list[int] = []
    sampler = sampler_of(policy, on_progress=lambda: calls.append(1))
    forwards: list[int] = []
    prefill, decode = Policy.hidden, FusedDecoder.hidden

    def counting(self: Policy, input_ids: Tensor, **options: object) -> Tensor:
        forwards.append(len(input_ids))
        return prefill(self, input_ids, **options)  # type: ignore[arg-type]

    def counting_too(self: FusedDecoder, inputs: Inputs) -> Tensor:
        forwards.append(len(inputs.token_ids))
        return decode(self, inputs)

    monkeypatch.setattr(Policy, "hidden", counting)
    monkeypatch.setattr(FusedDecoder, "hidden", counting_too)
    list(sampler.sample(requests_of(10, rollouts=4)))
    assert len(calls) == len(forwards) > 24
