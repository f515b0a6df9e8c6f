"""Whether a run is healthy, what it is doing, and what came out so far: the first screen, in numbers and words.

The bounds are those of docs/metrics.md. An alarm is about the latest steps alone: what went wrong once and is over is
to be seen in the curves."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean, median

from grpo.tracking.charts import format_number
from grpo.tracking.evaluations import Cell, SetTable, in_order, set_tables
from grpo.tracking.recorded_run import RecordedRun, Row, is_number

RECENT_STEPS = 20
SILENT_FACTOR = 10.0
"""A run that trains is silent after so many of its usual steps without a line, and after a minute at the least."""
ENTROPY_SHARE = 0.1
"""Share of the entropy at the start below which it counts as collapsed."""
GAP_FACTOR = 100.0
GAP_NATS = 1e-3
"""A sampler gap rises where it is above both: so many times what it was at the start, and so many nats."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A share that a metric's recent mean should stay below: `warn`, and where it is a fault, `bad`."""

    metric: str
    warn: float
    bad: float
    what: str
    remedy: str


BOUNDS = (
    Bound(
        *("completion/truncated_fraction", 0.1, 0.3, "of rollouts ran into the token limit"),
        "raise sampling.max_completion_tokens, or mask or penalise what is truncated",
    ),
    Bound(
        *("group/zero_std_fraction", 0.5, 0.9, "of groups have equal rewards and teach nothing"),
        "practise problems of another difficulty, or sample larger groups",
    ),
    Bound(*("group/solved_all", 0.5, 0.9, "of groups are all right"), "the problems are too easy"),
    Bound(
        *("group/solved_none", 0.5, 0.9, "of groups have no right rollout"),
        "the problems are too hard, or the temperature is too low",
    ),
    Bound(
        *("policy/sampler_kl", 0.001, 0.01, "nats between sampler and trainer"),
        "they should hold the same weights: a weight, a temperature or a mask differs",
    ),
)
COUNTS = (
    ("reward/errors", "verdicts were lost to crashes or timeouts of the verifier", "read their details in Rollouts"),
    ("optim/skipped_updates", "updates were left out: loss or gradient was not finite", "lower optim.learning_rate"),
)


def alarms(run: RecordedRun, *, silent_seconds: float | None = None) -> list[Row]:
    """What should worry one, the worst first: level (bad or warn), text, remedy, and the metric that shows it.

    `silent_seconds` is how long nothing was written, for a run that is watched while it goes."""
    found = [*_above_bounds(run), *_counted(run), *_of_policy(run), *_of_events(run), *_of_scores(run)]
    found += [*_silent(run, silent_seconds)]
    return sorted(found, key=lambda alarm: alarm["level"] != "bad")


def _above_bounds(run: RecordedRun) -> Iterator[Row]:
    for bound in BOUNDS:
        value = _recent(run, bound.metric)
        if value is not None and value > bound.warn:
            shown = format_number(value) if bound.metric == "policy/sampler_kl" else f"{100 * value:.0f} %"
            level = "bad" if value > bound.bad else "warn"
            yield _alarm(level, f"{shown} {bound.what}", remedy=bound.remedy, metric=bound.metric)


def _counted(run: RecordedRun) -> Iterator[Row]:
    for metric, what, remedy in COUNTS:
        number = sum(value for _, value in run.curve(metric)[-RECENT_STEPS:])
        if number:
            text = f"{format_number(number)} {what} in the last {RECENT_STEPS} steps"
            yield _alarm("warn" if metric == "reward/errors" else "bad", text, remedy=remedy, metric=metric)


def _of_policy(run: RecordedRun) -> Iterator[Row]:
    first, last = _early(run, "policy/entropy"), _recent(run, "policy/entropy")
    if first is not None and last is not None and last < ENTROPY_SHARE * first:
        text = f"entropy has collapsed, from {format_number(first)} to {format_number(last)} nats"
        remedy = "hotter sampling, a higher loss.clip_high or a lower optim.learning_rate"
        yield _alarm("warn", text, remedy=remedy, metric="policy/entropy")
    name = "policy/sampler_logprob_gap_max"
    first, last = _early(run, name), _recent(run, name)
    if first is not None and last is not None and last > max(GAP_NATS, GAP_FACTOR * first):
        text = f"the gap between sampler and trainer rose from {format_number(first)} to {format_number(last)} nats"
        yield _alarm("bad", text, remedy="a weight, a temperature or a mask differs between them", metric=name)
    lost = [name for row in run.metrics[-RECENT_STEPS:] for name in row if row[name] is None]
    if lost:
        names = ", ".join(dict.fromkeys(lost))[:200]
        yield _alarm("bad", f"not finite in the last {RECENT_STEPS} steps: {names}", remedy="", metric=lost[0])


def _of_events(run: RecordedRun) -> Iterator[Row]:
    since = run.steps[1] - RECENT_STEPS
    recent = [event for event in run.events if is_number(event.get("step")) and event["step"] > since]
    guards = [event for event in recent if event.get("event") == "guard"]
    if guards:
        text = f"{len(guards)} of the last {RECENT_STEPS} steps are above a bound of the section guard"
        yield _alarm("bad", text, remedy=str(guards[-1].get("above", ""))[:200], metric="policy/ratio_max")
    drifts = [event for event in recent if event.get("event") == "drift"]
    if drifts:
        text = f"a trait drifted past its bound in {len(drifts)} of the last {RECENT_STEPS} steps"
        yield _alarm("warn", text, remedy=str(drifts[-1].get("above", ""))[:200], metric="")
    idle = sum(event.get("event") == "no_update" for event in recent)
    if idle:
        text = f"{idle} of the last {RECENT_STEPS} steps had nothing to train on"
        yield _alarm("warn", text, remedy="no group of theirs had any variance", metric="group/zero_std_fraction")


