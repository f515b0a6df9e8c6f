"""Recorded decodes: the tokens and the bits of decodes that are not, for every way that rows come, go and are steered.

A tape stands in for CUDA graphs (`tests.tape`). Graphs themselves are tried where there is a GPU."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from grpo.attention import attend, attend_on_gpu
from grpo.config import SamplingConfig
from grpo.policy import Policy
from grpo.sampling import graphs, noise, prefixes, rows, trials
from grpo.sampling.cache import SlotCache
from grpo.sampling.decoder import ModelDecoder
from grpo.sampling.graphs import RecordedDecoder
from grpo.sampling.native import NativeSampler
from grpo.sampling.prefixes import SHARED_TOKENS
from grpo.sampling.protocol import Request
from grpo.sampling.trials import RECORDED_DECODES, decoder_of
from grpo.steering import Steering
from grpo.tasks.list_machine import tokenizer
from tests.conftest import SIZES, tiny_policy
from tests.tape import NoWaiting, Recorder
from tests.test_sampling_fused import END, assert_decodes_as_the_model, policy_of
from tests.test_sampling_prefixes import requests_of

MODELS = ("gpt2", "llama", "qwen3", "gemma3", "exaone4")
LENGTHS = (3, 20, SHARED_TOKENS + 30, 40, SHARED_TOKENS + 4)
OWN_LAYERS = "a test of the model's own layers"


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots with room to spare, and looks at which rows are done as seldom, as on a GPU."""
    monkeypatch.setattr(rows, "SPARE_TOKENS", {"cpu": 128})
    monkeypatch.setattr("grpo.sampling.native.LOOK_STEPS", {"cpu": 8})
    monkeypatch.setattr(trials, "why_not_fused", lambda policy: OWN_LAYERS)


def sampler_of(policy: Policy, *, record: Recorder | None, **changes: object) -> NativeSampler:
    config = SamplingConfig.model_validate({"max_completion_tokens": 48, "max_rows": 16} | changes)
    sampler = NativeSampler(policy, config, end_token_ids=(END,), tokenizer=tokenizer())
    if record is not None:
        sampler._decoder = RecordedDecoder(ModelDecoder(policy), policy, record=record)
    return sampler


def bits(sampler: NativeSampler, requests: Sequence[Request]) -> dict[int, tuple[object, ...]]:
    """By noise key: tokens and the bits of log-probs."""
    return {
        requests[c.request].keys[c.index]: (c.token_ids, torch.tensor(c.logprobs).view(torch.int32).tolist())
        for c in sampler.sample(requests)
    }


def assert_recorded_alike(policy: Policy, requests: Sequence[Request], **changes: object) -> Recorder:
    record = Recorder()
    found = bits(sampler_of(policy, record=record, **changes), requests)
    assert found == bits(sampler_of(policy, record=None, **changes), requests)
    assert record.num_replays > 2 * len(record.tapes) > 0
    return record


def tuned(name: str) -> Policy:
    return tiny_policy("gpt2") if name == "gpt2" else policy_of(name)


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_unequal_length_come_and_go_and_draw_the_same_bits(name):
    # More rollouts than rows, so that some wait; long prompts in banks, where the model allows it.
    assert_recorded_alike(tuned(name), requests_of(LENGTHS, rollouts=7))


@pytest.mark.parametrize("positions", ["choosing", "start", "all"])
def test_steered_rows_draw_the_same_bits(positions):
    policy = tuned("llama")
    vector = torch.linspace(-1, 1, policy.hidden_size)
    policy.steer(Steering({0: vector, 1: -vector}, 1.5, positions=positions))
    assert_recorded_alike(policy, requests_of(LENGTHS, rollouts=3))


def test_a_vector_that_changes_between_two_samplings_is_heard():
    policy, record, requests = tuned("llama"), Recorder(), requests_of((5,), rollouts=8)
    recorded, plain = sampler_of(policy, record=record), sampler_of(policy, record=None)
    found = []
    for coefficient in (0.0, 4.0):
        policy.steer(Steering({0: torch.linspace(-1, 1, policy.hidden_size)}, coefficient))
        found.append(bits(recorded, requests))
        assert found[-1] == bits(plain, requests)
    assert found[0] != found[1]


