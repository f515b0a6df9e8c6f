"""Draws by a colocated vLLM engine on each rank of a launcher, and prints what the main rank found of all of them."""

import json

import torch

from grpo.distributed import world as ranks
from tests.engines import largest_gap, requests_of, small_policy, vllm_engine


def main() -> None:
    torch.set_num_threads(1)
    with ranks.opened("cpu", watchdog_seconds=200.0) as world:
        policy = small_policy()
        sampler = vllm_engine(policy, shares_process_group=True)
        other = small_policy(seed=1)
        sampler.load_weights(other)
        requests = requests_of(3 + world.rank, rollouts=2)
        completions = list(sampler.sample(requests))
        found = world.gather({"drawn": len(completions), "gap": largest_gap(other, requests, completions)})
        if world.is_main:
            print("found", json.dumps(found))


if __name__ == "__main__":
    main()