def _of_scores(run: RecordedRun) -> Iterator[Row]:
    """Held-out problems that became surely worse, by the interval of the paired difference."""
    for of_set in set_tables(in_order(run.evaluations)):
        gained = _gained(of_set)
        if gained is not None and gained.high is not None and gained.high < 0:
            text = f"pass@1 on {of_set.name} is {gained.number} against the {of_set.against} ({gained.interval})"
            yield _alarm("bad", text, remedy="the policy has become worse", metric="")


def _silent(run: RecordedRun, seconds: float | None) -> Iterator[Row]:
    usual = [value for _, value in run.curve("time/step")[-RECENT_STEPS:]]
    if seconds is None or not usual or run.phases.get("train") is not False:
        return
    if seconds > max(60.0, SILENT_FACTOR * median(usual)):
        text = f"nothing was written for {duration(seconds)}, and a step takes {duration(median(usual))}"
        yield _alarm("warn", text, remedy="it is at something long, or it has stopped: see its log", metric="")


def _alarm(level: str, text: str, *, remedy: str, metric: str) -> Row:
    return {"level": level, "text": text, "remedy": remedy, "metric": metric}


def _early(run: RecordedRun, name: str) -> float | None:
    """The mean of the first steps, where there are more than the recent ones."""
    values = [value for _, value in run.curve(name)]
    return fmean(values[:RECENT_STEPS]) if len(values) > RECENT_STEPS else None


def _recent(run: RecordedRun, name: str) -> float | None:
    values = [value for _, value in run.curve(name)[-RECENT_STEPS:]]
    return fmean(values) if values else None


def headline(run: RecordedRun) -> list[Row]:
    """The few numbers that say what came out: label, value, under it what it rests on; the result itself is `key`."""
    gate: Row = next((e for e in reversed(run.events) if e.get("event") == "gate"), {})
    best: Row = next((e for e in reversed(run.events) if e.get("event") == "best"), {})
    cells: list[Row] = []
    for of_set in set_tables(in_order(run.evaluations)):
        passed = next((line.cells[-1] for line in of_set.scores if line.name == "pass@1"), None)
        if isinstance(passed, Cell):
            label = f"pass@1 {shown(of_set.policies[-1]['name'])}, {of_set.name}"
            gained = _gained(of_set)
            gain = f"{gained.number} over the {of_set.against} ({gained.interval})" if gained is not None else ""
            under = " · ".join(part for part in (passed.interval, gain) if part)
            cells.append({"label": label, "value": passed.number, "under": under, "key": True})
    if is_number(gate.get("pass@1")):
        under = f"after {shown(gate['sft_steps'])} supervised steps" if "sft_steps" in gate else ""
        cells.append({"label": "pass@1 at the gate", "value": shown(gate["pass@1"]), "under": under})
    if is_number(best.get("value")):
        under = f"{best.get('metric', '')} at step {shown(best.get('step'))}"
        cells.append({"label": "best while training", "value": shown(best["value"]), "under": under})
    if run.metrics:
        stages = len({s for _, s in run.curve("curriculum/stage")})
        under = f"in {stages} stages" if stages > 1 else ""
        cells.append({"label": "steps", "value": shown(run.steps[1]), "under": under})
    if tokens := sum(tokens for _, tokens in run.curve("sampling/tokens")):
        cells.append({"label": "tokens sampled", "value": format_number(tokens), "under": "while training"})
    if seconds := sum(seconds for _, seconds in run.curve("time/step")):
        cells.append({"label": "training time", "value": duration(seconds), "under": "the steps' sum"})
    return [{"key": False, **cell} for cell in cells]


def _gained(of_set: SetTable) -> Cell | None:
    """What the last policy has over the first one, problem by problem; the gate was on other problems."""
    cell = next((line.cells[-1] for line in of_set.differences if line.name == "pass@1"), None)
    return cell if isinstance(cell, Cell) else None


def state(run: RecordedRun) -> Row:
    """What the run is doing: a word, the step of how many, the stage, the temperature and the time that is left."""
    train = run.config.get("train")
    planned = train.get("steps") if isinstance(train, dict) else None
    step = run.steps[1] if run.metrics else None
    usual = [seconds for _, seconds in run.curve("time/step")[-RECENT_STEPS:]]
    left = None
    if is_number(planned) and step is not None and usual and run.phases.get("train") is False:
        left = duration(max(planned - step, 0) * median(usual))
    stages = [event.get("name") for event in run.events if event.get("event") == "stage"]
    temperatures = run.curve("sampling/temperature")
    return {
        "word": _phase(run),
        "is_over": bool(run.phases) and all(run.phases.values()) and "train" in run.phases,
        "step": step,
        "planned": planned if is_number(planned) else None,
        "stage": shown(stages[-1]) if stages else None,
        "temperature": temperatures[-1][1] if temperatures else None,
        "left": left,
    }


PHASE_WORDS = {
    "sft": "cold start",
    "profile": "profiling the problems",
    "train": "training",
    "eval": "evaluating",
    "report": "writing the report",
}


def _phase(run: RecordedRun) -> str:
    under_way = [words for phase, words in PHASE_WORDS.items() if run.phases.get(phase) is False]
    if under_way:
        return under_way[0]
    done = [phase for phase in PHASE_WORDS if run.phases.get(phase)]
    return "finished" if "train" in done else "between phases" if done else "no phase recorded"


def shown(value: object) -> str:
    """A value in running text: numbers short, nothing as a dash, the rest as it is."""
    if value is None:
        return "–"
    if is_number(value):
        return format_number(value)
    return str(value)


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 or math.isclose(seconds, round(seconds)) else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