def test_weights_that_change_between_two_samplings_are_heard():
    policy, record, requests = tuned("qwen3"), Recorder(), requests_of(LENGTHS, rollouts=3)
    recorded, plain = sampler_of(policy, record=record), sampler_of(policy, record=None)
    before = bits(recorded, requests)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    recorded.load_weights(policy)
    after = bits(recorded, requests)
    assert after == bits(plain, requests)
    assert after != before


def test_draws_with_stop_strings_top_p_and_a_grid_are_the_same():
    policy = tuned("llama")
    assert_recorded_alike(policy, requests_of(LENGTHS, rollouts=3), stop_strings=["7"], top_p=0.9)
    requests = [Request(r.prompt_ids, r.keys, 1.0, grid=(0.8, 1.2)) for r in requests_of(LENGTHS, rollouts=3)]
    assert_recorded_alike(policy, requests)


def test_rows_that_dwindle_are_recorded_anew_and_width_too():
    widths = []

    class Widths(Recorder):
        def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
            replay = super().__call__(compute)
            widths.append(replay)
            return replay

    policy, record = tuned("llama"), Widths()
    requests = requests_of((5, 40), rollouts=16)
    sampler = sampler_of(policy, record=record, max_rows=32, max_completion_tokens=160)
    plain = sampler_of(policy, record=None, max_rows=32, max_completion_tokens=160)
    assert bits(sampler, requests) == bits(plain, requests)
    # 32, 64, 96 and so on positions, and fewer rows again and again: hundreds of decodes, a recording each few of them.
    assert 4 <= len(widths) < record.num_replays / 5


def test_nothing_of_a_sampling_outlives_it():
    policy, record = tuned("llama"), Recorder()
    sampler = sampler_of(policy, record=record)
    gc.collect()
    gc.disable()  # or it would be let go at some later time
    try:
        stream = sampler.sample(requests_of((5,), rollouts=8))
        next(stream)
        assert record.num_replays > 0
        assert len(caches()) == 1
        stream.close()
        del stream
        assert caches() == []
    finally:
        gc.enable()


def caches() -> list[SlotCache]:
    return [found for found in gc.get_objects() if type(found) is SlotCache]


def test_a_recording_that_fails_in_a_run_is_told_of_once_and_the_tokens_are_the_same():
    class Breaks(Recorder):
        def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
            if len(self.tapes) == 2:
                raise RuntimeError("no room for a graph")
            return super().__call__(compute)

    policy, record, requests = tuned("llama"), Breaks(), requests_of(LENGTHS, rollouts=7)
    sampler = sampler_of(policy, record=record)
    sampler._decoder.is_on_trial = False
    with pytest.warns(UserWarning, match="not recorded any more .no room for a graph.; sampling is slower") as told:
        found = bits(sampler, requests)
    assert len(told) == 1
    assert found == bits(sampler_of(policy, record=None), requests)
    assert len(record.tapes) == 2


@pytest.mark.parametrize("name", MODELS)
def test_between_two_looks_the_host_waits_for_nothing(name, monkeypatch):
    # A CPU's own noise goes by numpy; a GPU's does not.
    monkeypatch.setattr(noise, "_bits_of_cpu", noise._bits)
    policy = tuned(name)
    batch = rows.Rows(8, config=SamplingConfig(max_completion_tokens=8), policy=policy, decoder=ModelDecoder(policy))
    request = Request(tuple(range(12)), (1,), 1.0)
    batch.enter([0], request, prefix=rows.Prefix(0, batch.prefill([request.prompt_ids[:-1]]), 0))
    with NoWaiting(), torch.no_grad():
        for _ in range(4):
            tokens = batch.draw(batch.logits())
            batch.end(tokens == END)
    with pytest.raises(RuntimeError, match="waits for the device"), NoWaiting():
        batch.ended()


