"""What watching traits adds to a step, in CPU-seconds.

    python scripts/time_watching.py configs/quickstart.yaml [section.key=value ...] [--turns 20] [--blocks 1 2]

A step's rollouts are drawn once. The update on them is then made again and again, watching and not watching by turns,
with a learning rate that moves nothing, and the difference of each pair of turns is held against the whole step,
sampling included. Rewards are a coin's, so that every group is trained on; vectors are random; the policy is the
config's own at random, without a cold start. Projections need neither skill nor meaning to cost what they cost."""

import argparse
import time
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory

import torch

from grpo.config import RunConfig, load
from grpo.distributed.world import World
from grpo.persona.vectors import OVERS, Origin, PersonaVectors, save
from grpo.recipe import stages_of, trainer_of, watching_of
from grpo.starts import Run
from grpo.tracking.console import Console
from grpo.types import Group, StepStats
from grpo.update import Updater
from grpo.wiring import opened

COIN = "def coin(completion, problem):\n    return float(sum(map(ord, completion)) % 2)\n"


def main() -> None:
    """Print the seconds of sampling, of updates with and without watching, and the share of the step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("changes", nargs="*", help="section.key=value")
    parser.add_argument("--turns", type=int, default=20, help="pairs of updates (20)")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1], help="one trait is watched at each (1)")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        config = timed_config(arguments.config, arguments.changes, folder=Path(folder), blocks=arguments.blocks)
        report(config, turns=arguments.turns)


def timed_config(path: Path, changes: list[str], *, folder: Path, blocks: list[int]) -> RunConfig:
    """The config with a coin for a reward, uniform practice and one watched trait for each block."""
    (folder / "coin.py").write_text(COIN, encoding="utf-8")
    plain = load(path, changes)
    size = plain.model.architecture or {}
    vectors = folder / "random.safetensors"
    save(random_vectors(num_blocks=int(size["num_hidden_layers"]), hidden_size=int(size["hidden_size"])), vectors)
    watched = ", ".join(f"{{vectors: {vectors}, name: random_{block}, block: {block}}}" for block in blocks)
    fixed = [
        f"run.folder={folder}",
        "run.name=timed",
        "sft=null",
        "curriculum={kind: uniform, max_refill_waves: 0}",
        "temperature={kind: constant}",
        f"reward={{file: {folder / 'coin.py'}, function: coin, workers: 0}}",
        f"persona.watch=[{watched}]",
        "optim={learning_rate: 1.0e-12}",
    ]
    return load(path, [*changes, *fixed])


def random_vectors(*, num_blocks: int, hidden_size: int) -> PersonaVectors:
    """Of no trait."""
    zeros = (0.0,) * num_blocks
    origin = Origin(
        trait="random",
        description="Nothing.",
        policy="",
        family="",
        model_type="",
        num_blocks=num_blocks,
        hidden_size=hidden_size,
        checkpoint="start",
        num_instructions=0,
        num_questions=0,
        rollouts_per_question=0,
        num_positive=0,
        num_negative=0,
        num_drawn=0,
        dropped={},
        threshold=0.5,
        coherence_threshold=0.5,
        temperature=1.0,
        seed=0,
        separation=zeros,
        random_separation=zeros,
        agreement=zeros,
        hidden_norm=zeros,
        definition={},
        num_tokens=0,
    )
    noise = torch.Generator().manual_seed(0)
    return PersonaVectors(origin, {over: torch.randn(num_blocks, hidden_size, generator=noise) for over in OVERS})


def report(config: RunConfig, *, turns: int) -> None:
    """Time the config's step and print what was found."""
    console = Console(num_steps=1)
    with opened(
        config,
        world=World.alone(),
        start="fresh",
        phases=("train",),
        console=console,
        should_stop=lambda: False,
        must_stop=lambda: False,
    ) as run:
        trainer = trainer_of(run)
        begun = time.process_time()
        groups = trainer.draw()
        sampling = time.process_time() - begun
        pairs = timed(run, [group for group in groups if not group.degenerate], turns=turns)
        num_parameters = sum(weight.numel() for weight in run.policy.parameters())
    plain, watched = (fmean(of_turns) for of_turns in zip(*pairs, strict=True))
    differences = [with_it - without for without, with_it in pairs]
    step, error = sampling + plain, stdev(differences) / len(differences) ** 0.5
    tokens = sum(group.num_tokens for group in groups)
    console.say(f"{num_parameters:,} parameters, {len(groups)} groups with {tokens:,} tokens, {turns} pairs of updates")
    console.say(f"CPU-seconds: sampling {sampling:.3f}, update {plain:.4f}, update that is watched {watched:.4f}")
    console.say(
        f"watching adds {fmean(differences):.4f} ± {error:.4f} s: {100 * fmean(differences) / step:.2f} % of the step "
        f"(± {100 * error / step:.2f}), {100 * fmean(differences) / plain:.2f} % of the update"
    )


def timed(run: Run, groups: list[Group], *, turns: int) -> list[tuple[float, float]]:
    """CPU-seconds of the update without and with watching, turn by turn; each goes first in every other turn."""
    (stage,) = stages_of(run.config)
    watching = watching_of(run)
    updater = Updater(run.strategy, run.config, world=run.world, on_projections=watching.read)
    watched = run.policy.watched

    def seconds(*, watches: bool) -> float:
        run.policy.watch(watched if watches else None)
        stats = StepStats()
        begun = time.process_time()
        trained = updater.update(groups, stage=stage, step=0, stats=stats)
        watching.end_step(None, trained, stats, step=1)
        spent = time.process_time() - begun
        assert watches == any(name.startswith("persona/") for name in stats.reduce())
        return spent

    for watches in (True, False):
        seconds(watches=watches)  # the first update makes its moments
    pairs = []
    for turn in range(turns):
        found = {watches: seconds(watches=watches) for watches in ((False, True) if turn % 2 else (True, False))}
        pairs.append((found[False], found[True]))
    return pairs


if __name__ == "__main__":
    main()
