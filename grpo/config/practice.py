"""How practice is chosen: the temperature, difficulty profiling, the curriculum and its stages.

Where a paper is silent the default is ours, and the sentence under the field says so."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from curricula import Tier
from grpo.config.base import Section

# Fields of the temperature by the kinds that read them; the others refuse them.
FIELDS_OF_KINDS: dict[str, tuple[str, ...]] = {
    "grid": ("adaptive", "diversity"),
    "rollouts_per_problem": ("adaptive", "diversity"),
    "cooldown_steps": ("adaptive", "diversity"),
    "window_steps": ("adaptive",),
    "window_rise": ("adaptive",),
    "guard": ("adaptive",),
    "guard_kind": ("adaptive",),
    "reference": ("adaptive",),
    "choose": ("adaptive",),
    "max_rollouts_per_problem": ("adaptive",),
    "max_standard_error": ("adaptive",),
    "counterfactual": ("adaptive",),
    "min_effective_fraction": ("adaptive",),
}


class TemperatureConfig(Section):
    """How hot the policy samples, step by step."""

    kind: Literal["constant", "linear", "cosine", "steps", "adaptive", "diversity"] = "constant"
    """adaptive is GLM-4.5's rule: when the reward is stable, the highest temperature that costs at most the guard;
    diversity is POLARIS's: the lowest temperature that keeps the diversity of the first stage."""
    value: float = Field(1.0, gt=0)
    """Temperature at the start."""
    final: float | None = Field(None, gt=0)
    """Temperature at the last step, for linear and cosine."""
    milestones: dict[int, float] = {}
    """Step to temperature from that step on, for steps."""
    grid: list[float] = [0.8, 1.0, 1.2, 1.4]
    """Temperatures that adaptive and diversity choose from."""
    window_steps: int = Field(40, ge=4)
    """Steps over which adaptive asks whether the reward has stabilised."""
    window_rise: float = Field(0.1, ge=0)
    """Rise or fall over the window that still counts as stable, as a share of the window's mean: adaptive calls it so
    when both bounds of the slope, at 90 % confidence each, are within."""
    guard: float = Field(0.01, ge=0)
    """Largest drop of the validation score against the temperature in use (1 % in arXiv 2508.06471, section 3.2)."""
    guard_kind: Literal["relative", "absolute"] = "relative"
    """Whether the guard is a share of the score or a difference; the report does not say."""
    reference: Literal["current", "best"] = "current"
    """What the drop is measured from: the temperature in use, or the best of the grid (the literal reading)."""
    choose: Literal["highest", "signal"] = "highest"
    """Which of the admissible temperatures: the highest (the report's), or that with most expected p(1 - p)."""
    rollouts_per_problem: int = Field(16, ge=1)
    """Rollouts of each validation problem and temperature in the first draw of a decision."""
    max_rollouts_per_problem: int = Field(64, ge=1)
    """Budget of adaptive's decision: draws double until every difference is sure or this is reached."""
    max_standard_error: float = Field(0.005, gt=0)
    """A paired difference is sure at this standard error (relative or absolute as the guard); a less sure one admits
    nothing."""
    counterfactual: bool = False
    """Have the sampler keep each rollout's log-prob at every temperature of the grid, and let adaptive decide from the
    window's own rollouts, reweighted, where enough of them count; it evaluates for real where they do not."""
    min_effective_fraction: float = Field(0.5, gt=0, le=1)
    """Effective share of the reweighted rollouts below which counterfactual scores are not trusted."""
    cooldown_steps: int = Field(20, ge=0)
    """Steps after a decision without another."""

    @model_validator(mode="after")
    def _fields_of_the_kind(self) -> Self:
        if self.kind in ("linear", "cosine") and self.final is None:
            raise ValueError(f"kind = {self.kind!r} needs final, the temperature of the last step; set it")
        if self.kind not in ("linear", "cosine") and self.final is not None:
            raise ValueError(f"final = {self.final} is for the kinds linear and cosine; kind = {self.kind!r}: drop it")
        if (self.kind == "steps") != bool(self.milestones):
            raise ValueError(
                f"milestones = {self.milestones} and kind = {self.kind!r}: milestones and kind steps go together; set "
                "both or neither"
            )
        if any(value <= 0 for value in (*self.grid, *self.milestones.values())):
            raise ValueError(
                f"grid = {self.grid}, milestones = {self.milestones}: every temperature must be above 0; raise it"
            )
        if any(step < 1 for step in self.milestones):
            raise ValueError(
                f"milestones = {self.milestones}: the first step of a change is 1; value is that of step 0"
            )
        if not self.grid:
            raise ValueError("grid = []: must name at least one temperature to choose from")
        if len(set(self.grid)) < len(self.grid):
            raise ValueError(f"grid = {self.grid}: must name each temperature once; drop the second")
        for name, kinds in FIELDS_OF_KINDS.items():
            if self.kind not in kinds:
                self.refuse_unread(name, because=f"kind is {self.kind}", remedy=f"set kind: {' or '.join(kinds)}")
        if not self.counterfactual:
            because, remedy = "counterfactual is false", "set counterfactual: true"
            self.refuse_unread("min_effective_fraction", because=because, remedy=remedy)
        if self.kind == "adaptive" and self.max_rollouts_per_problem < self.rollouts_per_problem:
            raise ValueError(
                f"max_rollouts_per_problem = {self.max_rollouts_per_problem} is below rollouts_per_problem = "
                f"{self.rollouts_per_problem}, the first draw; raise it or lower that"
            )
        return self

    def check_something_is_hotter(self, begun_at: Sequence[float]) -> None:
        """Raises ValueError where a kind that only heats has nothing hotter than any temperature of `begun_at`, at
        which the run or a stage begins."""
        heats = self.kind == "diversity" or (self.kind == "adaptive" and self.reference == "current")
        if heats and max(self.grid) <= min(begun_at):
            raise ValueError(
                f"temperature.grid = {self.grid} has nothing above {min(begun_at)}, at which sampling begins, and kind "
                f"{self.kind} only heats: it would never change; add a hotter one, or set kind: constant"
            )