# --- who decodes ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def choice(policy: Policy, record: Recorder) -> tuple[Any, str]:
    """What is chosen where decodes are recorded with `record`, and why not that."""
    ways = [("graphs", lambda: RecordedDecoder(ModelDecoder(policy), policy, record=record))]
    return trials._first_right(policy, ways, num_decodes=RECORDED_DECODES)


@pytest.mark.parametrize("name", MODELS)
def test_recordings_that_agree_are_chosen(name):
    record = Recorder()
    decoder, why_not = choice(tuned(name), record)
    assert (type(decoder), why_not) == (RecordedDecoder, "")
    assert record.num_replays >= RECORDED_DECODES - 1


@pytest.mark.parametrize("positions", ["choosing", "start", "completion", "all"])
def test_a_policy_that_is_steered_already_is_on_trial_as_it_is(positions):
    policy = tuned("qwen3")
    vector = torch.linspace(-3, 3, policy.hidden_size)
    policy.steer(Steering({0: vector}, 2.0, positions=positions))
    decoder, why_not = choice(policy, Recorder())
    assert (type(decoder), why_not) == (RecordedDecoder, "")


def test_a_model_that_waits_for_the_device_is_decoded_by_its_own_layers_which_says_why():
    policy = tuned("llama")
    policy.blocks[0].register_forward_hook(lambda module, inputs, output: output * (1 + 0 * output.sum().item()))
    decoder, why_not = choice(policy, Recorder())
    assert type(decoder) is ModelDecoder
    assert why_not == "graphs: RuntimeError: _local_scalar_dense waits for the device"


