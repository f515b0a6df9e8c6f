"""The colocated vLLM engine: a copy of the policy in the same process, which is handed its weights in memory.

It draws from the same distribution as the native engine, and not the same tokens: vLLM's noise is its own. Log-probs
come back at the temperature of the draw. What is seeded: each completion where the device can (`seeds: request`), else
one generator of each call of `sample`, from the first key that it is asked for, so that the same call on the same
number of threads draws the same tokens."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo.config import SamplingConfig
from grpo.errors import ConfigError
from grpo.policy import Policy
from grpo.sampling import handover
from grpo.sampling.agreement import check_agreement
from grpo.sampling.asked import MAX_SEED, Asked, refuse_steering
from grpo.sampling.protocol import Completion, Request
from grpo.steering import Steering

CPU_CACHE_GIB = 1.0
ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for; adapters of another one take the next larger."""
ADAPTERS = "policy"


class VllmSampler:
    """A Sampler. Its engine lives until the process ends."""

    keeps_copy = True

    def __init__(
        self,
        policy: Policy,
        config: SamplingConfig,
        *,
        end_token_ids: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        context_tokens: int,
        shares_process_group: bool,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`context_tokens` is the longest prompt with its completion; `shares_process_group`: whether the ranks of the
        run have joined already. `on_progress` is called after each decode; what it raises ends the sampling.

        Raises ConfigError where vLLM is missing, cannot run the model, or computes other log-probs than the policy."""
        self._config, self._own = config, config.vllm
        self._device = policy.device
        if self._device.type == "cpu" and self._own.seeds == "request":
            raise ConfigError(
                "sampling.vllm.seeds = 'request' on the CPU, where vLLM draws from one generator alone; set "
                "sampling.vllm.seeds: engine"
            )
        self._asked = Asked(config, end_token_ids=end_token_ids)
        self._on_progress = on_progress
        self._policy = policy
        self._rank = handover.adapter_rank(policy.model)
        self._folder = tempfile.TemporaryDirectory(prefix="grpo-vllm-")  # gone with this object
        self._num_syncs = 0
        self._compared = ""
        self._generator_state: Tensor | None = None
        self._sleeps = self._own.sleep and self._device.type == "cuda"
        self._is_asleep = False
        self._adapters: Any = None  # vLLM's name for those that are drawn with
        self._engine = self._made(policy, tokenizer, context_tokens, shares_process_group)
        self.load_weights(policy)
        self.gap = check_agreement(self, policy, engine="vLLM")

    def describe(self) -> str:
        """What draws, and what a resume repeats, for people to read."""
        seeded = (
            "each completion has its own seed"
            if self._own.seeds == "request"
            else "one generator draws for all: a resume repeats a step's tokens on as many ranks and threads"
        )
        return (
            f"sampling: by vLLM in this process ({seeded}; a prompt's first log-probs are within {self.gap:.1g} nats "
            f"of the policy's; {self._compared})"
        )

    def steer(self, steering: Steering | None) -> None:
        """Only None is possible: raises ConfigError for a steering."""
        refuse_steering(steering)
        self._policy.steer(None)

    def load_weights(self, policy: Policy) -> None:
        """Copy `policy`'s weights, or its adapters, into the engine, and forget every prompt that it has computed.

        Raises WeightsDifferError where a comparison is due and the engine does not hold them."""
        self._policy = policy
        self._wake()
        if self._rank is None:
            weights = handover.named_weights(policy)
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        else:
            self._load_adapters(policy)
        self._engine.reset_prefix_cache()
        every = self._own.check_every_syncs
        if every and self._num_syncs % every == 0:
            self._compare(policy)
        self._num_syncs += 1

    @torch.no_grad()
    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield every completion as it finishes. Raises ValueError as the native engine does, and for any grid.

        What is no sequence is asked for its next request when a quarter of `sampling.max_rows` is free."""
        waiting = iter(requests)
        takes_all = isinstance(requests, Sequence)
        owners: dict[str, tuple[int, int, Request]] = {}
        may_have_more, number = True, 0
        least_free = max(1, self._config.max_rows // 4)
        self._wake()
        try:
            while may_have_more or owners:
                while may_have_more and (takes_all or self._config.max_rows - len(owners) >= least_free):
                    request = next(waiting, None)
                    if request is None:
                        may_have_more = False
                        break
                    self._asked.check(request)
                    if number == 0 and request.keys:
                        self._seed(request.keys[0])
                    owners |= self._added(request, number)
                    number += 1
                if not owners:
                    continue
                with self._own_generator():
                    outputs = self._engine.step()
                self._on_progress()
                for output in outputs:
                    if output.finished:
                        request_number, index, request = owners.pop(output.request_id)
                        yield self._completion(output.outputs[0], request_number, index, request)
        finally:
            if owners:
                self._engine.abort_request(list(owners))
            self._rest()

    def _added(self, request: Request, number: int) -> dict[str, tuple[int, int, Request]]:
        from vllm import SamplingParams

        owners = {}
        prompt = {"prompt_token_ids": list(request.prompt_ids)}
        for index, key in enumerate(request.keys):
            seed = key % MAX_SEED if self._own.seeds == "request" else None
            params = SamplingParams(**self._asked.parameters(request), seed=seed)
            name = f"{self._num_syncs}-{number}-{index}"
            self._engine.add_request(name, prompt, params, lora_request=self._adapters)
            owners[name] = (number, index, request)
        return owners

    def _completion(self, output: Any, number: int, index: int, request: Request) -> Completion:
        ids = tuple(output.token_ids)
        logprobs = tuple(of_token[token].logprob for token, of_token in zip(ids, output.logprobs, strict=True))
        return Completion(
            request=number,
            index=index,
            token_ids=ids,
            logprobs=logprobs,
            kept=None,
            stop_reason=self._asked.stop_reason(ids, finish=output.finish_reason, stop=output.stop_reason),
        )

    def _made(
        self, policy: Policy, tokenizer: PreTrainedTokenizerBase, context_tokens: int, shares_process_group: bool
    ) -> Any:
        # Read when vLLM is imported: the engine's loop in this process, and its log no louder than ours.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        check_installed()
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        folder = Path(self._folder.name) / "model"
        if self._rank is not None:
            handover.write_weights(policy, folder)  # the base's, which stay
        handover.write_shape(policy.model, folder, tokenizer=tokenizer)
        cache_gib = self._own.cache_gib or (CPU_CACHE_GIB if self._device.type == "cpu" else None)
        arguments: dict[str, Any] = {
            "model": str(folder),
            "skip_tokenizer_init": not self._config.stop_strings,
            "dtype": str(policy.dtype).removeprefix("torch."),
            "load_format": "dummy" if self._rank is None else "safetensors",
            "max_model_len": context_tokens,
            "max_num_seqs": self._config.max_rows,
            "max_num_batched_tokens": max(self._config.prefill_tokens, self._config.max_rows),
            "enable_prefix_caching": True,
            "enforce_eager": self._own.eager,
            "gpu_memory_utilization": self._own.memory_fraction,
            "kv_cache_memory_bytes": None if cache_gib is None else int(cache_gib * 2**30),
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
            "disable_log_stats": True,
            "enable_sleep_mode": self._sleeps,
        }
        if self._rank is not None:
            arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _room_for(self._rank)}
        if shares_process_group:
            arguments["distributed_executor_backend"] = "external_launcher"
        with _process_as_it_was():
            try:
                return LLMEngine.from_engine_args(EngineArgs(**arguments))
            except (RuntimeError, ValueError, NotImplementedError) as error:
                raise ConfigError(
                    f"sampling.engine = 'vllm': it cannot run this model here ({type(error).__name__}: {error}); take "
                    "another model, or set sampling.engine: native"
                ) from error

    def _load_adapters(self, policy: Policy) -> None:
        from vllm.lora.request import LoRARequest

        # A number of its own for each hand-over: adapters that vLLM has seen it does not read again.
        number = self._num_syncs + 1
        folder = Path(self._folder.name) / f"adapters_{number}"
        handover.write_adapters(policy, folder)
        if self._num_syncs:
            self._engine.remove_lora(self._num_syncs)
        self._adapters = LoRARequest(ADAPTERS, number, str(folder))
        self._engine.add_lora(self._adapters)

    def _compare(self, policy: Policy) -> None:
        digests: dict[str, str] = {}
        for of_worker in self._engine.collective_rpc("compute_weight_checksums"):
            digests |= of_worker
        self._compared = handover.check_held(
            digests, handover.expected_digests(policy), holder="the engine in this process"
        )

    def _seed(self, key: int) -> None:
        if self._own.seeds == "engine":
            self._generator_state = torch.Generator(device=self._device).manual_seed(key % MAX_SEED).get_state()

    @contextmanager
    def _own_generator(self) -> Iterator[None]:
        """Let vLLM draw from a generator of its own: torch's global one, which it uses, is left as it was."""
        if self._generator_state is None:
            yield
            return
        get, put = (
            (torch.cuda.get_rng_state, torch.cuda.set_rng_state)
            if self._device.type == "cuda"
            else (torch.get_rng_state, torch.set_rng_state)
        )
        before = get()
        put(self._generator_state)
        try:
            yield
        finally:
            self._generator_state = get()
            put(before)

    def _wake(self) -> None:
        if self._is_asleep:
            self._engine.wake_up()
            self._is_asleep = False

    def _rest(self) -> None:
        if self._sleeps and not self._is_asleep:
            self._engine.sleep(level=1)
            self._is_asleep = True


def check_installed() -> None:
    """Raises ConfigError where vLLM is not installed."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise ConfigError(
            "sampling.engine = 'vllm' needs vLLM, which is not installed: pip install 'grpo-trainer[vllm]', in an "
            "environment of its own (it pins torch and transformers), or set sampling.engine: native"
        )


@contextmanager
def _process_as_it_was() -> Iterator[None]:
    """Undo what a CPU engine does to its process when it starts: it seeds torch, and keeps others from setting the
    number of torch's threads."""
    set_threads, threads, state = torch.set_num_threads, torch.get_num_threads(), torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        torch.set_rng_state(state)


def _room_for(rank: int) -> int:
    if rank > ADAPTER_RANKS[-1]:
        raise ConfigError(
            f"model.lora.rank = {rank} and sampling.engine = 'vllm', which takes {ADAPTER_RANKS[-1]} at most; lower it"
        )
    return next(room for room in ADAPTER_RANKS if room >= rank)
