"""RL against its rivals at equal compute, from the same cold start, on held-out problems, over paired seeds.

    python scripts/compare_baselines.py configs/quickstart.yaml --seeds 11 12 13 14 15 --folder runs/compare

For each seed the recipe runs as the config says; what profiling and training cost in CPU-seconds is the budget of each
rival, which starts from the same cold-start checkpoint:
  continued SFT         more supervised steps on the same traces (the section sft), the optimizer begun anew
  rejection-sampling    rounds of: sample training problems, keep distinct right completions, supervised steps on them
All are evaluated on the same held-out problems with the same noise. A seed that is finished is not run again, and the
table is printed from all finished seeds, so the script can be stopped and started."""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from grpo import recipe as phases
from grpo.batch import TrainedRollout, micro_batches
from grpo.config import RunConfig, load
from grpo.distributed.world import World
from grpo.errors import Interrupted
from grpo.evaluation import by_column, evaluate
from grpo.folder import write_json
from grpo.logprobs import LossOf
from grpo.optim import Optimizer
from grpo.policy import Wanted
from grpo.recipe import Run
from grpo.rollout import Attempts
from grpo.sft import cold_start
from grpo.tracking.console import Console
from grpo.types import Rollout
from grpo.wiring import opened

HARD = ("4", "5", "6")  # operations that no trace of the cold start has
ARMS = ("start", "grpo", "continued SFT", "rejection-sampling SFT")
T_975 = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # Student, n − 1 degrees


def main() -> None:
    """Run the seeds that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/compare"))
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value", help="fields to change")
    parser.add_argument("--sft-learning-rate", type=float, default=1e-3, help="of continued SFT")
    parser.add_argument("--rejection-learning-rate", type=float, default=5e-4, help="of rejection-sampling SFT")
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    for seed in [] if arguments.table_only else arguments.seeds:
        result = arguments.folder / f"seed_{seed}.json"
        if not result.is_file():
            # Rewards inside the process, so that its CPU time is the whole of the run's.
            changes = [
                f"run.seed={seed}",
                f"run.name=seed_{seed}",
                f"run.folder={arguments.folder}",
                "reward.workers=0",
            ]
            config = load(arguments.config, [*changes, *arguments.set])
            write_json(result, run_seed(config, arguments))
    print_table([arguments.folder / f"seed_{seed}.json" for seed in arguments.seeds])


def run_seed(config: RunConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Scores of every arm of one seed, and what they cost."""
    console = Console(num_steps=config.train.steps)
    wanted = phases.phases_of(config)
    with opened(
        config,
        world=World.alone(),
        start="fresh",
        phases=wanted,
        console=console,
        should_stop=lambda: False,
        must_stop=lambda: False,
    ) as run:
        phases.run_sft(run)
        started = time.process_time()
        if "profile" in wanted:
            phases.run_profile(run)
        profiled = time.process_time()
        phases.run_train(run)
        budget = time.process_time() - started
        arms = {"grpo": scores(run)}
        phases.load_start(run)
        arms["start"] = scores(run)
        continued_sft(run, learning_rate=arguments.sft_learning_rate, until=_spent(budget))
        arms["continued SFT"] = scores(run)
        phases.load_start(run)
        rejection_sampling(run, learning_rate=arguments.rejection_learning_rate, until=_spent(budget))
        arms["rejection-sampling SFT"] = scores(run)
    return {"seed": config.run.seed, "budget": budget, "profile": profiled - started, "arms": arms}


def _spent(budget: float) -> Callable[[], bool]:
    """True once `budget` CPU-seconds have gone by since it was first asked: what comes before is not a rival's bill."""
    started: float | None = None

    def spent() -> bool:
        nonlocal started
        if started is None:
            started = time.process_time()
        return time.process_time() - started >= budget

    return spent


def scores(run: Run) -> dict[str, float]:
    """pass@1 over all held-out problems, by number of operations, and over the hard ones."""
    config = run.config.evaluation
    column = config.by_column or ""
    result = evaluate(
        run.rollouts,
        run.heldout,
        num_rollouts=config.rollouts_per_problem,
        temperature=config.temperature,
        k=[1],
        max_error_fraction=run.config.reward.max_error_fraction,
        groupings={column: by_column(run.heldout, column)},
    )
    hard = [
        score for problem in run.heldout if str(problem.meta[column]) in HARD for score in [result.scores[problem.id]]
    ]
    by_group = {group: table.metrics["pass@1"].value for group, table in result.parts[column].items()}
    return {"all": result.overall.metrics["pass@1"].value, "hard": fmean(hard), **by_group}


