"""How fast rewards are, beside the obvious alternatives on the same work.

    python scripts/bench_rewards.py                     # all three tables
    python scripts/bench_rewards.py programs --repeats 5

- maths: milliseconds a verdict on ordinary answers, one after another: through a pool of two workers, math-verify
  called directly, and TRL's accuracy reward (both of which call it in this process, with its own time limits).
- programs: programs a second, two at a time: the reward code_tests in its sandbox, by asserts and by stdin, beside
  bubblewrap with a fresh Python for each program, and beside a fresh Python with no sandbox at all.
- hangs: seconds for calls of which one in twenty hangs, with a limit of 0.2 s and eight workers: the pool beside
  pebble's ProcessPool where that is installed (pip install pebble).

The contestants take turns, so that what else the machine does meets them all alike; figures are medians over the
repeats. A contestant whose verdicts are wrong is an error, not a number."""

import argparse
import importlib.util
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rewards import Pool, RewardSpec

LIMIT_SECONDS = 0.2
HANG_WORKERS = 8
Row = tuple[str, dict[str, Any], float]
"""A completion, its problem, and the verdict that is right."""


class WrongVerdictError(RuntimeError):
    """A contestant judged wrongly, so that its time means nothing."""


# --- maths ----------------------------------------------------------------------------------------------------------


