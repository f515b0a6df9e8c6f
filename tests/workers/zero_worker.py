"""What each rank does in tests/test_zero.py: every case once, measured; the main rank writes the numbers.

torchrun --nproc-per-node 2 tests/workers/zero_worker.py OUT.json CASES.json"""

import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a launcher starts a file, not a module

import torch
import torch.distributed as dist
from torch import Tensor

from grpo import logprobs
from grpo.batch import MicroBatch, TrainedRollout, micro_batches
from grpo.config import RunConfig, SamplingConfig
from grpo.distributed.replicated import Replicated
from grpo.distributed.strategy import Strategy
from grpo.distributed.world import World
from grpo.distributed.zero import Zero
from grpo.logprobs import LossOf
from grpo.model import load_model, load_tokenizer
from grpo.policy import Policy, Wanted
from grpo.sampling.native import NativeSampler
from grpo.sampling.protocol import Completion, Request
from grpo.steering import Positions, Steering
from grpo.types import Rollout, StopReason

CPU = torch.device("cpu")
VOCABULARY = 96
RATE = 1e-2
ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
# Odd sizes (33 weights in a bias) make shards that do not fill their ranks.
ODD = {"model_type": "qwen2", **{k: v for k, v in ARCHITECTURE.items() if k != "model_type"}, "intermediate_size": 33}


def config_of(case: Mapping[str, Any], *, strategy: str) -> RunConfig:
    distributed: dict[str, Any] = {"strategy": strategy}
    if strategy != "ddp":
        distributed |= case.get("distributed", {})
    return RunConfig.model_validate(
        {
            "run": {"name": "zero", "device": "cpu"},
            "model": {
                "architecture": ODD if case.get("odd") else ARCHITECTURE | case.get("architecture", {}),
                "tokenizer": "task:list_machine",
                "dtype": case.get("dtype", "float32"),
                "initial_embedding_std": 1.0,
                "activation_checkpointing": case.get("checkpointing", False),
                "float32_head": case.get("float32_head", False),
                "lora": {"rank": 3} if case.get("lora") else None,
            },
            "data": {"train": {"path": "task:list_machine"}},
            "sampling": {"max_completion_tokens": 12, "max_rows": 8},
            "reward": {"name": "list_machine"},
            "train": {"steps": 4},
            "optim": {"learning_rate": RATE, "weight_decay": 0.1, "max_grad_norm": case.get("clip", 0.05)},
            "distributed": distributed,
        }
    )


def policy_of(config: RunConfig, *, seed: int = 0) -> Policy:
    # float16 is for GPUs, but what ZeRO makes of it can be seen here.
    loaded = config.model.model_copy(update={"dtype": "float32"}) if config.model.dtype == "float16" else config.model
    model = load_model(loaded, tokenizer=load_tokenizer(config.model), seed=seed, device=CPU)
    if config.model.dtype == "float16":
        model.half()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, and then the gradient of lora_A too
                parameter.copy_(0.1 * torch.ones_like(parameter).cumsum(0).sin())
    return Policy(model)


def rollouts(number: int, *, seed: int) -> list[TrainedRollout]:
    rng = random.Random(seed)
    made = []
    for attempt in range(number):
        prompt, completion = rng.randrange(1, 6), rng.randrange(2, 20)
        length = prompt + completion
        rollout = Rollout(
            problem_id="p",
            attempt=attempt,
            token_ids=tuple(rng.randrange(VOCABULARY) for _ in range(length)),
            action_mask=(False,) * prompt + (True,) * completion,
            logprobs=(0.0,) * length,
            kept=None,
            stop_reason=StopReason.END_TOKEN,
            temperature=rng.choice([0.7, 1.0]),
            policy_step=0,
        )
        made.append(TrainedRollout(rollout=rollout, advantage=rng.gauss(0, 1), group_tokens=0, group_rollouts=0))
    tokens = sum(trained.rollout.num_actions for trained in made)
    return [replace(trained, group_tokens=tokens, group_rollouts=len(made)) for trained in made]


def batches(number: int, *, seed: int, rank: int, num_ranks: int) -> list[MicroBatch]:
    return micro_batches(
        [rollouts(number, seed=seed)],
        tokens_per_micro_batch=48,
        limit_tokens=24,
        aggregation="token",
        device=CPU,
        rank=rank,
        num_ranks=num_ranks,
    )


def accumulate(strategy: Strategy, update: Sequence[MicroBatch], *, factor: float = 1.0) -> None:
    for place, batch in enumerate(update):
        loss = strategy.forward(batch, Wanted(loss_of=loss_of(batch, factor=factor))).loss
        assert loss is not None
        strategy.backward(loss, last=place + 1 == len(update))


