"""Draws by vLLM on each rank of a launcher, and prints what the main rank found of all of them.

torchrun --nproc-per-node 2 tests/workers/vllm_worker.py STRATEGY[-lora] [URL FOLDER]: an engine in each process, or the
server at URL, which sees FOLDER."""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a launcher starts a file, not a module

import torch
from torch import Tensor

from grpo import checkpoint
from grpo.distributed import world as ranks
from grpo.distributed.replicated import Replicated
from grpo.distributed.strategy import Strategy
from grpo.distributed.world import World
from grpo.distributed.zero import Zero
from grpo.policy import Policy
from grpo.sampling.current import Current
from grpo.sampling.protocol import Sampler
from tests.engines import ARCHITECTURE, largest_gap, requests_of, served_engine, vllm_engine
from tests.workers.zero_worker import config_of, policy_of, run


class Watching:
    """Notes how many elements of a policy's weights are whole at once while each of them is gathered."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.largest = max(vars(p).get("ds_numel", p.numel()) for p in policy.parameters())
        self.most = 0

    @contextmanager
    def around(self, gathered: AbstractContextManager[Tensor]) -> Iterator[Tensor]:
        with gathered as whole:
            self.most = max(self.most, sum(p.data.numel() for p in self._policy.parameters()))
            yield whole


def main() -> None:
    torch.set_num_threads(1)
    strategy_name, _, lora = sys.argv[1].partition("-")
    case: dict[str, Any] = {"architecture": ARCHITECTURE, "lora": bool(lora)}
    if strategy_name == "zero3":
        tuned = Path(tempfile.mkdtemp()) / "deepspeed.json"
        # DeepSpeed keeps small weights whole, and all of these are.
        tuned.write_text('{"zero_optimization": {"stage3_param_persistence_threshold": 0}}', encoding="utf-8")
        case["distributed"] = {"zero3_sampling": "gather", "deepspeed_config": str(tuned)}
    config = config_of(case, strategy=strategy_name)
    with ranks.opened("cpu", watchdog_seconds=200.0) as world:
        policy = policy_of(config)
        strategy: Strategy = (
            Replicated(policy, world, config.optim) if strategy_name == "ddp" else Zero(policy, world, config)
        )
        found = world.gather(drawn(strategy, policy, world, plain=policy_of(config)))
        if world.is_main:
            print("found", json.dumps(found))


def drawn(strategy: Strategy, policy: Policy, world: World, *, plain: Policy) -> dict[str, Any]:
    """What this rank saw before and after an update of the policy; `plain` takes the whole weights."""
    watching = Watching(policy)
    if isinstance(strategy, Zero):
        gathered = strategy._gathered
        strategy._gathered = lambda weight: watching.around(gathered(weight))  # type: ignore[method-assign]
    with strategy.handed_over() as source:
        current = Current(made(source, world), strategy)
    requests = requests_of(3 + world.rank, rollouts=2)
    gaps, counts = [], []
    for _ in range(2):
        checkpoint.load_weights(plain.model, world.broadcast(strategy.weights()))
        with current.drawing() as sampler:
            completions = list(sampler.sample(requests))
        counts.append(len(completions))
        gaps.append(largest_gap(plain, requests, completions))
        for _ in run(strategy, ranks=[world.rank], num_ranks=world.size, numbers=(5,)):
            current.load()
    checkpoint.load_weights(plain.model, world.broadcast(strategy.weights()))
    return {
        "drawn": counts,
        "gaps": gaps,
        "gap_of_updated": largest_gap(plain, requests, completions),
        "most_whole": watching.most,
        "largest": watching.largest,
        "compared": sampler.describe(),  # type: ignore[attr-defined]
    }


def made(source: Policy, world: World) -> Sampler:
    if len(sys.argv) > 2:
        return served_engine(source, sys.argv[2], folder=Path(sys.argv[3]), world=world)
    return vllm_engine(source, shares_process_group=True)


if __name__ == "__main__":
    main()
