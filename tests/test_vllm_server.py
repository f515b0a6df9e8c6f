"""A real server of vLLM: weights change and answers with them, and it may be killed and started again."""

import threading
import time
from collections.abc import Iterator

import pytest

from grpo.sampling import handover
from grpo.sampling.served import ServedSampler
from tests.engines import LEARNING, found_by_ranks, largest_gap, needs_vllm, requests_of, served_engine, small_policy
from tests.runs import grpo, read_jsonl, small_run_file
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
    return served_engine(small_policy(), server.url, folder=tmp_path_factory.mktemp("exchange"))


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


def test_weights_in_several_files_are_all_read(sampler, monkeypatch):
    monkeypatch.setattr(handover, "FILE_BYTES", 20_000)
    policy, requests = small_policy(seed=3), requests_of(4, rollouts=2)
    sampler.load_weights(policy)
    assert largest_gap(policy, requests, list(sampler.sample(requests))) < 1e-5


@pytest.mark.parametrize("case", ["ddp", "zero3"])
def test_several_ranks_share_a_server_that_has_the_whole_weights(server, tmp_path, case):
    found = found_by_ranks(case, server.url, tmp_path)
    assert [of_rank["drawn"] for of_rank in found] == [[6, 6], [8, 8]]
    for of_rank in found:
        assert max(of_rank["gaps"]) < 1e-4
        assert of_rank["gap_of_updated"] > 1e-3
        assert case == "ddp" or 0 < of_rank["most_whole"] <= of_rank["largest"]
    assert "are the policy's" in found[0]["compared"]  # by the rank that handed them over


def test_a_run_whose_server_is_killed_in_the_middle_learns_all_the_same(server, tmp_path):
    own = {"mode": "server", "urls": [server.url], "exchange_folder": str(tmp_path / "exchange"), "seeds": "engine"}
    own |= {"timeout_seconds": 2 * START_SECONDS}
    metrics = tmp_path / "runs" / "small" / "metrics.jsonl"
    killed_at: list[int] = []

    def kill_after_a_few_steps() -> None:
        while len(read_jsonl(metrics)) < 8:
            time.sleep(0.05)
        server.kill()
        killed_at.append(len(read_jsonl(metrics)))
        server.start()

    thread = threading.Thread(target=kill_after_a_few_steps, daemon=True)
    thread.start()
    changes = LEARNING | {"sampling.engine": "vllm", "sampling.vllm": own, "data.max_prompt_tokens": 40}
    assert grpo("train", small_run_file(tmp_path, **changes)) == 0
    thread.join(timeout=10)
    rows = read_jsonl(metrics)
    assert len(rows) == 25
    assert 8 <= killed_at[0] < 25
    rewards = [row["reward/mean"] for row in rows]
    assert sum(rewards[:5]) / 5 < 0.6
    assert sum(rewards[-5:]) / 5 > 0.8
    assert max(row["policy/sampler_logprob_gap_max"] for row in rows) < 1e-5  # no answer of the server's first weights
    server.wait()
