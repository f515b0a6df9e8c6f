"""The worker process of `rewards.pool`: reads batches of calls, answers each one as soon as it is done.

A fork of `rewards.workers.nursery`, with a pipe for requests and one for answers. Answers, as JSON lists:
["ready"], then for each batch ["started"], for each call ["building"] and ["started"] around the first use of a
reward, and ["scored", value, status, parts, detail, answer]; ["retire"] when it has used up its memory and wants
replacing.
What verifiers print goes to stderr; what they read from stdin is empty."""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import sys

from rewards.build import build_spec, prepare_spec
from rewards.spec import RewardSpec
from rewards.types import Reward, Verifier
from rewards.workers.frames import read_frame, write_answer

MAX_DETAIL_CHARACTERS = 2_000
MAX_ANSWER_CHARACTERS = 20_000
RETIRE_MEMORY_FRACTION = 0.75
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(requests: int, answers: int, *, parent_pid: int) -> None:
    """Serve until the pool closes the pipe of requests. The first frame is the limit of the address space in bytes."""
    _guard_pipes(requests, answers)
    setup = read_frame(requests)
    if setup is None:
        return
    memory_limit_bytes: int = pickle.loads(setup)
    _die_with_parent(parent_pid)
    _limit_resources(memory_limit_bytes)
    verifiers: dict[RewardSpec, Verifier | str] = {}
    write_answer(answers, ["ready"])
    while (batch := read_frame(requests)) is not None:
        write_answer(answers, ["started"])
        for payload in pickle.loads(batch):
            reward = _judge(payload, verifiers, answers=answers)
            write_answer(answers, ["scored", *_fields(reward)])
            if reward.value is None and _is_nearly_full(memory_limit_bytes):
                break
        if _is_nearly_full(memory_limit_bytes):
            write_answer(answers, ["retire"])
            return


def _judge(payload: bytes, verifiers: dict[RewardSpec, Verifier | str], *, answers: int) -> Reward:
    try:
        spec, completion, problem = pickle.loads(payload)
    except Exception as error:
        return Reward.error(f"the problem could not be rebuilt in the worker: {type(error).__name__}: {error}")
    if spec not in verifiers:
        write_answer(answers, ["building"])
        try:
            verifiers[spec] = build_spec(spec)
            prepare_spec(spec)
        except Exception as error:
            verifiers[spec] = f"reward {spec.title} could not be built: {error}"
        write_answer(answers, ["started"])
    verifier = verifiers[spec]
    return Reward.error(verifier) if isinstance(verifier, str) else verifier(completion, problem)


def _fields(reward: Reward) -> list[object]:
    """A reward as it travels, its texts within bounds: answers that differ after so many characters count as equal."""
    detail, answer = reward.detail[:MAX_DETAIL_CHARACTERS], reward.answer
    return [reward.value, reward.status, dict(reward.parts), detail, answer and answer[:MAX_ANSWER_CHARACTERS]]


def _guard_pipes(requests: int, answers: int) -> None:
    """Keep the two pipes out of the reach of print and input, and of what a verifier starts."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    def drop_pipes() -> None:
        os.dup2(nothing, requests)
        os.dup2(nothing, answers)

    # A verifier's forked child that comes back here must neither answer nor keep the pipe open.
    os.register_at_fork(after_in_child=drop_pipes)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a TextIOWrapper in a fresh process


def _die_with_parent(parent_pid: int) -> None:
    """Ignore Ctrl-C, which is the parent's, and die when the parent does, even by SIGKILL and in the midst of a call.

    Where the kernel offers no parent-death signal, the end of the pipe ends the worker after its current call."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(0)


def _limit_resources(memory_limit_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_limit_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))


def _is_nearly_full(memory_limit_bytes: int) -> bool:
    """Whether caches or leaks have left so little address space that later calls would fail for earlier ones."""
    if not memory_limit_bytes or sys.platform != "linux":
        return False
    with open("/proc/self/statm", "rb") as file:
        pages = int(file.read().split()[0])
    return pages * resource.getpagesize() > RETIRE_MEMORY_FRACTION * memory_limit_bytes
