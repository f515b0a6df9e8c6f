"""A real server of vLLM: weights change and answers with them, and it may be killed and started again."""

import threading
import time
from collections.abc import Iterator

import pytest

from grpo.config import SamplingConfig
from grpo.distributed.world import World
from grpo.sampling.served import ServedSampler
from tests.engines import END, LIMIT, largest_gap, needs_vllm, requests_of, small_policy
from tests.vllm_server import START_SECONDS, RealServer

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    made = RealServer(small_policy(seed=5), tmp_path_factory.mktemp("server"))
    made.start()
    try:
        yield made.wait()
    finally:
        made.kill()


@pytest.fixture(scope="module")
def sampler(server: RealServer, tmp_path_factory: pytest.TempPathFactory) -> ServedSampler:
    folder = tmp_path_factory.mktemp("exchange")
    own = {"mode": "server", "urls": [server.url], "exchange_folder": str(folder), "seeds": "engine"}
    own |= {"timeout_seconds": 2 * START_SECONDS, "check_every_syncs": 1}
    fields = {"engine": "vllm", "vllm": own, "max_completion_tokens": LIMIT, "max_rows": 16}
    return ServedSampler(
        small_policy(),
        SamplingConfig.model_validate(fields),
        end_token_ids=(END,),
        context_tokens=64,
        world=World.alone(),
    )


def test_a_server_draws_from_the_weights_that_it_was_handed_last(sampler):
    requests = requests_of(6, rollouts=4, temperature=0.7)
    for policy, other in ((small_policy(), small_policy(seed=1)), (small_policy(seed=1), small_policy())):
        sampler.load_weights(policy)
        completions = list(sampler.sample(requests))
        assert len(completions) == 24
        assert largest_gap(policy, requests, completions) < 1e-5
        assert largest_gap(other, requests, completions) > 0.1


def test_a_server_that_is_killed_while_it_draws_goes_on_with_the_current_weights(sampler, server):
    policy = small_policy(seed=2)
    sampler.load_weights(policy)
    requests = requests_of(40, rollouts=4)

    def killed() -> None:
        time.sleep(0.3)
        server.kill()
        server.start()

    thread = threading.Thread(target=killed)
    thread.start()
    completions = list(sampler.sample(requests))
    thread.join()
    assert len(completions) == 160
    assert largest_gap(policy, requests, completions) < 1e-5
    server.wait()
