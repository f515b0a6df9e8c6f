"""The compose reward: other rewards' verdicts on the same completion, put together by rules that the options state.

Knows the components as specs and has their verifiers built by whoever hands it a builder; it reads nothing of the
completion and nothing of the problem itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rewards.options import nearest, read_options
from rewards.spec import RewardSpec
from rewards.types import Reward, Status, Verifier

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class ComponentOptions:
    """One reward of a composition: which (as in a config's section `reward`), and how it counts.

    `weight` multiplies its value; with 0 it is only measured. `abstained` is the value that stands in where it
    abstains; without one, the whole abstains."""

    name: str = ""
    file: str | None = None
    function: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    abstained: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("weight", self.weight), ("abstained", self.abstained)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} = {value!r}: must be a finite number")
        if self.name == "compose":
            raise ValueError("name = 'compose': a composition holds no other; list its rewards and penalties here")
        _ = self.spec  # raises for what names no reward

    @property
    def spec(self) -> RewardSpec:
        """Which reward it is."""
        return RewardSpec(self.name, file=self.file, function=self.function, options=self.options)


@dataclass(frozen=True)
class ComposeOptions:
    """What is put together, and how.

    `rewards` and `penalties` map names to the fields of ComponentOptions. `gate` maps names of rewards to thresholds:
    where one of them is below its threshold, the rewards outside of the gate are not called and count nothing. A
    penalty counts all the same, and never above 0. `lowest` and `highest` bound the sum."""

    rewards: dict[str, Any]
    penalties: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, float] = field(default_factory=dict)
    lowest: float | None = None
    highest: float | None = None

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("rewards = {}: must name at least one reward")
        for name in (*self.rewards, *self.penalties):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a name for a part: use letters, digits and the marks _ . -")
        for name in self.penalties:
            if name in self.rewards:
                raise ValueError(f"penalties.{name}: rewards.{name} has the same name; call one of them otherwise")
        for name, threshold in self.gate.items():
            if name not in self.rewards:
                raise ValueError(
                    f"gate.{name}: not one of the rewards{nearest(name, list(self.rewards))} "
                    f"(rewards: {', '.join(self.rewards)})"
                )
            if not math.isfinite(threshold):
                raise ValueError(f"gate.{name} = {threshold!r}: must be a finite number")
        for name, bound in (("lowest", self.lowest), ("highest", self.highest)):
            if bound is not None and not math.isfinite(bound):
                raise ValueError(f"{name} = {bound!r}: must be a finite number or null")
        if self.lowest is not None and self.highest is not None and self.lowest > self.highest:
            raise ValueError(f"lowest = {self.lowest} is above highest = {self.highest}: no value is between them")
        _ = self.components  # raises for a component that is none

    @property
    def components(self) -> dict[str, ComponentOptions]:
        """Every component by its path, such as `rewards.correct`, in the order in which they are called.

        First the gate, then penalties, then the other rewards, each by the alphabet: the order in which an options'
        mapping was written does not survive its way to a worker. Raises ValueError for a field that is wrong."""
        named = [("rewards", name) for name in sorted(self.gate)]
        named += [("penalties", name) for name in sorted(self.penalties)]
        named += [("rewards", name) for name in sorted(self.rewards) if name not in self.gate]
        return {
            f"{kind}.{name}": _read_component(getattr(self, kind)[name], path=f"{kind}.{name}") for kind, name in named
        }


def _read_component(entry: Any, *, path: str) -> ComponentOptions:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{path} = {entry!r}: must be a mapping with a name, or with a file and a function")
    return read_options(ComponentOptions, entry, reward=path)


@dataclass(frozen=True, slots=True)
class _Component:
    name: str
    options: ComponentOptions
    verifier: Verifier
    is_penalty: bool
    threshold: float | None  # None outside of the gate


def build_compose(options: ComposeOptions, *, build: Callable[[RewardSpec], Verifier]) -> Verifier:
    """The verifier: the sum of weight * value over the rewards, plus what each penalty takes off, within the bounds.

    Parts: each component's value under its name and its parts as `name/part`; a component that was not called, or
    abstained, has none. The answer is that of the first component that read one. The first component without a value
    (its own stand-in aside) ends the call: the whole has its status, and the detail names it. Raises ValueError, with
    the component's path, as `build` does."""
    components = [
        _Component(
            name=path.partition(".")[2],
            options=component,
            verifier=_build_at(path, component.spec, build=build),
            is_penalty=path.startswith("penalties."),
            threshold=options.gate.get(path.partition(".")[2]) if path.startswith("rewards.") else None,
        )
        for path, component in options.components.items()
    ]

    def verifier(completion: str, problem: Mapping[str, Any], /) -> Reward:
        closed_by = ""
        terms: list[float] = []
        parts: dict[str, float] = {}
        details: list[str] = []
        answer: str | None = None
        for component in components:
            is_gated = not component.is_penalty and component.threshold is None
            if is_gated and closed_by:
                continue
            # A copy: what one component does to the mapping is not the next one's problem.
            reward = component.verifier(completion, dict(problem))
            value = component.options.abstained if reward.status is Status.ABSTAINED else reward.value
            if value is None:
                return Reward(value=None, status=reward.status, detail=f"{component.name}: {reward.detail}")
            answer = reward.answer if answer is None else answer
            if reward.value is not None:
                parts[component.name] = reward.value
            parts |= {f"{component.name}/{part}": number for part, number in reward.parts.items()}
            details.append(f"{component.name} {value:g}{f' ({reward.detail})' if reward.detail else ''}")
            term = component.options.weight * value
            terms.append(min(0.0, term) if component.is_penalty else term)
            if component.threshold is not None and value < component.threshold:
                closed_by = closed_by or component.name
        if closed_by:
            details.append(f"the gate is closed by {closed_by}")
        return Reward.scored(_bounded(math.fsum(terms), options), parts=parts, detail="; ".join(details), answer=answer)

    return verifier


def _build_at(path: str, spec: RewardSpec, *, build: Callable[[RewardSpec], Verifier]) -> Verifier:
    try:
        return build(spec)
    except ValueError as error:
        raise ValueError(f"reward compose: {path}: {error}") from error


def _bounded(value: float, options: ComposeOptions) -> float:
    low = -math.inf if options.lowest is None else options.lowest
    high = math.inf if options.highest is None else options.highest
    return min(max(value, low), high)