def test_a_model_that_computes_something_of_its_own_in_each_decode_is_seen():
    policy, calls = tuned("llama"), [0]

    def hook(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled() or output.shape[1] > 1:
            return output
        calls[0] += 1
        return output * (1 + 0.5 * (calls[0] > 1))  # what a replay does not do again

    decoder, why_not = choice(policy, Recorder())
    assert why_not == ""
    policy.blocks[0].register_forward_hook(hook)
    decoder, why_not = choice(policy, Recorder())
    assert type(decoder) is ModelDecoder
    assert "graphs: logits off by" in why_not


def test_a_recording_of_stale_inputs_is_seen(monkeypatch):
    monkeypatch.setattr("grpo.sampling.graphs._tensors", lambda inputs: [inputs.token_ids.clone()])
    monkeypatch.setattr("grpo.sampling.graphs._with", lambda inputs, tensors: inputs)
    decoder, why_not = choice(tuned("llama"), Recorder())
    assert type(decoder) is ModelDecoder
    assert "graphs: logits off by" in why_not


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a stand-in for CUDA is told, in order."""
    told: list[str] = []

    class Graph:
        def capture_begin(self, *, capture_error_mode: str) -> None:
            told.append(f"begin {capture_error_mode}")

        def capture_end(self) -> None:
            told.append("end")

        def replay(self) -> None:
            told.append("replay")

    @contextmanager
    def stream(own: object) -> Iterator[None]:
        told.append("own stream")
        yield
        told.append("stream before")

    streams = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(graphs, "_stream", lambda: streams)
    for name, stand_in in {
        "CUDAGraph": Graph,
        "current_stream": lambda: streams,
        "stream": stream,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda mode: told.append(f"waits: {mode}"),
        "empty_cache": lambda: told.append("empty cache"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return told


CAPTURE = ["own stream", "begin thread_local", "waits: error", "compute", "waits: 0", "end"]


def test_a_graph_is_recorded_on_a_stream_of_its_own_where_waiting_is_an_error(heard):
    replay = graphs.cuda_graph(lambda: heard.append("compute") or torch.ones(3))
    assert heard == [*CAPTURE, "stream before"]
    assert torch.equal(replay(), torch.ones(3))
    assert heard[-1] == "replay"


def test_a_recording_that_fails_ends_and_one_without_memory_is_tried_once_more(heard):
    def fails() -> Tensor:
        heard.append("compute")
        raise RuntimeError("waits")

    with pytest.raises(RuntimeError, match="waits"):
        graphs.cuda_graph(fails)
    assert heard == CAPTURE
    heard.clear()

    def wants_memory() -> Tensor:
        heard.append("compute")
        if "empty cache" not in heard:
            raise torch.OutOfMemoryError("no memory")
        return torch.ones(1)

    graphs.cuda_graph(wants_memory)
    assert heard == [*CAPTURE, "empty cache", *CAPTURE, "stream before"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_on_a_gpu_graphs_decode_what_the_models_own_layers_do(name, dtype):
    policy = tuned(name).to("cuda", dtype)
    decoder, why_not = decoder_of(policy)
    assert (type(decoder), why_not) == (RecordedDecoder, "")
    requests = requests_of(LENGTHS, rollouts=7)
    config = SamplingConfig(max_completion_tokens=48, max_rows=16)
    sampler = NativeSampler(policy, config, end_token_ids=(END,), tokenizer=tokenizer())
    replayed = bits(sampler, requests)
    sampler._decoder = decoder._decoder
    assert bits(sampler, requests) == replayed


def test_on_a_gpu_recordings_are_tried_with_each_kernel(monkeypatch):
    policy, tried = tuned("qwen3"), []
    monkeypatch.setattr(Policy, "device", torch.device("cuda"))

    def first(policy: Policy, ways: Any, *, num_decodes: int) -> tuple[Any, str]:
        tried.extend((what, make()._decoder._on_gpu) for what, make in ways)
        return None, ""

    monkeypatch.setattr(trials, "_first_right", first)
    decoder_of(policy)
    assert [on_gpu for _, on_gpu in tried] == [True, False]
    policy.in_lock_step = True
    assert type(decoder_of(policy)[0]) is ModelDecoder


# --- the kernel that reads keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama, grouped, with biases", "qwen3", "gemma3"])
def test_query_heads_that_read_one_key_head_together_read_what_the_model_does(name, monkeypatch):
    def written_out(query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor) -> tuple[Tensor, Tensor]:
        scores = query @ key.transpose(-1, -2) * scale + mask
        return scores.softmax(dim=-1) @ value, scores.logsumexp(dim=-1)

    calls = []
    monkeypatch.setattr(prefixes, "attend_on_gpu", lambda *a, **k: calls.append(1) or written_out(*a, **k))
    policy = policy_of(name)
    assert_decodes_as_the_model(policy, ModelDecoder(policy, on_gpu=True))
    assert calls


def test_a_model_whose_attention_does_more_keeps_it():
    policy = tiny_policy("gemma3", architecture=SIZES | {"model_type": "gemma2", "head_dim": 16}, attention="eager")
    assert not ModelDecoder(policy, on_gpu=True)._on_gpu


def test_the_kernel_takes_what_it_is_given_and_gives_a_log_sum_exp_for_each_query():
    with FakeTensorMode():
        query = torch.empty(8, 2, 3, 64, device="cuda", dtype=torch.bfloat16)
        key = torch.empty(8, 2, 128, 64, device="cuda", dtype=torch.bfloat16).narrow(2, 0, 96)
        mask = torch.empty(8, 1, 1, 96, device="cuda", dtype=torch.bfloat16)
        read, total = attend_on_gpu(query, key, key, scale=0.125, mask=mask)
    assert (read.shape, read.dtype) == (query.shape, query.dtype)
    assert (total.shape, total.dtype) == (query.shape[:3], torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu_the_kernel_gives_what_scores_written_out_do(dtype):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(16, 2, n, 64, generator=generator).to("cuda", dtype) for n in (4, 96, 96))
    mask = torch.zeros(16, 1, 1, 96, dtype=dtype, device="cuda")
    mask[:, :, :, 50:] = torch.finfo(dtype).min
    read, total = attend_on_gpu(query, key, value, scale=0.125, mask=mask)
    expected, of_scores = attend(query, key, value, scale=0.125, causal=False, mask=mask)
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    assert float((read - expected).abs().max()) < tolerance
    assert float((total - of_scores).abs().max()) < tolerance