class ProfileConfig(Section):
    """Difficulty profiling: first a few rollouts a problem, then more where none succeeded, up to the last."""

    first_rollouts: int = Field(8, ge=1)
    """Rollouts of every problem."""
    max_rollouts: int = Field(512, ge=1)
    """Rollouts after which a problem without a success is unsolved (512 in arXiv 2508.06471)."""
    relabel_rollouts: int = Field(32, ge=1)
    """A first success up to this rollout makes a problem moderate: with p = 0.1 the first 8 fail in 43 % of cases."""
    trivial_rate: float = Field(1.0, gt=0, le=1)
    """A problem is trivial when at least this share of its first rollouts is right."""
    max_problems: int | None = Field(None, ge=1)
    """Profile at most this many problems of the pool, chosen by the run's seed."""
    folder: str | None = None
    """Folder of a profile store that runs share: what one policy has drawn at one temperature is drawn once for all of
    them. null is the run's own."""
    reuse_steps: int = Field(20, ge=0)
    """Until this step a problem's first group is the one that the profile drew, where it has variance: it costs no
    token, and its ratio is taken against the log-probs that it was drawn with. 0 draws every group afresh."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_rollouts < self.first_rollouts:
            raise ValueError(
                f"max_rollouts = {self.max_rollouts} is below first_rollouts = {self.first_rollouts}; raise it or "
                "lower first_rollouts"
            )
        return self


class StageConfig(Section):
    """One stage of practice. What is null is taken from the sections train, sampling, optim and temperature."""

    name: str
    """Name in logs and charts."""
    tiers: list[Tier] = Field(min_length=1)
    """Tiers that the stage practises."""
    steps: int | None = Field(None, ge=1)
    """Steps after which the stage ends; null: no limit but the other rules or the run's end."""
    until_plateau: bool = False
    """End the stage when the smoothed pass rate no longer rises."""
    until_trivial_fraction: float | None = Field(None, gt=0, le=1)
    """End the stage when this share of its problems has become trivial; null has no such end."""
    follow_moves: bool = False
    """true: practise whatever has the stage's tiers at present; false: what had them when the stage was laid out,
    until it is trivial, so that extreme problems that begin to be solved stay in practice."""
    mix_tiers: list[Tier] = []
    """Tiers that stand in: for mix_fraction of a step's problems, and where the stage's own would come twice a step."""
    mix_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the stage's problems that always comes from mix_tiers."""
    problems_per_step: int | None = Field(None, ge=1)
    """Problems a step in this stage."""
    group_size: int | None = Field(None, ge=2)
    """Rollouts a problem in this stage; large groups find the rare successes of extreme problems."""
    failures_per_group: int | None = Field(None, ge=1)
    """As train.failures_per_group, in this stage."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """As sampling.max_completion_tokens, in this stage."""
    learning_rate: float | None = Field(None, gt=0)
    """As optim.learning_rate, in this stage; warm-up and schedule go on over the run."""
    temperature: float | None = Field(None, gt=0)
    """Temperature from the stage's first step on, for the kinds constant, adaptive and diversity."""

    @model_validator(mode="after")
    def _mixed_tiers(self) -> Self:
        if bool(self.mix_fraction) and not self.mix_tiers:
            raise ValueError(f"mix_fraction = {self.mix_fraction} needs mix_tiers to draw from; name them or drop it")
        if set(self.mix_tiers) & set(self.tiers):
            both = ", ".join(sorted(set(self.mix_tiers) & set(self.tiers)))
            raise ValueError(f"mix_tiers: {both} is among tiers, so it is practised anyway; drop it from one of them")
        for name, tiers in (("tiers", self.tiers), ("mix_tiers", self.mix_tiers)):
            if len(set(tiers)) < len(tiers):
                raise ValueError(f"{name} = {[str(tier) for tier in tiers]}: must name each tier once; drop the second")
        return self


