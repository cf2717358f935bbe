"""Dispatch of items to workers: few are in flight, dead workers are replaced, failing items are set aside."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from lorif_core.errors import (
    LorifError,
    MemoryExhaustedError,
    ShardInputError,
    StoreUnavailableError,
    UserError,
)  # fmt: skip
from lorif_core.out_of_memory import MemorySetting, is_out_of_memory, memory_exhausted
from lorif_core.storage.faults import one_line
from tasks.memory import kills_for_memory
from tasks.workers.host import Host

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_ATTEMPTS_AT_BAD_INPUT = 2  # a file may only look damaged because a response was cut off
_OUTAGES_IN_A_ROW = 3  # each one comes after the retries of the storage libraries
_START_TIMEOUT_SECONDS = 300.0
_REPORT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Done:
    """An item and the result of its call."""

    item: Any
    result: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """An item that failed every attempt, the last cause, and the error itself if it is a LorifError."""

    item: Any
    cause: str
    fault: LorifError | None


@dataclass(slots=True)
class _Job:
    """An item to work on; a suspect was in flight with others when their worker died, so it runs alone."""

    item: Any
    failures: int = 0
    suspect: bool = False


@dataclass(slots=True)
class _Worker:
    host: Host
    is_up: bool = False
    alone: bool = False
    jobs: dict[Any, _Job] = field(default_factory=dict)
    died_with: int = 0

    def has_room(self, job: _Job, in_flight: int) -> bool:
        if not self.is_up or self.alone:
            return False
        return not self.jobs if job.suspect else len(self.jobs) < in_flight


class Workers(AbstractContextManager["Workers"]):
    """A number of hosts for the length of a `with` block; one that dies, alone or with its node, is replaced.

    A host gets work only when it is up, so a replacement that the cluster has no room for delays no item.

    Args:
        spawn: starts one host and gives it its role.
        count: the number of hosts.
        memory: the settings that bound the memory of a host, to be named if it runs out.

    Attributes:
        count: the number of hosts.
    """

    def __init__(self, spawn: Callable[[], Host], count: int, memory: Sequence[MemorySetting] = ()) -> None:
        self._spawn = spawn
        self.count = count
        self._memory = memory
        self._kills = kills_for_memory()
        self._workers: list[_Worker] = []
        self._starting: dict[Any, _Worker] = {}
        self._failures_in_a_row = 0
        self._waiting: deque[_Job] = deque()

    def __enter__(self) -> "Workers":
        for _ in range(self.count):
            self._start_one()
        return self

    def grow(self, count: int) -> None:
        """Start further hosts, up to `count` of them in all."""
        for _ in range(count - self.count):
            self._start_one()
        self.count = max(self.count, count)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            if kind is None and worker.is_up and not worker.jobs:
                worker.host.release()
            else:
                worker.host.kill()
        self._workers.clear()
        self._starting.clear()

    def run(
        self, items: Sequence[Any], call: Callable[[Host, Any], Any], in_flight: int = 2
    ) -> Iterator[Done | Failed]:
        """Run `call(host, item)` for every item; yields outcomes in the order of completion.

        Args:
            items: the items to work on.
            call: starts the call and returns its reference.
            in_flight: the largest number of calls of one host, running or waiting.

        Raises:
            UserError: a call raised it; another attempt would raise it again.
            StoreUnavailableError: several calls in a row raised it.
            MemoryExhaustedError: memory ran out although a call ran alone on its host.
            LorifError: workers keep dying, or none could be started.
        """
        waiting = self._waiting = deque(_Job(item) for item in items)
        running: dict[Any, tuple[_Worker, _Job]] = {}
        idle_since = time.monotonic()
        while waiting or running:
            self._hand_out(waiting, running, call, in_flight)
            ready, _ = ray.wait([*running, *self._starting], num_returns=1, timeout=_REPORT_SECONDS)
            idle_since = time.monotonic() if running or any(w.is_up for w in self._workers) else idle_since
            if not ready:
                _report_no_worker(idle_since)
            elif ready[0] in self._starting:
                self._note_start(ready[0])
            else:
                worker, job = running.pop(ready[0])
                outcome = self._finish(ready[0], worker, job)
                if outcome is None:
                    waiting.append(job)
                else:
                    yield outcome

    def add(self, item: Any) -> None:
        """Add an item to those of `run`, whose outcomes are being read; it is the next one to be worked on."""
        self._waiting.appendleft(_Job(item))

    def _hand_out(
        self,
        waiting: deque[_Job],
        running: dict[Any, tuple[_Worker, _Job]],
        call: Callable[[Host, Any], Any],
        in_flight: int,
    ) -> None:
        for _ in range(len(waiting)):
            job = waiting.popleft()
            free = [worker for worker in self._workers if worker.has_room(job, in_flight)]
            if not free:
                waiting.appendleft(job)
                return
            worker = min(free, key=lambda candidate: len(candidate.jobs))
            reference = call(worker.host, job.item)
            worker.jobs[reference] = job
            worker.alone = job.suspect
            running[reference] = (worker, job)

    def _finish(self, reference: Any, worker: _Worker, job: _Job) -> Done | Failed | None:
        """The outcome of a job whose call finished: Done, Failed, or None for another attempt."""
        jobs_in_flight = worker.died_with or len(worker.jobs)
        del worker.jobs[reference]
        worker.alone = worker.alone and bool(worker.jobs)
        try:
            result = ray.get(reference)
            self._failures_in_a_row = 0
            return Done(job.item, result)
        except RayError as error:
            fault, was_alone = _fault(error), jobs_in_flight == 1
            if isinstance(fault, UserError):
                raise fault from None
            if _is_death(error):
                self._replace(worker, jobs_in_flight)
            self._stop_if_out_of_memory(error, was_alone)
            lacks_memory = _is_death(error) or is_out_of_memory(_cause_of(error))
            job.suspect |= lacks_memory
            if was_alone or not lacks_memory:  # else another job may have been the cause
                job.failures += 1
            self._failures_in_a_row += 1
            self._stop_if_all_fail(error, fault)
            log.warning("attempt %d of %d failed: %s", job.failures, _ATTEMPTS, _text(error))
            limit = _ATTEMPTS_AT_BAD_INPUT if isinstance(fault, ShardInputError) else _ATTEMPTS
            return self._failed(job, error, fault) if job.failures >= limit else None

    def _failed(self, job: _Job, error: RayError, fault: LorifError | None) -> Failed:
        if _is_death(error):
            fault = self._death(error)
        return Failed(job.item, _text(error) if fault is None else one_line(fault), fault)

    def _stop_if_out_of_memory(self, error: RayError, was_alone: bool) -> None:
        cause = _cause_of(error)
        if isinstance(cause, LorifError) and is_out_of_memory(cause):
            raise cause from None  # it has named what to do
        killed = _is_death(error) and kills_for_memory() > self._kills
        if was_alone and (killed or is_out_of_memory(cause)):
            raise memory_exhausted("a worker", _text(error), self._memory) from None

    def _death(self, error: RayError) -> MemoryExhaustedError:
        """The likely cause of a death that nobody explains: the system kills a process that lacks memory."""
        text = _text(error).partition(". ")[0]  # Ray adds ids, and several causes to choose from
        return memory_exhausted("a worker died without a word; most likely it", text, self._memory)

    def _stop_if_all_fail(self, error: RayError, fault: LorifError | None) -> None:
        if isinstance(fault, StoreUnavailableError) and self._failures_in_a_row >= _OUTAGES_IN_A_ROW:
            raise StoreUnavailableError(str(fault)) from None
        if self._failures_in_a_row >= 4 * _ATTEMPTS * max(2, self.count):
            text = str(self._death(error)) if _is_death(error) else _text(error)
            raise LorifError(f"{self._failures_in_a_row} calls in a row failed, the last one with: {text}")

    def _start_one(self) -> None:
        worker = _Worker(self._spawn())
        self._workers.append(worker)
        self._starting[worker.host.ready] = worker

    def _note_start(self, reference: Any) -> None:
        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
            worker.is_up = True
        except RayError as error:
            if isinstance(fault := _fault(error), UserError):
                raise fault from None
            self._failures_in_a_row += 1
            self._stop_if_out_of_memory(error, was_alone=True)
            self._stop_if_all_fail(error, fault)
            self._replace(worker, 0)

    def _replace(self, worker: _Worker, died_with: int) -> None:
        """Replace a dead host by a new one, once; the other calls of the dead one fail by themselves."""
        if worker in self._workers:
            worker.is_up, worker.died_with = False, died_with
            self._workers.remove(worker)
            worker.host.kill()  # it must not come back if it was only unreachable
            self._start_one()


def _report_no_worker(idle_since: float) -> None:
    waited = time.monotonic() - idle_since
    if waited < _REPORT_SECONDS / 2:
        return
    room = ", ".join(
        f"{count:g} {name}" for name, count in ray.available_resources().items() if name in ("CPU", "GPU")
    )
    if waited > _START_TIMEOUT_SECONDS:
        raise LorifError(
            f"no worker could be started within {waited:.0f} s: the cluster has {room or 'no CPU'} free; free "
            f"resources, add nodes, or lower compute.workers or compute.gpus_per_worker"
        )
    log.warning("no worker is up after %.0f s; the cluster has %s free", waited, room or "no CPU")


def _cause_of(error: RayError) -> Exception:
    return error.cause if isinstance(error, RayTaskError) else error


def _fault(error: RayError) -> LorifError | None:
    cause = _cause_of(error)
    return cause if isinstance(cause, LorifError) else None


def _is_death(error: RayError) -> bool:
    """Whether the worker has died; Ray has a type of its own for one that it killed because memory ran out."""
    return isinstance(error, RayActorError | OutOfMemoryError)


def _text(error: RayError) -> str:
    cause = _cause_of(error)
    return one_line(cause) if isinstance(cause, LorifError) else f"{type(cause).__name__}: {one_line(cause)}"
