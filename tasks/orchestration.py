"""Flows and tasks: they run under Prefect where it has an API to report to, and as plain functions elsewhere.

Without an API, Prefect would start a server for each command, which takes longer than a small build. Prefect is
imported only where it runs something.
"""

import inspect
import logging
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Generic, ParamSpec, TypeVar

from tasks.environment import has_prefect_api
from tasks.retry import DELAYS, PREFECT_RETRIES, may_succeed_later

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("tasks")


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a flow; `deployment` is an id of Prefect, and None for a run that a command started."""

    id: str
    name: str
    flow: str
    started: datetime
    parameters: Mapping[str, Any]
    deployment: str | None = None


_plain_run: ContextVar[Run | None] = ContextVar("run", default=None)


def current_run() -> Run:
    """The run of the innermost flow.

    Raises:
        RuntimeError: no flow runs.
    """
    context, plain = _prefect_context(), _plain_run.get()
    if context is None:
        if plain is None:
            raise RuntimeError("no flow runs")
        return plain
    run = context.flow_run
    deployment = None if run.deployment_id is None else str(run.deployment_id)
    return Run(str(run.id), run.name, context.flow.name, context.start_time, context.parameters, deployment)


def runs_in_prefect() -> bool:
    """Whether a flow of Prefect runs here."""
    return _prefect_context() is not None


def _prefect_context() -> Any:
    module = sys.modules.get("prefect.context")  # without it no flow of Prefect runs
    return None if module is None else module.FlowRunContext.get()


def run_log() -> Any:
    """The log of the current run, which Prefect shows."""
    if not runs_in_prefect():
        return log
    from prefect import get_run_logger

    return get_run_logger()


class Task(Generic[P, R]):
    """A step of a flow, made by `task`.

    Attributes:
        fn: the function itself, which is not run again if it fails.
    """

    def __init__(self, fn: Callable[P, R], name: str, retried: bool, run_name: str | None) -> None:
        self.fn, self._name, self._retried, self._run_name = fn, name, retried, run_name
        self.__doc__ = fn.__doc__

    @cached_property
    def _prefect(self) -> Any:
        from prefect import task
        from prefect.cache_policies import NO_CACHE

        options = PREFECT_RETRIES if self._retried else {}
        return task(name=self._name, task_run_name=self._run_name, cache_policy=NO_CACHE, **options)(self.fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if runs_in_prefect():
            return self._prefect(*args, **kwargs)
        for delay in DELAYS if self._retried else ():
            try:
                return self.fn(*args, **kwargs)
            except Exception as error:
                if not may_succeed_later(error):
                    raise
                log.warning("%s failed and runs again in %g s: %s", self._name, delay, error)
                time.sleep(delay)
        return self.fn(*args, **kwargs)


def task(
    name: str, *, retried: bool = False, run_name: str | None = None
) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function a step of flows.

    Args:
        name: name of the step.
        retried: run it again if it fails for a reason that may pass.
        run_name: name of a run of it, with the names of parameters in braces; None uses one of Prefect.
    """
    return lambda fn: Task(fn, name, retried, run_name)


class Flow(Generic[P, R]):
    """An order of steps that is run as a whole, made by `flow`."""

    def __init__(self, fn: Callable[P, R], name: str, run_name: str) -> None:
        self._fn, self.name, self._run_name = fn, name, run_name
        self.__doc__ = fn.__doc__

    @cached_property
    def prefect(self) -> Any:
        """The flow of Prefect, for deployments."""
        from prefect import flow

        return flow(name=self.name, flow_run_name=self._run_name, persist_result=False)(self._fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if runs_in_prefect() or has_prefect_api():
            return self.prefect(*args, **kwargs)
        bound = inspect.signature(self._fn).bind(*args, **kwargs)
        bound.apply_defaults()
        name = self._run_name.format(**bound.arguments)
        token = _plain_run.set(Run(str(uuid.uuid4()), name, self.name, datetime.now(UTC), bound.arguments))
        try:
            return self._fn(*args, **kwargs)
        finally:
            _plain_run.reset(token)


def flow(name: str, run_name: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a function a flow; `run_name` is the name of a run, with the names of parameters in braces."""
    return lambda fn: Flow(fn, name, run_name)