class MovesConfig(Section):
    """How problems move between tiers while they are practised. The report is silent; retiring at 0.9 is ScaleRL's."""

    retire_rate: float = Field(0.9, gt=0, le=1)
    """Running pass rate from which a problem is trivial and rests."""
    promote_rate: float = Field(0.125, gt=0, le=1)
    """Running pass rate from which an extreme or unsolved problem is moderate."""
    half_life_groups: float = Field(2.0, gt=0)
    """Groups after which a group weighs half as much in a problem's running pass rate."""
    min_groups: int | None = Field(None, ge=1)
    """Groups of a problem before it may move; null is 2, and 1 for online, whose problems have no tier before."""
    check_every_epochs: int | None = Field(5, ge=1)
    """A retired problem comes back for a group after so many epochs of the pool; null: never."""
    max_wait_epochs: int = Field(16, ge=1)
    """Longest rest of a problem that no rollout has solved, for kind online: its rest doubles with every group."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.promote_rate > self.retire_rate:
            raise ValueError(f"promote_rate = {self.promote_rate} is above retire_rate = {self.retire_rate}; lower it")
        return self


class CurriculumConfig(Section):
    """Which problems are practised next."""

    kind: Literal["two_stages", "uniform", "weighted", "mixture", "online"] = "online"
    """online: tiers from practice alone, without a profile; two_stages: by tier, one stage after another; mixture:
    fixed shares of the tiers; uniform: every problem alike; weighted: by p(1 - p) of a running pass rate."""
    stages: list[StageConfig] = [
        StageConfig(name="moderate", tiers=[Tier.moderate], until_plateau=True),
        StageConfig(name="extreme", tiers=[Tier.extreme]),
    ]
    """The stages of two_stages, in order."""
    shares: dict[Tier, float] = {}
    """Share of each tier in every step, for mixture."""
    moves: MovesConfig = MovesConfig()
    """How problems move between tiers, for two_stages, mixture and online."""
    first_group_size: int | None = Field(8, ge=2)
    """Rollouts of a problem's first group at most, for online: enough to see whether it teaches. null is the group
    size."""
    reprofile_every_steps: int | None = Field(None, ge=1)
    """Profile the pool again with the current policy after so many steps, for two_stages and mixture; null: never."""
    plateau_window_steps: int = Field(20, ge=4)
    """Steps over which until_plateau looks."""
    plateau_rise: float = Field(0.1, ge=0)
    """Rise of the pass rate over the window, as a share of its mean, that until_plateau still calls flat: it must be
    the upper bound of the slope at 90 % confidence."""
    max_refill_waves: int = Field(2, ge=0)
    """Times a step asks for more problems to replace groups that teach nothing, each time for as many as should hold
    the missing ones, and four times the step's at most; then it goes on with what it has."""

    @property
    def min_groups(self) -> int:
        """moves.min_groups, or what null stands for."""
        default = 1 if self.kind == "online" else 2
        return default if self.moves.min_groups is None else self.moves.min_groups

    @property
    def by_tier(self) -> bool:
        """Whether a profile has to come first."""
        return self.kind in ("two_stages", "mixture")

    @model_validator(mode="after")
    def _stages_end(self) -> Self:
        if self.kind == "two_stages":
            if not self.stages:
                raise ValueError("two_stages needs at least one stage; add one, or set kind: uniform")
            names = [stage.name for stage in self.stages]
            if len(set(names)) < len(names):
                raise ValueError(f"stages are called {names}: each needs a name of its own; rename one")
            for stage in self.stages[:-1]:
                if stage.steps is None and not stage.until_plateau and stage.until_trivial_fraction is None:
                    raise ValueError(
                        f"stage {stage.name} never ends: set its steps, until_plateau or until_trivial_fraction"
                    )
        return self

    def _check_stages_are_read(self) -> None:
        has_own = self.stages and self.stages != type(self).model_fields["stages"].default
        if self.kind != "two_stages" and has_own:
            names = ", ".join(stage.name for stage in self.stages)
            raise ValueError(
                f"stages ({names}) are not read where kind is {self.kind}; drop them or set kind: two_stages (on the "
                f"command line, curriculum={{kind: {self.kind}}} drops the file's)"
            )
        if self.kind != "two_stages" or not any(stage.until_plateau for stage in self.stages):
            because, remedy = "no stage of two_stages is until_plateau", "set until_plateau of a stage"
            self.refuse_unread("plateau_window_steps", "plateau_rise", because=because, remedy=remedy)

    @model_validator(mode="after")
    def _every_field_is_read(self) -> Self:
        if (self.kind == "mixture") != bool(self.shares):
            raise ValueError(
                f"shares = {self.shares} and kind = {self.kind!r}: shares and kind mixture go together; set both or "
                "neither"
            )
        if any(share <= 0 for share in self.shares.values()):
            raise ValueError(f"shares = {self.shares}: each must be above 0; leave out a tier that is not practised")
        if not self.by_tier and self.reprofile_every_steps is not None:
            raise ValueError(
                f"reprofile_every_steps = {self.reprofile_every_steps} is not read where kind is {self.kind}; drop it "
                "or set kind: two_stages or mixture"
            )
        because = f"kind is {self.kind}"
        if self.kind != "online":
            self.refuse_unread("first_group_size", because=because, remedy="set kind: online")
            self.moves.refuse_unread("max_wait_epochs", because=because, remedy="set kind: online", section="moves")
        if self.kind in ("uniform", "weighted"):
            remedy = "set kind: two_stages, mixture or online"
            self.moves.refuse_unread(*MovesConfig.model_fields, because=because, remedy=remedy, section="moves")
        self._check_stages_are_read()
        if self.by_tier and self.min_groups < 2:
            raise ValueError(
                f"moves.min_groups = {self.moves.min_groups}: must be at least 2 where kind is {self.kind}: no problem "
                "moves by its last group alone; raise it"
            )
        return self
