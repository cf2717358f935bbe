"""Worker processes that outlive a step: starting one, and importing torch and transformers in it, takes seconds.

A host has one role at a time: an object whose methods do the work of a step. A host whose step succeeded becomes
idle, and the next step gives it another role. A host that failed, died or has unfinished calls is not used again.
"""

import gc
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock, Semaphore
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lorif_core.free_memory import return_freed_memory

CALLS_AT_ONCE = 3
"""The most calls that any role handles at the same time; its attribute `calls_at_once` says how many it does."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a host reserves on the cluster; with a node it runs there, else wherever there is room."""

    cpus: int
    gpus: float
    node: str | None = None


@ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=CALLS_AT_ONCE)
class RoleHost:
    """The process. Ray must not restart it: `Workers` replaces one that dies and finds the item that caused it."""

    def __init__(self) -> None:
        gc.disable()  # until the first role is imported: imports create a million objects that are never freed
        self._role: Any = None
        self._number, self._turns, self._changing = 0, Semaphore(), Lock()

    def take(self, number: int, role: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Make an object of a role, the nth one of this process; later calls go to it."""
        with self._changing:
            self._free_role()
            if not gc.isenabled():
                gc.freeze()
                gc.enable()
            self._role, self._number = role(*arguments), number
            self._turns = Semaphore(getattr(role, "calls_at_once", 1))

    def drop(self, number: int) -> None:
        """Free the nth role, above all its model; nothing if the next one was quicker, as calls have no order."""
        with self._changing:
            if number == self._number:
                self._free_role()

    def _free_role(self) -> None:
        if self._role is None:
            return
        import torch

        self._role = None
        gc.collect()
        return_freed_memory()
        torch.cuda.empty_cache()

    def run(self, method: str, *arguments: Any) -> Any:
        """Call a method of the role."""
        with self._turns:
            return getattr(self._role, method)(*arguments)


class Host:
    """The driver's handle of a worker process; `ready` is done once the process has taken its role."""

    def __init__(self, process: Any, reservation: Reservation) -> None:
        self._process, self._reservation = process, reservation
        self._roles = 0
        self.ready: ray.ObjectRef | None = None

    def take(self, role: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Give the process a role."""
        self._roles += 1
        self.ready = self._process.take.remote(self._roles, role, arguments)

    def call(self, method: str, *arguments: Any, results: int = 1) -> Any:
        """Start a call of the role; returns its reference, or one for each of several results."""
        return self._process.run.options(num_returns=results).remote(method, *arguments)

    def release(self) -> None:
        """Keep the process for the next step."""
        self._process.drop.remote(self._roles)
        _idle[self._reservation].append(self)

    def kill(self) -> None:
        """End the process."""
        ray.kill(self._process)


_idle: dict[Reservation, list[Host]] = defaultdict(list)


def find_host(reservation: Reservation) -> Host:
    """An idle host with this reservation, or a new one; idle hosts with other reservations make room for it."""
    if _idle[reservation]:
        return _idle[reservation].pop()
    end_idle_hosts()
    node = reservation.node
    process = (
        cast(Any, RoleHost)
        .options(
            num_cpus=reservation.cpus,
            num_gpus=reservation.gpus,
            scheduling_strategy="DEFAULT" if node is None else NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote()
    )
    return Host(process, reservation)


def end_idle_hosts() -> None:
    """End the processes of all idle hosts, which frees what they reserve."""
    for hosts in _idle.values():
        for host in hosts:
            host.kill()
    _idle.clear()