def loss_of(batch: MicroBatch, *, factor: float) -> LossOf:
    return lambda chosen, part: -factor * (chosen * batch.advantages[part] * batch.weights[part]).sum()


# Rollouts of each update: several micro-batches a rank, one, and one of which a rank has a filler only.
UPDATES = (9, 5, 1)


def run(
    strategy: Strategy, *, ranks: Sequence[int], num_ranks: int, numbers: Sequence[int] = UPDATES
) -> Iterator[dict[str, Any]]:
    """Updates of the micro-batches of `ranks`: one rank that does those of all adds up what several would."""
    for seed, number in enumerate(numbers):
        of_ranks = [batches(number, seed=seed, rank=rank, num_ranks=num_ranks) for rank in ranks]
        accumulate(strategy, [batch for of_rank in of_ranks for batch in of_rank])
        gradients = {name: gradient.clone() for name, gradient in strategy.gradients()}
        yield {"gradients": gradients, "norm": strategy.update(rate=RATE / (seed + 1))}


def relative(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest relative L2 difference of a tensor."""
    assert found.keys() == expected.keys(), (sorted(found), sorted(expected))
    gaps = []
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert found[name].dtype == tensor.dtype, (name, found[name].dtype, tensor.dtype)
        gaps.append(float((found[name].double() - tensor.double()).norm() / tensor.double().norm().clamp_min(1e-30)))
    return max(gaps)


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return isinstance(found, Tensor) and found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, Mapping):
        return found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)
    return bool(found == expected)


def updates(world: World, case: Mapping[str, Any]) -> dict[str, Any]:
    """Gradients, norms and weights beside one rank's, a skipped update, and an exact resume."""
    config = config_of(case, strategy=case["strategy"])
    zero = Zero(policy_of(config), world, config)
    plain_config = config_of(case, strategy="ddp")
    plain = Replicated(policy_of(plain_config), World.alone(), plain_config.optim)
    with plain.sampling_policy() as policy:
        policy.shards_head = case["strategy"] == "zero3"  # the same products in the same order
    found: dict[str, Any] = {"gradient_gaps": [], "norm_gaps": [], "norms": [], "weight_gaps": []}
    if config.model.dtype == "float16":
        begin_in_float16(zero, plain)
    ours = run(zero, ranks=[world.rank], num_ranks=world.size)
    theirs = run(plain, ranks=range(world.size), num_ranks=world.size)
    for own, one_rank in zip(ours, theirs, strict=True):
        found["gradient_gaps"].append(relative(own["gradients"], one_rank["gradients"]))
        whole = float(torch.stack([g.norm() for g in own["gradients"].values()]).norm())
        found["norm_gaps"].append(max(abs(own["norm"] / whole - 1), abs(own["norm"] / one_rank["norm"] - 1)))
        found["norms"].append(own["norm"])
        weights = world.broadcast(zero.weights())
        found["weight_gaps"].append(relative(weights, plain.weights()))
    weights, state = world.broadcast(zero.weights()), world.broadcast(zero.state_dict())
    # One rank's loss is not finite: nothing moves on any, and nothing of it is left behind.
    update = batches(5, seed=7, rank=world.rank, num_ranks=world.size)
    accumulate(zero, update, factor=float("nan") if world.rank == 1 else 1.0)
    found["skipped_norm_is_finite"] = bool(torch.tensor(zero.update(rate=RATE)).isfinite())
    found["scale_after_skipping"] = zero.metrics().get("optim/loss_scale")
    found["lowered_scale"] = zero.lowered_scale
    found["skipping_changed_nothing"] = same(world.broadcast(zero.weights()), weights) and same(
        world.broadcast(zero.state_dict()) | {"loss_scale": state.get("loss_scale")}, {"loss_scale": None} | state
    )
    if config.model.dtype == "float16":
        state = world.broadcast(zero.state_dict())
    # A second engine that is loaded goes on bit for bit as the first.
    # The base beneath adapters is no part of a checkpoint: it comes with the model.
    seed = 0 if case.get("lora") else 1
    other = Zero(policy_of(config, seed=seed), world, config)
    other.load_weights(weights)
    other.load_state_dict(state)
    found["loaded_is_what_was_saved"] = same(world.broadcast(other.weights()), weights) and same(
        world.broadcast(other.state_dict()), state
    )
    for strategy in (zero, other):
        found[f"norms_of_{'first' if strategy is zero else 'second'}"] = [
            own["norm"] for own in run(strategy, ranks=[world.rank], num_ranks=world.size, numbers=(4, 6))
        ]
    found["resume_is_exact"] = same(world.broadcast(zero.weights()), world.broadcast(other.weights())) and same(
        world.broadcast(zero.state_dict()), world.broadcast(other.state_dict())
    )
    # ddp on one rank goes on from the checkpoint, and ZeRO from its.
    plain.load_weights(weights)
    plain.load_state_dict(state)
    for _ in run(plain, ranks=range(world.size), num_ranks=world.size, numbers=(4, 6)):
        pass
    found["ddp_goes_on"] = relative(plain.weights(), world.broadcast(zero.weights()))
    other.load_weights(plain.weights())
    other.load_state_dict(plain.state_dict())
    found["ddp_is_loaded"] = same(world.broadcast(other.state_dict()), world.broadcast(plain.state_dict()))
    # New weights begin with moments of zero, as a strategy of its own does.
    other.load_weights(weights)
    fresh = Zero(policy_of(config, seed=2 * seed), world, config)
    fresh.load_weights(weights)
    for strategy in (other, fresh):
        for _ in run(strategy, ranks=[world.rank], num_ranks=world.size, numbers=(3,)):
            pass
    found["loading_weights_begins_anew"] = same(world.broadcast(other.weights()), world.broadcast(fresh.weights()))
    return found


def begin_in_float16(zero: Zero, plain: Replicated) -> None:
    """Let DeepSpeed have float16 on a CPU, and begin with a scale that this model's gradients allow."""
    from deepspeed.accelerator import get_accelerator

    vars(get_accelerator())["is_fp16_supported"] = lambda: True
    for scale in (zero._loss_scale, plain._optimizer._loss_scale):
        assert scale is not None
        scale.value = 1024.0


def completions(policy: Policy, requests: Sequence[Request]) -> list[Completion]:
    config = SamplingConfig(max_completion_tokens=12, max_rows=8)
    tokenizer = load_tokenizer(config_of({}, strategy="ddp").model)
    sampler = NativeSampler(policy, config, end_token_ids=(0,), tokenizer=tokenizer)
    return sorted(sampler.sample(requests), key=lambda c: (c.request, c.index))


def sampling(world: World, case: Mapping[str, Any]) -> dict[str, Any]:
    """Each rank samples as many requests as it likes, before and after an update, steered and not."""
    config = config_of(case, strategy=case["strategy"])
    policy = policy_of(config)
    zero = Zero(policy, world, config)
    plain_config = config_of(case, strategy="ddp")
    plain = Replicated(policy_of(plain_config), World.alone(), plain_config.optim)
    requests = [
        Request(prompt_ids=tuple(range(3, 5 + n)), keys=tuple(range(n, 2 * n + 2)), temperature=1.0)
        for n in range(3 if world.rank else 1)
    ]
    found: dict[str, Any] = {"describe": zero.describe(), "same": [], "gaps": []}
    tokens: list[list[tuple[int, ...]]] = []
    seen = set()
    for steering in (None, None, Steering(vectors={1: torch.ones(32)}, coefficient=0.5)):
        policy.steer(steering)
        plain_policy_steered(plain, steering)
        with zero.sampling_policy() as sampled:
            seen.add(id(sampled))
            own = completions(sampled, requests)
        with plain.sampling_policy() as whole:
            expected = completions(whole, requests)
        found["same"].append([c.token_ids for c in own] == [c.token_ids for c in expected])
        pairs = zip(own, expected, strict=True)
        found["gaps"].append(
            max(abs(a - b) for o, e in pairs for a, b in zip(o.logprobs, e.logprobs, strict=True))
            if found["same"][-1]
            else None
        )
        tokens.append([c.token_ids for c in own])
        for strategy, ranks in ((zero, [world.rank]), (plain, range(world.size))):
            for _ in run(strategy, ranks=ranks, num_ranks=world.size, numbers=(5,)):
                pass
    found["steering_changes_tokens"] = tokens[2] != tokens[1]
    found["objects"] = len(seen)
    found["weights_held_between"] = sum(p.numel() for p in sampled.parameters())
    with zero.sampling_policy() as sampled:
        if world.rank == 1:  # the others are done at once
            completions(sampled, requests)
    return {name: (world.gather(value) if name in OF_EACH_RANK else value) for name, value in found.items()}


def steered(world: World, case: Mapping[str, Any]) -> dict[str, Any]:
    """Gaps between what is sampled and what the strategy's own forward scores, in bounds of the design, with the
    strategy steered as the loop does it: right, and with the scoring under another mask or none."""
    config = config_of(case, strategy=case["strategy"])
    policy = policy_of(config)
    strategy: Strategy = Replicated(policy, world, config.optim)
    if case["strategy"] != "ddp":
        strategy = Zero(policy, world, config)
    with torch.no_grad(), strategy.sampling_policy() as sampled:
        sampler = NativeSampler(
            sampled,
            SamplingConfig(max_completion_tokens=12, max_rows=8),
            end_token_ids=(0,),
            tokenizer=load_tokenizer(config.model),
        )
    requests = [Request(prompt_ids=tuple(range(3, 6 + 7 * n)), keys=(n, n + 9), temperature=0.7) for n in range(3)]
    noise = torch.Generator().manual_seed(0)
    vectors = {block: torch.randn(32, generator=noise) for block in (0, 1)}
    found: dict[str, Any] = {"gaps": {}}
    for positions in POSITIONS:
        steering = Steering(vectors, coefficient=-2.0, positions=positions)
        with strategy.sampling_policy() as sampled:
            sampler.load_weights(sampled)
            sampler.steer(steering)
            drawn = sorted(sampler.sample(requests), key=lambda c: (c.request, c.index))
            sampler.steer(None)
        others = [replace(steering, positions=other) for other in POSITIONS if other != positions]
        for scored in (steering, *others, None):
            strategy.steer(scored)
            gaps = [gap_of(strategy, batch) for batch in batches_of(requests, drawn, world)]
            strategy.steer(None)
            strategy.update(rate=0.0)
            of_ranks = [gap for of_rank in world.gather(gaps) for gap in of_rank]
            found["gaps"][f"{positions} scored as {scored and scored.positions}"] = max(of_ranks)
    return found


def batches_of(requests: Sequence[Request], drawn: Sequence[Completion], world: World) -> list[MicroBatch]:
    """This rank's part of the completions, which every rank has drawn alike."""
    groups: list[list[TrainedRollout]] = [[] for _ in requests]
    for c in drawn:
        prompt = requests[c.request].prompt_ids
        rollout = Rollout(
            problem_id=str(c.request),
            attempt=c.index,
            token_ids=prompt + c.token_ids,
            action_mask=(False,) * len(prompt) + (True,) * len(c.token_ids),
            logprobs=(0.0,) * len(prompt) + c.logprobs,
            kept=None,
            stop_reason=c.stop_reason,
            temperature=0.7,
            policy_step=0,
        )
        groups[c.request].append(TrainedRollout(rollout, advantage=1.0, group_tokens=9, group_rollouts=2))
    return micro_batches(
        groups,
        tokens_per_micro_batch=48,
        limit_tokens=24,
        aggregation="token",
        device=CPU,
        rank=world.rank,
        num_ranks=world.size,
    )


def gap_of(strategy: Strategy, batch: MicroBatch) -> float:
    scored = strategy.forward(batch, Wanted(loss_of=loss_of(batch, factor=1.0)))
    assert scored.loss is not None
    strategy.backward(scored.loss, last=True)
    if not len(scored.logprobs):
        return 0.0
    # 1 for the spread of the logits, which is more here: the bound is none too wide.
    return float((scored.logprobs - batch.sampler_logprobs).abs().max()) / (1e-5 / 0.7)


POSITIONS: tuple[Positions, ...] = ("choosing", "start", "completion", "all")
OF_EACH_RANK = ("same", "gaps", "steering_changes_tokens")


def plain_policy_steered(plain: Replicated, steering: Steering | None) -> None:
    with plain.sampling_policy() as policy:
        policy.steer(steering)


KINDS: dict[str, Callable[[World, Mapping[str, Any]], dict[str, Any]]] = {
    "updates": updates,
    "sampling": sampling,
    "steered": steered,
}


def main(out: Path, cases: Mapping[str, Any]) -> None:
    torch.set_num_threads(1)
    logprobs.CHUNK_ELEMENTS["cpu"] = VOCABULARY * 8  # so that the head is called several times a micro-batch
    dist.init_process_group("gloo")
    world = World(rank=dist.get_rank(), size=dist.get_world_size(), device=CPU)
    results = {}
    for name, case in cases.items():
        started = time.perf_counter()
        results[name] = KINDS[case["kind"]](world, case) | {"seconds": time.perf_counter() - started}
        if world.is_main:
            print(name, f"{time.perf_counter() - started:.1f}s", file=sys.stderr, flush=True)
    if world.is_main:
        out.write_text(json.dumps(results), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
