"""The sampler of servers, against one that speaks as vLLM's does: who is handed weights when, and what ends a run."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.config import SamplingConfig
from grpo.distributed.world import World
from grpo.errors import ConfigError
from grpo.policy import Policy
from grpo.sampling import served
from grpo.sampling.served import ServedSampler
from grpo.sampling.server import ServerGoneError
from tests.engines import requests_of, small_policy
from tests.launch import free_port
from tests.weight_server import END, LOGPROB, Held, weight_server


@pytest.fixture(autouse=True)
def no_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of these tests has no model that could agree with a policy."""
    monkeypatch.setattr(served, "check_agreement", lambda sampler, policy, *, engine: 0.0)


@pytest.fixture
def server() -> Iterator[tuple[str, Held]]:
    with weight_server() as found:
        yield found


def sampler_of(
    folder: Path,
    *urls: str,
    timeout_seconds: float = 20.0,
    context_tokens: int = 64,
    world: World | None = None,
    policy: Policy | None = None,
) -> ServedSampler:
    own = {"mode": "server", "urls": list(urls), "exchange_folder": str(folder), "timeout_seconds": timeout_seconds}
    fields = {"engine": "vllm", "vllm": own | {"check_every_syncs": 0}, "max_completion_tokens": 8, "max_rows": 8}
    return ServedSampler(
        policy or small_policy(),
        SamplingConfig.model_validate(fields),
        end_token_ids=(END,),
        context_tokens=context_tokens,
        world=world or World.alone(),
    )


def test_a_server_has_the_weights_before_its_first_answer_and_drops_its_cache_at_each_hand_over(tmp_path, server):
    url, held = server
    sampler = sampler_of(tmp_path, url)
    assert (len(held.paths), held.num_dropped_caches, held.num_answers) == (1, 1, 0)
    completions = list(sampler.sample(requests_of(5, rollouts=3)))
    assert [(c.request, c.index) for c in completions] == [(r, i) for r in range(5) for i in range(3)]
    assert {(c.token_ids, c.logprobs) for c in completions} == {((END,), (LOGPROB,))}
    sampler.load_weights(small_policy())
    assert (len(held.paths), held.num_dropped_caches, held.version) == (2, 2, sampler.version)


def test_weights_of_the_step_before_do_not_pile_up(tmp_path, server):
    sampler = sampler_of(tmp_path, server[0])
    for _ in range(3):
        sampler.load_weights(small_policy())
    assert [path.name for path in tmp_path.glob("run_*/*")] == [sampler.version]


def test_a_server_that_was_started_again_is_handed_the_weights_and_asked_again(tmp_path, server):
    url, held = server
    sampler = sampler_of(tmp_path, url)
    held.restart_after = 4
    completions = list(sampler.sample(requests_of(4, rollouts=3)))
    assert len(completions) == 12
    assert held.version == sampler.version
    assert len(held.paths) == 2  # once, however many answers were of the old weights
    assert held.num_answers > 12  # those are drawn again


def test_adapters_alone_are_handed_over_and_those_of_the_step_before_leave_the_server(tmp_path, server):
    url, held = server
    policy = small_policy(lora={"rank": 4})
    sampler = sampler_of(tmp_path, url, policy=policy)
    for _ in range(3):
        sampler.load_weights(policy)
        assert list(held.adapters) == [sampler.version] == [path.name for path in tmp_path.glob("run_*/*")]
    assert held.paths == []  # no weights
    assert held.num_dropped_caches == 4
    assert len(list(sampler.sample(requests_of(3, rollouts=2)))) == 6


def test_a_server_that_was_started_again_is_handed_the_adapters(tmp_path, server):
    url, held = server
    sampler = sampler_of(tmp_path, url, policy=small_policy(lora={"rank": 4}))
    held.restart_after = 4
    assert len(list(sampler.sample(requests_of(4, rollouts=3)))) == 12
    assert list(held.adapters) == [held.version] == [sampler.version]


def test_adapters_are_loaded_again_where_a_hand_over_was_broken_off_after_them(tmp_path, server):
    url, held = server
    held.drops_that_fail = 1
    sampler = sampler_of(tmp_path, url, policy=small_policy(lora={"rank": 4}))
    assert list(held.adapters) == [held.version] == [sampler.version]


def test_a_server_that_somebody_else_loads_ends_the_run_with_its_name(tmp_path, server):
    url, held = server
    sampler = sampler_of(tmp_path, url)
    held.stubborn = True
    held.forget()
    with pytest.raises(ServerGoneError, match=f"{url} keeps answering from other weights"):
        list(sampler.sample(requests_of(1, rollouts=1)))


def test_a_server_that_is_not_there_ends_the_run_with_its_name_in_time(tmp_path):
    url = f"http://127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(ServerGoneError, match=f"{url} has not answered for 1 seconds") as error:
        sampler_of(tmp_path, url, timeout_seconds=1.0)
    assert time.monotonic() - started < 20
    assert error.value.exit_code == 75


def test_a_server_that_dies_while_it_draws_ends_the_run_with_its_name_in_time(tmp_path):
    with weight_server() as (url, _):
        sampler = sampler_of(tmp_path, url, timeout_seconds=1.0)
    with pytest.raises(ServerGoneError, match=url):
        list(sampler.sample(requests_of(2, rollouts=2)))


def test_a_server_for_shorter_texts_is_refused_with_what_to_start_it_with(tmp_path, server):
    with pytest.raises(ConfigError, match="start it with --max-model-len 65"):
        sampler_of(tmp_path, server[0], context_tokens=65)


def test_several_servers_share_the_requests_and_all_have_the_weights(tmp_path, server):
    with weight_server() as (other_url, other):
        url, held = server
        sampler = sampler_of(tmp_path, url, other_url)
        assert len(list(sampler.sample(requests_of(4, rollouts=4)))) == 16
        assert held.version == other.version == sampler.version
        assert held.num_answers == other.num_answers == 8


def test_a_temperature_that_vllm_would_raise_is_refused(tmp_path, server):
    sampler = sampler_of(tmp_path, server[0])
    with pytest.raises(ValueError, match=r"temperature = 0\.005: vLLM draws at 0\.01 where less is asked for"):
        list(sampler.sample(requests_of(1, rollouts=1, temperature=0.005)))
    assert len(list(sampler.sample(requests_of(1, rollouts=1, temperature=0.01)))) == 1