def continued_sft(run: Run, *, learning_rate: float, until: Callable[[], bool]) -> None:
    """More steps of the cold start's own kind, without a gate."""
    assert run.config.sft is not None
    config = run.config.sft.model_copy(
        update={"gate_pass_at_1": None, "max_steps": 1_000_000, "learning_rate": learning_rate}
    )
    with suppress(Interrupted):  # raised when the budget is spent
        cold_start(
            run.policy,
            chat=run.chat,
            traces=run.traces,
            config=config,
            pass_at_1=lambda: math.nan,
            should_stop=until,
            on_look=lambda step, value: None,
            on_step=lambda step: None,
            seed=run.config.run.seed + 1,
            folder=run.folder.path / "continued",
            world=run.world,
        )


def rejection_sampling(run: Run, *, learning_rate: float, until: Callable[[], bool]) -> None:
    """Expert iteration: each round samples four GRPO steps' problems and learns their distinct right completions."""
    optimizer = Optimizer(run.policy, run.config.optim)
    order = random.Random(run.config.run.seed)
    pool = list(run.train)
    train, stage = run.config.train, 0
    while not until():
        problems = order.sample(pool, min(len(pool), 4 * train.problems_per_step))
        attempts = [Attempts(problem=p, first_attempt=0, num_rollouts=train.group_size) for p in problems]
        groups = run.rollouts.run(attempts, temperature=1.0, phase="rejection", step=stage).groups
        right = [
            {rollout.token_ids: rollout for rollout, good in zip(g.rollouts, g.correct, strict=True) if good}
            for g in groups
        ]
        kept = [rollout for of_group in right for rollout in of_group.values()]
        order.shuffle(kept)
        for start in range(0, len(kept), 64):
            supervised_step(run, kept[start : start + 64], optimizer, learning_rate=learning_rate)
        stage += 1


def supervised_step(run: Run, rollouts: Sequence[Rollout], optimizer: Optimizer, *, learning_rate: float) -> None:
    """One step of maximum likelihood on the rollouts' action tokens."""
    num_tokens = sum(rollout.num_actions for rollout in rollouts)
    trained = [
        TrainedRollout(rollout=rollout, advantage=1.0, group_tokens=num_tokens, group_rollouts=len(rollouts))
        for rollout in rollouts
    ]
    batches = micro_batches(
        [trained],
        tokens_per_micro_batch=run.config.train.tokens_per_micro_batch,
        limit_tokens=run.config.sampling.max_completion_tokens,
        aggregation="token",
        device=run.policy.device,
        shares_prompts=run.policy.packs,
    )
    for batch in batches:
        loss, *_ = run.policy(batch, Wanted(loss_of=negative_likelihood(batch.weights)))
        optimizer.backward(loss)
    optimizer.update(rate=learning_rate)
    run.rollouts.load_weights()


def negative_likelihood(weights: Tensor) -> LossOf:
    """The loss of maximum likelihood."""
    return lambda logprobs, part: -(logprobs * weights[part]).sum()


def print_table(results: Sequence[Path]) -> None:
    """Means with standard deviations over seeds, and GRPO's paired differences with 95 % t-intervals."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in results if path.is_file()]
    print(
        f"{len(rows)} seeds, budget {fmean(r['budget'] for r in rows):.0f} CPU-seconds "
        f"(profile {fmean(r['profile'] for r in rows):.0f} of them)\n"
    )
    print("| arm | pass@1 | 4-6 operations | GRPO − arm, all | GRPO − arm, 4-6 |\n|---|---|---|---|---|")
    for arm in ARMS:
        cells = [_spread([row["arms"][arm][key] for row in rows]) for key in ("all", "hard")]
        gains = [_paired([row["arms"]["grpo"][key] - row["arms"][arm][key] for row in rows]) for key in ("all", "hard")]
        print(f"| {arm} | {' | '.join(cells)} | {' | '.join(['–', '–'] if arm == 'grpo' else gains)} |")
    print("\nby seed (pass@1 all / 4-6):")
    for row in rows:
        shown = ", ".join(f"{arm} {row['arms'][arm]['all']:.3f}/{row['arms'][arm]['hard']:.3f}" for arm in ARMS)
        print(f"  {row['seed']}: {shown}")


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def _paired(values: Sequence[float]) -> str:
    if len(values) not in T_975:
        return f"{fmean(values):+.3f}"
    half = T_975[len(values)] * stdev(values) / math.sqrt(len(values))
    return f"{fmean(values):+.3f} [{fmean(values) - half:+.3f}, {fmean(values) + half:+.3f}]"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
