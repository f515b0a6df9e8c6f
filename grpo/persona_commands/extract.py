"""`grpo persona extract`: a trait's vectors from contrastive rollouts of a policy.

Each question is asked under both instructions of each pair, through the ordinary sampler; what keeps the filter of
`grpo.persona.contrast` is read at every block in one teacher-forced pass, and the vector is the difference of the means
(arXiv 2507.21509). Rollouts are drawn, filtered and summed up wave by wave: none is held longer."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from grpo import seeds
from grpo.config import RewardConfig
from grpo.errors import ConfigError, DataError, Interrupted
from grpo.final_evaluation import Evaluated, find_policies, load_policy
from grpo.fingerprints import profile_fingerprint
from grpo.folder import named_disk_errors
from grpo.model import base_of, max_positions
from grpo.persona.asking import judge_of, questions_of, under
from grpo.persona.contrast import Kept, Pair, Scored, Unit, halves, kept_pairs, scored_of
from grpo.persona.kept import KeptCompletions, Side, without_verdict
from grpo.persona.means import Separation, Spread, Sums, Text, averages, separation, with_random
from grpo.persona.traits import Trait
from grpo.persona.vectors import OVERS, Origin, PersonaVectors, load, save
from grpo.rollout import Attempts, check_lost, check_prompts, lost_verdicts
from grpo.starts import Run, print_of
from grpo.types import Group, Problem

PHASE = "persona extract"
BATCHES_PER_WAVE = 2
"""Sampler batches of each rank in a wave: what a kill costs, and what is held at once."""


def extract(
    run: Run,
    trait: Trait,
    *,
    checkpoint: str,
    step: int = 0,
    keep_in: Path | None = None,
    may_stop: bool = False,
) -> PersonaVectors:
    """The vectors of `trait` in the policy as it stands, unsteered; the same on every rank, which all call it.

    `checkpoint` is what the policy is called, and `step`, a part of every noise key, the training behind it. With
    `keep_in`, a file of JSON lines, completions are written there as they come, and one that was cut short goes on from
    there. With `may_stop` it ends between two waves where the run was asked to, as Interrupted.
    Raises ConfigError for a scorer, DataError for questions, for prompts that do not fit and where fewer than
    persona.min_pairs pairs are kept, RewardError for too many lost verdicts."""
    steering = run.policy.steering
    run.rollouts.steer(None)
    try:
        return _Extraction(run, trait, checkpoint=checkpoint, step=step, keep_in=keep_in, may_stop=may_stop).vectors()
    finally:
        run.rollouts.steer(steering)


def run_extract(run: Run, trait: Trait, *, checkpoint: str, output: Path | None, is_fresh: bool) -> None:
    """The command: put the policy in place, extract, write the file, print what it holds.

    Raises ConfigError where the output holds vectors of another policy or trait, unless `is_fresh`."""
    policy = put_in_place(run, checkpoint)
    name = trait.name if checkpoint == "start" else f"{trait.name}_{policy.name}"
    path = output or run.folder.path / "persona" / f"{name}.safetensors"
    _check_output(run, path, trait, is_fresh=is_fresh)
    rollouts = path.with_name(f"{path.stem}_rollouts.jsonl")
    found = extract(run, trait, checkpoint=checkpoint, keep_in=rollouts, may_stop=True)
    if not run.world.is_main:
        return
    with named_disk_errors(path, then="and extract again, which draws nothing twice"):
        save(_with_recommendation(found, path), path)
    run.console.print(table_of(found))
    dropped = "; ".join(f"{count:,} {reason}" for reason, count in found.origin.dropped.items())
    run.console.say(
        f"{trait.name}: {found.origin.num_positive:,} pairs of {found.origin.num_drawn // 2:,} are kept"
        + (f" ({dropped})" if dropped else "")
    )
    run.console.say(f"{trait.name}: vectors in {path}, completions in {rollouts}")


def put_in_place(run: Run, checkpoint: str) -> Evaluated:
    """Load the policy that --checkpoint names. Raises CheckpointError where there is none."""
    (policy,) = find_policies(run, [checkpoint], field="--checkpoint")
    load_policy(run, policy, field="--checkpoint", speaker="persona")
    return policy


def table_of(vectors: PersonaVectors) -> Table:
    """What is known of the vectors, block by block."""
    origin = vectors.origin
    table = Table("block", title=f"{origin.trait}: vectors of {origin.checkpoint}", title_justify="left")
    for column in ("norm", "norm / hidden", "separation", "along random", "agreement of halves"):
        table.add_column(column, justify="right")
    for block, norm in enumerate(vectors.of["response"].norm(dim=-1).tolist()):
        numbers = (
            norm,
            norm / origin.hidden_norm[block],
            origin.separation[block],
            origin.random_separation[block],
            origin.agreement[block],
        )
        table.add_row(str(block), *(f"{number:.3f}" if math.isfinite(number) else "–" for number in numbers))
    return table


def _with_recommendation(found: PersonaVectors, path: Path) -> PersonaVectors:
    """With what a sweep recommended of the same vectors, where the file holds them already."""
    if not path.is_file():
        return found
    try:
        held = load(path)
    except DataError:  # it is replaced, as --fresh asked
        return found
    if not all(torch.equal(held.of[over], found.of[over]) for over in OVERS):
        return found
    return replace(
        found,
        recommended_block=held.recommended_block,
        recommended_coefficient=held.recommended_coefficient,
    )


def _check_output(run: Run, path: Path, trait: Trait, *, is_fresh: bool) -> None:
    """Raises ConfigError, on every rank, where the file is there and of something else."""
    own = print_of(run).content
    looks = run.world.is_main and path.is_file() and not is_fresh
    fault = run.world.broadcast(_fault_of(path, trait, own=own) if looks else "")
    if fault:
        raise ConfigError(f"{path}: {fault}; add --fresh to replace it, or name another file with --output")


def _fault_of(path: Path, trait: Trait, *, own: str) -> str:
    """What keeps a file from being written over; empty where nothing does."""
    try:
        held = load(path).origin
    except DataError:
        return "holds no vectors of this format"
    if (held.trait, held.policy) == (trait.name, own):
        return ""
    return (
        f"holds the vectors of {held.trait} of another policy ({held.checkpoint}, {held.policy[:8]}; this one is "
        f"{own[:8]})"
    )


@dataclass(slots=True)
class _Half:
    """What is known of the kept completions of half of the questions, by side."""

    positive: Sums
    negative: Sums
    spreads: tuple[Spread, Spread] | None = None  # along directions that the other half gave

    def add(self, pair_sides: tuple[bool, ...], of_parts: dict[Any, torch.Tensor]) -> None:
        """Averages [S, L, D] of texts, each of the positive side or not."""
        is_positive = torch.tensor(pair_sides)
        for side, mask in ((0, is_positive), (1, ~is_positive)):
            of_side = {over: tensor[mask] for over, tensor in of_parts.items()}
            (self.positive, self.negative)[side].add(of_side)
            if self.spreads is not None:
                self.spreads[side].add(of_side)

    def merge(self, other: "_Half") -> None:
        """What another rank, or the other half, has summed up."""
        self.positive.merge(other.positive)
        self.negative.merge(other.negative)
        if self.spreads is not None and other.spreads is not None:
            for own, others in zip(self.spreads, other.spreads, strict=True):
                own.merge(others)

    def difference(self, over: Any) -> torch.Tensor:
        """[L, D], float64; nan where a side is empty."""
        return self.positive.mean(over) - self.negative.mean(over)


class _Extraction:
    def __init__(
        self, run: Run, trait: Trait, *, checkpoint: str, step: int, keep_in: Path | None, may_stop: bool
    ) -> None:
        self._run, self._trait, self._config = run, trait, run.config.persona
        self._checkpoint, self._step, self._may_stop = checkpoint, step, may_stop
        self._judge: RewardConfig = judge_of(trait, run.config)
        questions = questions_of(trait, run.config).extract
        self._questions = {question.id: question for question in questions}
        units = [Unit(q.id, place) for q in questions for place in range(len(trait.instructions))]
        self._halves = halves(units)
        self._num_units = len(units)
        check_prompts(
            [self._asked((unit, shows)) for unit in units for shows in (True, False)],
            run.chat,
            limit_tokens=run.config.data.max_prompt_tokens,
            context_tokens=max_positions(run.policy.model),
            completion_tokens=run.config.sampling.max_completion_tokens,
            drop=False,
        )
        self._print = print_of(run)
        self._file = self._opened(keep_in)
        self._kept_before: frozenset[Side] = run.world.broadcast(
            frozenset() if self._file is None else self._file.sides
        )
        self._num_kept, self._num_judged, self._num_tokens = 0, 0, 0
        self._dropped, self._lost = Counter[str](), Counter[str]()

    def vectors(self) -> PersonaVectors:
        first = self._half(self._halves[0], directions=None)
        seed = seeds.torch_seed(self._run.config.run.seed, PHASE, self._trait.name, "random directions")
        of_first = first.difference("response")
        directions = None if not torch.isfinite(of_first).all() else with_random(of_first, seed=seed)
        second = self._half(self._halves[1], directions=directions)
        self._check_enough()
        apart = None if second.spreads is None else separation(*second.spreads)
        agreement = torch.cosine_similarity(of_first, second.difference("response"), dim=-1)  # [L]
        first.merge(second)
        of = {over: first.difference(over).float() for over in OVERS}
        norms = (first.positive.norms + first.negative.norms) / (first.positive.count + first.negative.count)
        return PersonaVectors(origin=self._origin(apart, agreement=agreement, norms=norms), of=of)

    def _half(self, units: Sequence[Unit], *, directions: torch.Tensor | None) -> _Half:
        """Draw, filter and sum up half of the units; the same on every rank."""
        policy = self._run.policy
        size = (len(policy.blocks), policy.hidden_size)
        own = _Half(Sums(*size), Sums(*size), None if directions is None else (Spread(directions), Spread(directions)))
        for wave in self._waves(units):
            kept = self._kept(wave)
            self._num_kept += len(kept.pairs)
            self._dropped.update(kept.dropped)
            self._sum_up(kept.pairs, own)
            if self._may_stop and self._run.should_stop():
                where = "" if self._file is None else "; what was drawn is kept: give the same command again to go on"
                raise Interrupted(f"stopped while extracting {self._trait.name}{where}")
        of_ranks = self._run.world.gather(own)
        total = of_ranks[0]
        for other in of_ranks[1:]:
            total.merge(other)
        return total

    def _waves(self, units: Sequence[Unit]) -> list[Sequence[Unit]]:
        rollouts = BATCHES_PER_WAVE * self._run.config.sampling.max_rows * self._run.world.size
        size = max(1, rollouts // (2 * self._config.rollouts_per_question))
        return [units[start : start + size] for start in range(0, len(units), size)]

    def _kept(self, wave: Sequence[Unit]) -> Kept:
        """The kept pairs of a wave, drawn now or before; the same on every rank."""
        sides: list[Side] = [(unit, shows) for unit in wave for shows in (True, False)]
        missing = [side for side in sides if side not in self._kept_before]
        scored = self._before([side for side in sides if side in self._kept_before])
        if missing:
            attempts = [
                Attempts(self._asked(side), first_attempt=0, num_rollouts=self._config.rollouts_per_question)
                for side in missing
            ]
            groups = self._run.rollouts.run(
                attempts, temperature=self._config.temperature, phase=PHASE, step=self._step
            ).groups
            self._check_lost(groups)
            drawn = [scored_of(group, unit, shows=shows) for group, (unit, shows) in zip(groups, missing, strict=True)]
            if self._file is not None:
                for of_side in drawn:
                    if not without_verdict(of_side):
                        self._file.add(of_side)
            scored += [completion for of_side in drawn for completion in of_side]
        self._num_tokens += sum(len(completion.token_ids) - completion.num_prompt for completion in scored)
        self._say_progress(len(scored))
        return kept_pairs(
            scored, threshold=self._config.threshold, coherence_threshold=self._config.coherence_threshold
        )

    def _before(self, sides: Sequence[Side]) -> list[Scored]:
        found = [] if self._file is None else [scored for side in sides for scored in self._file.of(side)]
        scored: list[Scored] = self._run.world.broadcast(found)
        return scored

    def _sum_up(self, pairs: Sequence[Pair], half: _Half) -> None:
        """Read this rank's part of the pairs, and add it up."""
        world = self._run.world
        own = [scored for pair in pairs[world.rank :: world.size] for scored in pair]
        texts = [Text(scored.token_ids, scored.num_prompt) for scored in own]
        with self._run.strategy.sampling_policy() as policy:
            budget = self._run.config.train.tokens_per_micro_batch
            for places, of_parts in averages(policy, texts, budget_tokens=budget):
                half.add(tuple(own[place].shows for place in places), of_parts)
                world.progress(PHASE)

    def _asked(self, side: Side) -> Problem:
        unit, shows = side
        pair = self._trait.instructions[unit.instructions]
        return under(
            self._questions[unit.question],
            pair.positive if shows else pair.negative,
            name=f"{self._trait.name}/{unit.instructions}/{'positive' if shows else 'negative'}",
            role=self._config.instruction_role,
        )

    def _opened(self, path: Path | None) -> KeptCompletions | None:
        """The file of completions, for the main rank."""
        if path is None or not self._run.world.is_main:
            return None
        config, number = self._run.config, self._config.rollouts_per_question
        rests_on = profile_fingerprint(
            config.model_copy(update={"reward": self._judge}),
            self._run.chat,
            policy=self._print,
            temperature=self._config.temperature,
            phase=PHASE,
            step=self._step,
        ) | {
            "instructions": [pair.model_dump() for pair in self._trait.instructions],
            "instruction_role": self._config.instruction_role,
            "questions": list(self._questions),
            "rollouts_per_question": number,
        }
        return KeptCompletions(path, rests_on=rests_on, per_side=number)

    def _check_lost(self, groups: Sequence[Group]) -> None:
        self._lost += lost_verdicts(groups)
        self._num_judged += sum(len(group.rewards) for group in groups)
        limit = self._judge.max_error_fraction
        check_lost(
            self._lost, num_verdicts=self._num_judged, max_error_fraction=limit, place=f"trait {self._trait.name}"
        )

    def _say_progress(self, num_completions: int) -> None:
        self._run.console.say(
            f"{self._trait.name}: {num_completions:,} more completions; so far {self._num_kept:,} pairs are kept"
        )

    def _check_enough(self) -> None:
        if self._num_kept >= self._config.min_pairs:
            return
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in self._dropped.most_common())
        raise DataError(
            f"trait {self._trait.name}: {self._num_kept} of {self._num_kept + self._dropped.total():,} pairs are kept, "
            f"fewer than persona.min_pairs = {self._config.min_pairs} ({reasons or 'no pair was drawn'}). Either the "
            "model does not follow the instructions (read the completions; take clearer instructions or a model that "
            "follows them), or the scorer sees what is not there (try it with `grpo score`), or persona.threshold = "
            f"{self._config.threshold:g} is not between its scores; more persona.rollouts_per_question find more pairs"
        )

    def _origin(self, apart: Separation | None, *, agreement: torch.Tensor, norms: torch.Tensor) -> Origin:
        run, trait, config = self._run, self._trait, self._config
        nothing = torch.full_like(norms, torch.nan)
        return Origin(
            trait=trait.name,
            description=trait.description,
            policy=self._print.content,
            family=self._print.family,
            model_type=str(base_of(run.policy.model).config.model_type),
            num_blocks=len(run.policy.blocks),
            hidden_size=run.policy.hidden_size,
            checkpoint=self._checkpoint,
            num_instructions=len(trait.instructions),
            num_questions=len(self._questions),
            rollouts_per_question=config.rollouts_per_question,
            num_positive=self._num_kept,
            num_negative=self._num_kept,
            num_drawn=2 * self._num_units * config.rollouts_per_question,
            dropped=dict(self._dropped),
            threshold=config.threshold,
            coherence_threshold=config.coherence_threshold,
            temperature=config.temperature,
            seed=run.config.run.seed,
            separation=tuple((nothing if apart is None else apart.own).tolist()),
            random_separation=tuple((nothing if apart is None else apart.random).tolist()),
            agreement=tuple(agreement.tolist()),
            hidden_norm=tuple(norms.tolist()),
            definition=trait.model_dump(mode="json"),
            num_tokens=self._num_tokens,
        )
