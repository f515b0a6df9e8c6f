"""The code reward: does the code of a completion pass the problem's tests?

Candidate and tests run in two boxes of the sandbox that share nothing but two pipes of plain data; a program for stdin
and stdout runs in a box of its own for each case, and its output is compared here. What a completion does, it does to
its own box: hanging, exiting, flooding and lying are failed tests. Only a row or a sandbox that cannot be used is an
error."""

from __future__ import annotations

import atexit
import functools
import json
import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Literal, NamedTuple

from rewards.code.extract import EXTRACTORS, extract_code
from rewards.code.output import same_output
from rewards.code.rows import AssertTests, StdinTests, read_tests
from rewards.sandbox import Ended, Finished, Limits, Sandbox, SandboxUnavailableError
from rewards.types import Reward, Verifier

START_SECONDS = 1.5
"""What starting the sandbox, once for each process, and killing a box may take on a busy machine."""
EXAMINER_MEMORY_MB = 512
REPORT_KB = 1024


@dataclass(frozen=True)
class CodeTestsOptions:
    """How much passing is worth, the limits of one completion's tests together, where code and tests are found.

    `unsafe` runs the code without a sandbox, with all the rights of this process."""

    score: Literal["all", "fraction"] = "all"
    timeout_seconds: float = 3.0
    memory_mb: int = 512
    extract: tuple[str, ...] = ("last_block", "whole")
    compare: Literal["lines", "tokens", "exact"] = "lines"
    float_tolerance: float | None = None
    tests_key: str = "tests"
    unsafe: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.timeout_seconds < math.inf:
            raise ValueError(f"timeout_seconds = {self.timeout_seconds}: must be a finite number above 0, such as 3.0")
        if not 64 <= self.memory_mb <= 1 << 20:
            raise ValueError(f"memory_mb = {self.memory_mb}: must be at least 64, which Python itself needs")
        unknown = [source for source in self.extract if source not in EXTRACTORS]
        if unknown or not self.extract or len(set(self.extract)) != len(self.extract):
            raise ValueError(f"extract = {list(self.extract)}: must be some of {list(EXTRACTORS)}, each once")
        if self.float_tolerance is not None and not 0 < self.float_tolerance < math.inf:
            raise ValueError(
                f"float_tolerance = {self.float_tolerance}: must be above 0, such as 1e-6, or null for none"
            )
        if self.float_tolerance is not None and self.compare == "exact":
            raise ValueError(
                f"float_tolerance = {self.float_tolerance} with compare = 'exact': characters have no tolerance; "
                f"compare by lines or tokens"
            )


def worst_case_seconds(options: CodeTestsOptions) -> float:
    """The longest that one call may take; a pool's limit for a call has to be longer."""
    return options.timeout_seconds + START_SECONDS


def build_code_tests(options: CodeTestsOptions) -> Verifier:
    """The verifier: 1.0 when all tests pass, else 0.0; or, with score "fraction", the share of tests that pass.

    Reads problem[tests_key]. A row that is malformed and a sandbox that does not work are errors."""

    def verifier(completion: str, problem: Mapping[str, Any], /) -> Reward:
        try:
            tests = read_tests(problem, key=options.tests_key)
            entry_point = tests.entry_point if isinstance(tests, AssertTests) else ""
            code = extract_code(completion, options.extract, entry_point=entry_point)
            if code is None:
                judged = _Judged([False] * tests.num_tests, "no Python code in the completion")
            elif isinstance(tests, AssertTests):
                judged = _run_asserts(code, tests, options=options)
            else:
                judged = _run_cases(code, tests, options=options)
        except (ValueError, SandboxUnavailableError) as error:
            return Reward.error(str(error))
        return _reward(judged, options=options)

    return verifier


class _Judged(NamedTuple):
    """Which tests passed, in order, and how the first that did not has failed."""

    passed: list[bool]
    detail: str


def _run_asserts(code: str, tests: AssertTests, *, options: CodeTestsOptions) -> _Judged:
    """Candidate and examiner in a box each, joined by two pipes. Raises ValueError where the tests are at fault."""
    limits = _limits(options, seconds=options.timeout_seconds)
    roomy = replace(limits, memory_mb=max(limits.memory_mb, EXAMINER_MEMORY_MB), output_kb=REPORT_KB)
    given = {"entry_point": tests.entry_point, "setup": tests.setup, "asserts": tests.asserts}
    sandbox = _sandbox(options.unsafe, os.getpid())
    with ExitStack() as boxes:
        with _two_pipes() as (questions, asks, answers, tells):
            examiner = sandbox.start("examiner", _json(given), limits=roomy, pipes=(answers, asks))
            boxes.callback(examiner.kill)
            guest = sandbox.start(
                "guest",
                _json({"prelude": tests.prelude, "source": code}),
                limits=limits,
                pipes=(questions, tells),
                capture=False,
            )
            boxes.callback(guest.kill)
        finished = examiner.wait()
    return _read_report(finished, tests=tests, options=options)


