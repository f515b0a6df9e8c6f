"""vLLM's own servers as the engine: tokens in and out over HTTP, weights through a folder that both sides see.

A server says with each completion under which version of the weights its tokens were drawn. A version is this run's
own word for one hand-over, so that a server that was started again, or that someone else loads, is found out by its
first answer: it is handed the weights and asked again. One that is gone or silent for too long ends the run."""

import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from functools import partial
from pathlib import Path
from typing import Any

from grpo.config import SamplingConfig
from grpo.distributed.world import World
from grpo.policy import Policy
from grpo.sampling import handover
from grpo.sampling.agreement import check_agreement
from grpo.sampling.asked import MAX_SEED, Asked, refuse_steering
from grpo.sampling.protocol import Completion, Request
from grpo.sampling.server import GoneError, NotThereError, Server, ServerGoneError
from grpo.steering import Steering

LOOK_SECONDS = 0.5
"""Between two looks at whether the run is to end, while a server draws."""
MOST_HAND_OVERS = 3
"""For one completion: a server that needs more is loaded by somebody else too."""


class ServedSampler:
    """A Sampler. Called by every rank in the same order; a rank has servers of its own, or shares one."""

    keeps_copy = True

    def __init__(
        self,
        policy: Policy,
        config: SamplingConfig,
        *,
        end_token_ids: Sequence[int],
        context_tokens: int,
        world: World,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`context_tokens` is the longest prompt with its completion. `on_progress` is called while servers draw.

        Raises ConfigError where a server cannot serve this run, ServerGoneError where one does not answer."""
        own = config.vllm
        assert own.exchange_folder is not None  # VllmConfig refuses mode server without it
        self._config, self._own, self._world, self._policy = config, own, world, policy
        self._asked = Asked(config, end_token_ids=end_token_ids)
        self._on_progress = on_progress
        servers = [Server(url, timeout_seconds=own.timeout_seconds) for url in own.urls]
        size, rank = world.size, world.rank
        self._servers = servers[rank::size] if len(servers) >= size else [servers[rank % len(servers)]]
        self._loads = self._servers if rank < len(servers) else []  # what this rank hands weights to
        self._is_adapted = handover.adapter_rank(policy.model) is not None
        self._run = world.broadcast(uuid.uuid4().hex[:12] if world.is_main else None)
        self._folder = Path(own.exchange_folder) / f"run_{self._run}"
        self._num_syncs = 0
        self._compared = ""
        self._locks = {server.url: threading.Lock() for server in self._servers}
        for server in self._servers:
            server.check(context_tokens=context_tokens)
        self.load_weights(policy)
        self.gap = check_agreement(self, policy, engine="vLLM's server")

    @property
    def version(self) -> str:
        """The weights that are drawn from, by the name that the servers know them by."""
        return f"{self._run}-{self._num_syncs}"

    def describe(self) -> str:
        """What draws, and what a resume repeats, for people to read."""
        seeded = (
            "each completion has its own seed"
            if self._own.seeds == "request"
            else "from the servers' own generators: a resume draws other tokens of the same distribution"
        )
        return (
            f"sampling: by vLLM at {', '.join(self._own.urls)} ({seeded}; a prompt's first log-probs are within "
            f"{self.gap:.1g} nats of the policy's; {self._compared})"
        )

    def steer(self, steering: Steering | None) -> None:
        """Only None is possible: raises ConfigError for a steering."""
        refuse_steering(steering)
        self._policy.steer(None)

    def load_weights(self, policy: Policy) -> None:
        """Hand `policy`'s weights, or its adapters, to every server, which forgets all prompts that it has computed.

        Raises ServerGoneError, and WeightsDifferError where a comparison is due and a server does not hold them."""
        self._policy = policy
        before = self._path
        self._num_syncs += 1
        write = handover.write_adapters if self._is_adapted else handover.write_weights
        write(policy, self._path, is_writer=self._world.is_main)
        self._world.gather(None)  # the files are there
        every = self._own.check_every_syncs
        is_compared = bool(every) and (self._num_syncs - 1) % every == 0
        # Weights may have to be gathered for it, by all ranks.
        expected = handover.expected_digests(policy) if is_compared else {}
        for server in self._loads:
            server.retried(partial(self._hand_over, server))
            if is_compared:
                self._compare(server, expected)
        self._world.gather(None)  # the servers have them
        if self._world.is_main:
            handover.remove(before)

    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield every completion, in the requests' order. Raises ValueError as the native engine does, and for a grid.

        What is no sequence is asked for its next request when a quarter of `sampling.max_rows` is free."""
        source = iter(requests)
        takes_all = isinstance(requests, Sequence)
        least_free = max(1, self._config.max_rows // 4)
        waiting: deque[tuple[int, int, Request, Future[dict[str, Any]]]] = deque()
        may_have_more, number = True, 0
        pool = ThreadPoolExecutor(max_workers=self._config.max_rows, thread_name_prefix="vllm")
        try:
            while may_have_more or waiting:
                while may_have_more and (takes_all or self._config.max_rows - len(waiting) >= least_free):
                    request = next(source, None)
                    if request is None:
                        may_have_more = False
                        break
                    self._asked.check(request)
                    for index, key in enumerate(request.keys):
                        server = self._servers[(number + index) % len(self._servers)]
                        waiting.append((number, index, request, pool.submit(self._answer, server, request, key)))
                    number += 1
                if waiting:
                    place, index, request, answer = waiting.popleft()
                    while not wait_for([answer], timeout=LOOK_SECONDS).done:
                        self._on_progress()
                    yield self._completion(answer.result(), place, index)
                    self._on_progress()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def _path(self) -> Path:
        return self._folder / self.version

    def _answer(self, server: Server, request: Request, key: int) -> dict[str, Any]:
        """One completion as the server tells it, drawn from the current weights alone."""
        parameters = self._asked.parameters(request)
        if self._own.seeds == "request":
            parameters["seed"] = key % MAX_SEED
        body = {"token_ids": list(request.prompt_ids), "sampling_params": parameters}
        if self._is_adapted:
            body["model"] = self.version
        for _ in range(MOST_HAND_OVERS + 1):
            try:
                answer = server.retried(lambda: server.post("/inference/v1/generate", body))
                (choice,) = answer["choices"]
                if {span["version"] for span in choice["weight_versions"]} == {self.version}:
                    found: dict[str, Any] = choice
                    return found
            except NotThereError:  # an adapter of that name
                if not self._is_adapted:
                    raise
            server.retried(lambda: self._bring_up_to_date(server))
        raise ServerGoneError(
            f"sampling.vllm.urls: {server.url} keeps answering from other weights than it was handed; give each run "
            "servers of its own"
        )

    def _bring_up_to_date(self, server: Server) -> None:
        """Hand the weights to a server that has others, once, however many of its answers have shown it."""
        with self._locks[server.url]:
            if server.get("/weight_info")["weight_version"] != self.version:
                self._hand_over(server)

    def _hand_over(self, server: Server) -> None:
        path = str(self._path.absolute())
        if self._is_adapted:
            # In place, where a try that was broken off had it loaded already.
            adapters = {"lora_name": self.version, "lora_path": path, "load_inplace": True}
            server.post("/v1/load_lora_adapter", adapters)
            server.forget_adapter(f"{self._run}-{self._num_syncs - 1}")
        else:
            server.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}})
        # With the requests that are still running, which nobody waits for: their keys and values are of other weights.
        if not server.post("/reset_prefix_cache?reset_running_requests=true", {})["success"]:
            raise GoneError("it did not drop its prefix cache")
        server.post("/update_weight_version", {"new_version": self.version})

    def _compare(self, server: Server, expected: Mapping[str, frozenset[str]]) -> None:
        digests: Mapping[str, str] = server.post("/weight_checker", {"action": "checksum"})["checksums"]
        self._compared = handover.check_held(digests, expected, holder=server.url)

    def _completion(self, choice: Mapping[str, Any], number: int, index: int) -> Completion:
        ids = tuple(choice["token_ids"])
        drawn = choice["logprobs"]["content"]
        assert tuple(token["token_id"] for token in drawn) == ids
        return Completion(
            request=number,
            index=index,
            token_ids=ids,
            logprobs=tuple(token["logprob"] for token in drawn),
            kept=None,
            stop_reason=self._asked.stop_reason(ids, finish=choice["finish_reason"], stop=choice["stop_reason"]),
        )