def ordinary_answers(number: int, *, seed: int) -> list[Row]:
    """Answers as policies give them to school and competition problems, each with other numbers, half of them wrong."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for index in range(number):
        a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.randint(100, 9999)
        right, wrong, gold = rng.choice(
            [
                (f"{c}", f"{c + 1}", f"{c}"),
                (f"{c:,}", f"{c + 10:,}", f"{c}"),
                (rf"\${c}.50", rf"\${c}.05", f"{c}.5"),
                (rf"\frac{{{2 * a}}}{{{2 * b}}}", rf"\frac{{{a}}}{{{b + a}}}", rf"\frac{{{a}}}{{{b}}}"),
                (rf"{a}\sqrt{{{b}}}", rf"{a}\sqrt{{{b + 1}}}", rf"{a}\sqrt{{{b}}}"),
                (f"x^2 + {a}x + {b}", f"x^2 - {a}x + {b}", f"{b} + {a}x + x^2"),
                (f"({a}, {b})", f"({b + a}, {a})", f"({a},{b})"),
                (rf"\{{{a}, {b}, {c}\}}", rf"\{{{a}, {b}\}}", rf"\{{{c}, {a}, {b}\}}"),
            ]
        )
        answer = right if index % 2 else wrong
        rows.append((rf"Let us see. Thus the answer is $\boxed{{{answer}}}$.", {"answer": gold}, float(index % 2)))
    return rows


def time_each(judge: Callable[[str, dict[str, Any]], float], rows: Sequence[Row], *, name: str) -> list[float]:
    """Milliseconds of each verdict. Raises WrongVerdictError where more than two in a hundred are wrong."""
    taken, wrong = [], []
    for completion, problem, expected in rows:
        start = time.perf_counter()
        value = judge(completion, problem)
        taken.append((time.perf_counter() - start) * 1e3)
        if value != expected:
            wrong.append((completion, problem, value))
    if len(wrong) > len(rows) / 50:
        raise WrongVerdictError(f"{name}: {len(wrong)} of {len(rows)} verdicts are wrong, such as {wrong[0]}")
    return taken


def maths(*, number: int, repeats: int) -> list[str]:
    """The table of milliseconds a verdict."""
    from math_verify import parse, verify
    from trl.rewards import accuracy_reward

    spec = RewardSpec("math_answer")

    def direct(completion: str, problem: dict[str, Any]) -> float:
        return float(verify(parse(f"${problem['answer']}$"), parse(completion)))

    def trl(completion: str, problem: dict[str, Any]) -> float:
        (value,) = accuracy_reward([[{"content": completion}]], [f"${problem['answer']}$"])
        return float(value or 0.0)

    with Pool(workers=2) as pool:

        def ours(completion: str, problem: dict[str, Any]) -> float:
            return float(pool.submit(spec, completion, problem).result().value or 0.0)

        contestants = {
            "math_answer through a pool of 2": ours,
            "math-verify called directly": direct,
            "TRL's accuracy_reward": trl,
        }
        taken: dict[str, list[float]] = {name: [] for name in contestants}
        for repeat in range(repeats + 1):
            rows = ordinary_answers(number, seed=repeat)
            for name, judge in contestants.items():
                milliseconds = time_each(judge, rows, name=name)
                if repeat:  # the first warms up
                    taken[name] += milliseconds
    lines = ["| maths, milliseconds a verdict | median | p99 |", "|---|---|---|"]
    for name, values in taken.items():
        lines.append(f"| {name} | {median(values):.2f} | {quantiles(values, n=100)[-1]:.2f} |")
    return lines


# --- programs -------------------------------------------------------------------------------------------------------

PROGRAM = "a, b = map(int, input().split())\nprint(a + b)\n"
FUNCTION = "def add(a, b):\n    return a + b\n"


def fenced(source: str) -> str:
    return f"```python\n{source}```"


def rate(run: Callable[[int], bool], *, number: int, name: str) -> float:
    """Programs a second. Raises WrongVerdictError unless every one of them passes."""
    with ThreadPoolExecutor(2) as threads:
        start = time.perf_counter()
        passed = sum(threads.map(run, range(number)))
        seconds = time.perf_counter() - start
    if passed != number:
        raise WrongVerdictError(f"{name}: {number - passed} of {number} right programs did not pass")
    return number / seconds


def plain(command: Sequence[str], index: int) -> bool:
    """Whether a fresh process with the program prints the sum."""
    ended = subprocess.run([*command, "-c", PROGRAM], input=f"{index} 1".encode(), capture_output=True, check=False)
    return ended.stdout.strip() == str(index + 1).encode()


def bubblewrapped() -> list[str]:
    """A Python in a bubblewrap that shuts out what the sandbox shuts out, as one would write it by hand."""
    prefix = sys.base_prefix
    folders = dict.fromkeys(path for path in ("/usr", "/lib", "/lib64", "/bin", prefix) if Path(path).exists())
    binds = [word for path in folders for word in ("--ro-bind", path, path)]
    python = getattr(sys, "_base_executable", sys.executable)
    return [
        *("bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"),
        *(*binds, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", python, "-I"),
    ]


def programs(*, number: int, repeats: int) -> list[str]:
    """The table of programs a second."""
    if shutil.which("bwrap") is None:
        raise SystemExit("bench_rewards: the sandbox needs bubblewrap; on Debian: apt-get install bubblewrap")
    spec = RewardSpec("code_tests")
    python = [getattr(sys, "_base_executable", sys.executable), "-I"]
    with Pool(workers=2, timeout_seconds=60) as pool:

        def by_stdin(index: int) -> bool:
            tests = {"type": "stdin", "cases": [{"stdin": f"{index} 1", "stdout": f"{index + 1}"}]}
            return pool.submit(spec, fenced(PROGRAM), {"tests": tests}).result().value == 1.0

        def by_asserts(index: int) -> bool:
            tests = {"type": "assert", "entry_point": "add", "asserts": [f"assert add({index}, 1) == {index + 1}"]}
            return pool.submit(spec, fenced(FUNCTION), {"tests": tests}).result().value == 1.0

        contestants: dict[str, Callable[[int], bool]] = {
            "code_tests by stdin": by_stdin,
            "code_tests by asserts": by_asserts,
            "bubblewrap and a fresh Python": lambda index: plain(bubblewrapped(), index),
            "a fresh Python, no sandbox": lambda index: plain(python, index),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for repeat in range(repeats + 1):
            for name, run in contestants.items():
                found = rate(run, number=number if repeat else 20, name=name)
                if repeat:  # the first warms up
                    rates[name].append(found)
    peer = median(rates["bubblewrap and a fresh Python"])
    lines = ["| programs a second, two at a time | median | times bubblewrap |", "|---|---|---|"]
    for name, values in rates.items():
        lines.append(f"| {name} | {median(values):.1f} | {median(values) / peer:.2f} |")
    return lines


# --- hangs ----------------------------------------------------------------------------------------------------------


def hang_or_echo(completion: str, problem: object) -> float:
    """The number in the completion; one in twenty hangs, by turns asleep and at work."""
    number = int(completion)
    if number % 40 == 7:
        time.sleep(3600)
    while number % 40 == 27:
        pass
    return float(number)


def seconds_of_pool(number: int) -> float:
    spec = RewardSpec(file=__file__, function="hang_or_echo")
    start = time.perf_counter()
    with Pool(workers=HANG_WORKERS, timeout_seconds=LIMIT_SECONDS) as pool:
        rewards = pool.score_all([(spec, str(index), {}) for index in range(number)])
    seconds = time.perf_counter() - start
    _check_hangs([reward.value for reward in rewards], name="the pool")
    return seconds


def seconds_of_pebble(number: int) -> float:
    from pebble import ProcessPool

    start = time.perf_counter()
    with ProcessPool(max_workers=HANG_WORKERS) as pool:
        futures = [pool.schedule(hang_or_echo, (str(i), None), timeout=LIMIT_SECONDS) for i in range(number)]
        values: list[float | None] = []
        for future in futures:
            try:
                values.append(future.result())
            except TimeoutError:
                values.append(None)
    seconds = time.perf_counter() - start
    _check_hangs(values, name="pebble")
    return seconds


def _check_hangs(values: Sequence[float | None], *, name: str) -> None:
    """Raise WrongVerdictError where a call has another's value, a hanging one has any, or more than one in 500 was
    late: on cores that others keep busy a limit of 0.2 s may pass before a call is at work."""
    hung = [value for index, value in enumerate(values) if index % 20 == 7]
    others = {index: value for index, value in enumerate(values) if index % 20 != 7}
    wrong = sum(value is not None for value in hung)
    wrong += sum(value is not None and value != index for index, value in others.items())
    num_late = sum(value is None for value in others.values())
    if wrong or num_late > len(others) / 500:
        raise WrongVerdictError(f"{name}: {wrong} verdicts are wrong, {num_late} of {len(others)} came late")


def hangs(*, number: int, repeats: int) -> list[str]:
    """The table of seconds with one call in twenty hanging."""
    contestants = {"the pool": seconds_of_pool}
    if importlib.util.find_spec("pebble") is not None:
        contestants["pebble's ProcessPool"] = seconds_of_pebble
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, seconds_of in contestants.items():
            taken[name].append(seconds_of(number))
    lines = [f"| {number:,} calls, 5 % of them hanging, {HANG_WORKERS} workers | seconds |", "|---|---|"]
    return lines + [f"| {name} | {median(values):.1f} |" for name, values in taken.items()]


TABLES: dict[str, tuple[Callable[..., list[str]], int]] = {
    "maths": (maths, 400),
    "programs": (programs, 1_000),
    "hangs": (hangs, 10_000),
}
"""What makes each table, and how much work a contestant has in each round."""


def main(arguments: Sequence[str]) -> int:
    """Print the tables that are asked for, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], help="which tables; all where none is named")
    parser.add_argument("--repeats", type=int, default=3, help="rounds in which each contestant has its turn")
    parser.add_argument("--number", type=int, help="verdicts, programs or calls of each round")
    chosen = parser.parse_args(arguments)
    if chosen.repeats < 1 or (chosen.number is not None and chosen.number < 40):
        parser.error("--repeats must be at least 1 and --number at least 40")
    for name in chosen.tables or TABLES:
        table, number = TABLES[name]
        print("\n".join(table(number=chosen.number or number, repeats=chosen.repeats)), end="\n\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