def _read_report(finished: Finished, *, tests: AssertTests, options: CodeTestsOptions) -> _Judged:
    """What the examiner wrote until it ended; a test that it says nothing of has failed."""
    lines = [json.loads(line) for line in finished.stdout.split(b"\n")[:-1]]
    if not lines:
        raise SandboxUnavailableError(
            f"the tests did not begin within {options.timeout_seconds:g} s: {_how_it_ended(finished)}; raise "
            f"timeout_seconds if the machine is busy"
        )
    passed, failures = [False] * len(tests.asserts), {}
    for kind, *fields in lines:
        if kind == "fault":
            raise ValueError(f"the tests cannot be used: problem {options.tests_key}: {fields[0]}")
        if kind == "test":
            number, passed[number], failures[number] = fields
    if all(passed):
        return _Judged(passed, "")
    first = passed.index(False)
    how = failures.get(first) or _how_it_ended(finished)
    return _Judged(passed, f"test {first + 1}, {_shorten(tests.asserts[first])}: {how}")


def _run_cases(code: str, tests: StdinTests, *, options: CodeTestsOptions) -> _Judged:
    """The program in a box of its own for each case, until the time for all of them is over."""
    deadline = monotonic() + options.timeout_seconds
    sandbox = _sandbox(options.unsafe, os.getpid())
    passed, detail = [], ""
    for number, (stdin, expected) in enumerate(tests.cases, start=1):
        seconds = deadline - monotonic()
        how = f"the time of {options.timeout_seconds:g} s for all tests was over"
        if seconds > 0:
            output_kb = 256 + len(expected.encode("utf-8", "surrogatepass")) // 512
            limits = replace(_limits(options, seconds=seconds), output_kb=output_kb)
            finished = sandbox.run(code, stdin=stdin.encode("utf-8", "surrogatepass"), limits=limits)
            how = _fault_of_output(finished, expected=expected, options=options)
        passed.append(not how)
        if how and not detail:
            detail = f"test {number}, stdin {_shorten(stdin)}: {how}"
    return _Judged(passed, detail)


def _fault_of_output(finished: Finished, *, expected: str, options: CodeTestsOptions) -> str:
    """What is wrong with how a program ended and what it printed; empty when nothing is."""
    if finished.ended is not Ended.EXITED or finished.exit_code != 0:
        last = finished.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return f"{_how_it_ended(finished)}{': ' if last else ''}{_shorten(last) if last else ''}"
    actual = finished.stdout.decode("utf-8", "surrogateescape")
    if same_output(actual, expected, compare=options.compare, float_tolerance=options.float_tolerance):
        return ""
    return f"printed {_shorten(actual)} where {_shorten(expected)} was expected"


def _how_it_ended(finished: Finished) -> str:
    if finished.ended is Ended.EXITED:
        return f"ended with exit code {finished.exit_code}"
    if finished.ended is Ended.SIGNALLED:
        return f"was killed by signal {finished.signal}"
    if finished.ended is Ended.DEADLINE:
        return f"stopped after {finished.seconds:.1f} s, which was the limit"
    return "wrote more than is read" if finished.ended is Ended.OUTPUT_LIMIT else "was stopped"


def _reward(judged: _Judged, *, options: CodeTestsOptions) -> Reward:
    num_passed, num_tests = sum(judged.passed), len(judged.passed)
    fraction = num_passed / num_tests
    value = fraction if options.score == "fraction" else float(num_passed == num_tests)
    parts = {"passed_fraction": fraction, "num_passed": num_passed, "num_tests": num_tests}
    detail = f"{num_passed} of {num_tests} tests passed{'; ' if judged.detail else ''}{judged.detail}"
    return Reward.scored(value, parts=parts, detail=detail)


def _limits(options: CodeTestsOptions, *, seconds: float) -> Limits:
    return Limits(wall_seconds=seconds, cpu_seconds=math.ceil(seconds) + 1, memory_mb=options.memory_mb)


@contextmanager
def _two_pipes() -> Iterator[tuple[int, int, int, int]]:
    """Descriptors to read and write the one, to read and write the other; closed here once the boxes have theirs."""
    descriptors: list[int] = []
    try:
        descriptors += os.pipe()
        descriptors += os.pipe()
        yield descriptors[0], descriptors[1], descriptors[2], descriptors[3]
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@functools.cache
def _sandbox(unsafe: bool, process_id: int) -> Sandbox:
    """The sandbox of this process, started when it is first needed: a forked process must not share its parent's."""
    sandbox = Sandbox(unsafe=unsafe)
    atexit.register(sandbox.__exit__, None, None, None)
    return sandbox


def _json(given: Mapping[str, Any]) -> bytes:
    return json.dumps(given).encode("ascii")


def _shorten(text: str) -> str:
    return reprlib.repr(text.strip())
