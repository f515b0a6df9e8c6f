"""Verifiers in worker processes that can be killed: a hard limit for each call, whatever the verifier does.

One thread for each worker takes a few calls from the common queue, hands them over in one message, and holds the clock
of the call that the worker is at. Knows nothing of what the verifiers judge."""

from __future__ import annotations

import os
import pickle
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any

from rewards.build import build_spec
from rewards.spec import RewardSpec
from rewards.types import Reward, Status, Verifier
from rewards.workers.process import Nursery, NurseryDiedError, WorkerDiedError, WorkerProcess

MAX_CALLS_PER_MESSAGE = 32
MESSAGE_SECONDS = 0.002
"""Work that a message should hold: far above the cost of sending it, far below what a neighbour would mind waiting."""
MAX_HANDOVERS = 3
"""How often a call is handed to a worker that dies before it starts on it, until it is an error."""


@dataclass(slots=True)
class _Call:
    spec: RewardSpec
    payload: bytes
    future: Future[Reward]
    num_handovers: int = 0


class Pool:
    """Worker processes that judge completions, used as a context manager.

    A call that takes longer than `timeout_seconds` is killed with its worker and becomes a timeout; a worker that dies
    makes an error of the call it was at; other calls are not touched and a fresh worker takes over. The clock starts
    when the worker starts on the call; building a verifier (importing what it needs) has `build_timeout_seconds` of
    its own. `memory_limit_mb` bounds a worker's address space, 0 leaves it unbounded. Workers die with this process.

    `workers=0` judges in this process, at once, without any limit: for tests and debugging.
    Raises ValueError for a negative number of workers or a limit that is not positive."""

    def __init__(
        self,
        workers: int = 2,
        *,
        timeout_seconds: float = 5.0,
        build_timeout_seconds: float = 60.0,
        memory_limit_mb: int = 1024,
    ) -> None:
        if workers < 0 or memory_limit_mb < 0:
            raise ValueError(f"a pool needs workers >= 0, memory_limit_mb >= 0; got {workers}, {memory_limit_mb}")
        if timeout_seconds <= 0 or build_timeout_seconds <= 0:
            raise ValueError(
                f"a pool's limits must be above 0 seconds; got timeout_seconds={timeout_seconds}, "
                f"build_timeout_seconds={build_timeout_seconds}"
            )
        self.workers = workers
        self.timeout_seconds = timeout_seconds
        self.build_timeout_seconds = build_timeout_seconds
        self.memory_limit_mb = memory_limit_mb
        self._owner_pid = os.getpid()
        self._lock = threading.Condition()
        self._queue: deque[_Call] = deque()
        self._closed = False
        self._live: set[WorkerProcess] = set()
        self._nursery = Nursery()
        self._known: set[RewardSpec] = set()
        self._unbuildable: dict[RewardSpec, str] = {}
        self._verifiers: dict[RewardSpec, Verifier | str] = {}
        self._seconds_per_call = MESSAGE_SECONDS
        self._threads = [threading.Thread(target=self._serve, daemon=True, name="rewards") for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers at once. Calls that have no result by then become errors; nothing waits for ever.

        In a fork of the process that made the pool nothing is done: workers and threads are the other's."""
        if os.getpid() != self._owner_pid:
            return
        with self._lock:
            self._closed = True
            for call in self._queue:
                call.future.set_result(Reward.error("the pool was closed before the call began"))
            self._queue.clear()
            for worker in self._live:
                worker.interrupt()
            self._lock.notify_all()
        for thread in self._threads:
            thread.join()
        self._nursery.close()

    def submit(self, spec: RewardSpec, completion: str, problem: Mapping[str, Any]) -> Future[Reward]:
        """The future reward of one call; it holds a Reward in every case, never an exception, and cannot be cancelled.

        Raises RuntimeError when the pool is closed, and in a fork of the process that made it."""
        return self._submit_all([(spec, completion, problem)])[0]

    def score_all(self, calls: Sequence[tuple[RewardSpec, str, Mapping[str, Any]]]) -> list[Reward]:
        """The rewards of all calls, in order."""
        return [future.result() for future in self._submit_all(calls)]

    def _submit_all(self, calls: Sequence[tuple[RewardSpec, str, Mapping[str, Any]]]) -> list[Future[Reward]]:
        if os.getpid() != self._owner_pid:
            raise RuntimeError("this pool was made before the process was forked; make one in each process")
        futures: list[Future[Reward]] = []
        accepted = []
        for spec, completion, problem in calls:
            future: Future[Reward] = Future()
            future.set_running_or_notify_cancel()
            futures.append(future)
            if self.workers == 0:
                future.set_result(self._judge_here(spec, completion, problem))
                continue
            if spec not in self._known:
                self._known.add(spec)
                if spec.name:  # a user's file is loaded in workers alone
                    self._nursery.prepare(spec)
            payload = _pack_call(spec, completion, problem)
            if isinstance(payload, Reward):
                future.set_result(payload)
            else:
                accepted.append(_Call(spec=spec, payload=payload, future=future))
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed; submit inside its with block")
            self._queue.extend(accepted)
            self._lock.notify_all()
        return futures

    def _judge_here(self, spec: RewardSpec, completion: str, problem: Mapping[str, Any]) -> Reward:
        if spec not in self._verifiers:
            try:
                self._verifiers[spec] = build_spec(spec)
            except ValueError as error:
                self._verifiers[spec] = f"reward {spec.title} could not be built: {error}"
        verifier = self._verifiers[spec]
        return Reward.error(verifier) if isinstance(verifier, str) else verifier(completion, problem)

    def _serve(self) -> None:
        """What each thread does: keep one worker alive and busy."""
        worker: WorkerProcess | None = None
        while calls := self._take():
            if worker is None:
                worker = self._start_worker(calls)
            if worker is not None and not self._run_or_end(worker, calls):
                self._stop_worker(worker)
                worker = None
        if worker is not None:
            self._stop_worker(worker)

    def _run_or_end(self, worker: WorkerProcess, calls: deque[_Call]) -> bool:
        """`_run`, and whatever it does not foresee is the error of the call that the worker was at.

        An exception that ended the thread would leave whoever waits for its calls waiting for ever."""
        try:
            return self._run(worker, calls)
        except Exception as error:
            if calls:
                call = calls.popleft()
                call.future.set_result(
                    Reward.error(f"reward {call.spec.title}: its answer is none ({type(error).__name__}: {error})")
                )
            self._give_back(calls)
            return False

    def _take(self) -> deque[_Call]:
        """The next few calls, as many as fill a message; none when the pool is closed."""
        with self._lock:
            while not self._queue and not self._closed:
                self._lock.wait()
            worth_sending = int(MESSAGE_SECONDS / self._seconds_per_call)
            fair_share = -(-len(self._queue) // self.workers)
            num_calls = min(max(1, worth_sending), MAX_CALLS_PER_MESSAGE, fair_share)
            return deque(self._queue.popleft() for _ in range(num_calls))

    def _give_back(self, calls: deque[_Call]) -> None:
        """Put calls that no worker has begun where they came from."""
        with self._lock:
            if self._closed:
                for call in calls:
                    call.future.set_result(Reward.error("the pool was closed before the call began"))
                return
            self._queue.extendleft(reversed(calls))
            self._lock.notify_all()

    def _start_worker(self, calls: deque[_Call]) -> WorkerProcess | None:
        """A live worker; None when it could not start, which is the error of the calls that wait for it."""
        try:
            worker = WorkerProcess(self._nursery, memory_limit_mb=self.memory_limit_mb)
        except Exception as error:  # whatever it is: nobody waits for ever
            for call in calls:
                call.future.set_result(Reward.error(f"a reward worker could not start: {error}"))
            return None
        with self._lock:
            self._live.add(worker)
            if self._closed:
                worker.interrupt()
        return worker

    def _stop_worker(self, worker: WorkerProcess) -> None:
        with self._lock:
            self._live.discard(worker)
        worker.kill()

    def _run(self, worker: WorkerProcess, calls: deque[_Call]) -> bool:
        """Have the worker judge the calls, each of which leaves `calls` with its result or is given back.

        False when the worker must be replaced."""
        hopeful = [call for call in calls if not self._is_known_to_fail(call)]
        calls.clear()
        calls.extend(hopeful)
        if not calls:
            return True
        for call in calls:
            call.num_handovers += 1
        limit_seconds, begun, building = self.build_timeout_seconds, False, False
        num_calls, start_seconds = len(calls), monotonic()
        try:
            worker.send(pickle.dumps([call.payload for call in calls]))
            while calls:
                answer = worker.receive(limit_seconds=limit_seconds)
                if answer is None:
                    self._end_call(calls.popleft(), timeout=True, building=building, how="")
                    self._give_back(calls)
                    return False
                kind, *values = answer
                if kind == "scored":
                    reward = _as_reward(values)  # may raise: then the call is still there to be ended
                    calls.popleft().future.set_result(reward)
                elif kind == "retire":
                    self._give_back(calls)
                    return False
                else:
                    begun, building = True, kind == "building"
                    limit_seconds = self.build_timeout_seconds if building else self.timeout_seconds
                    start_seconds = monotonic()
        except WorkerDiedError as error:
            # Before it has begun the fault is no call's own, unless one call sees it happen again and again; nor is the
            # death of the process that workers are forked from.
            blamed = begun and not (building and isinstance(error, NurseryDiedError))
            if calls and (blamed or calls[0].num_handovers >= MAX_HANDOVERS):
                self._end_call(calls.popleft(), timeout=False, building=building, how=str(error))
            self._give_back(calls)
            return False
        # Unlocked: a lost update costs one message of another size.
        measured = max(1e-6, (monotonic() - start_seconds) / num_calls)
        self._seconds_per_call = (self._seconds_per_call + measured) / 2
        return True

    def _end_call(self, call: _Call, *, timeout: bool, building: bool, how: str) -> None:
        """Give the call that the worker was at its result; a reward that kills its builder is not built again."""
        if self._closed:
            call.future.set_result(Reward.error("the pool was closed while the call ran"))
            return
        doing = f"building reward {call.spec.title}" if building else f"reward {call.spec.title}"
        if timeout:
            limit_seconds = self.build_timeout_seconds if building else self.timeout_seconds
            reward = Reward.timeout(f"{doing} took more than {limit_seconds:g} s; its worker was killed")
        else:
            reward = Reward.error(f"{doing}: the worker {how}")
        if building:
            self._unbuildable[call.spec] = reward.detail
        call.future.set_result(reward)

    def _is_known_to_fail(self, call: _Call) -> bool:
        if call.spec not in self._unbuildable:
            return False
        call.future.set_result(Reward.error(f"not tried again: {self._unbuildable[call.spec]}"))
        return True


def _as_reward(values: list[Any]) -> Reward:
    value, status, parts, detail, answer = values
    return Reward(value=value, status=Status(status), parts=parts, detail=detail, answer=answer)


def _pack_call(spec: RewardSpec, completion: str, problem: Mapping[str, Any]) -> bytes | Reward:
    """What travels to the worker; an error that names the key when the problem cannot travel."""
    try:
        return pickle.dumps((spec, completion, dict(problem)))
    except Exception as error:
        keys = [key for key, value in problem.items() if not _can_travel(value)]
        return Reward.error(
            f"problem {keys or ''} cannot be sent to a worker ({type(error).__name__}: {error}); a problem holds plain "
            f"data: numbers, strings, lists, mappings"
        )


def _can_travel(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
