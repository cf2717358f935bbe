"""The bounded dispatcher: items to actors, few in flight, results as they come, poison set aside."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from lorif_core.errors import UserError
from lorif_core.filesystem import one_line

log = logging.getLogger(__name__)

_IN_FLIGHT_PER_ACTOR = 2  # one running, one waiting: an actor never idles between two calls


@dataclass(frozen=True, slots=True)
class Done:
    """An item and what its call returned."""

    item: Any
    result: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """An item that failed every attempt, and the last cause."""

    item: Any
    cause: str


def dispatch(
    actors: Sequence[Any], items: Sequence[Any], call: Callable[[Any, Any], Any], attempts: int = 3
) -> Iterator[Done | Failed]:
    """Run `call(actor, item)` for every item and yield outcomes in the order of completion.

    At most two calls per actor are in flight. An item that fails goes to the end of the queue; after
    `attempts` failures, or when every actor has died for good, it is yielded as Failed.

    Raises:
        UserError: a call raised one; nothing is gained by trying it again.
    """
    waiting = deque(enumerate(items))
    failures: dict[int, int] = {}
    free = deque(actor for _ in range(_IN_FLIGHT_PER_ACTOR) for actor in actors)
    running: dict[Any, tuple[Any, int, Any]] = {}
    while waiting or running:
        while waiting and free:
            actor = free.popleft()
            number, item = waiting.popleft()
            running[call(actor, item)] = (actor, number, item)
        (ready,), _ = ray.wait(list(running), num_returns=1)
        actor, number, item = running.pop(ready)
        try:
            yield Done(item, ray.get(ready))
            free.append(actor)
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, UserError):
                raise error.cause from None
            if isinstance(error, RayActorError):
                free = deque(other for other in free if other is not actor)
                if not free and not running:
                    yield from (Failed(left, _cause(error)) for left in [item, *(item for _, item in waiting)])
                    return
            else:
                free.append(actor)
            failures[number] = failures.get(number, 0) + 1
            cause = _cause(error)
            log.warning("attempt %d of %d failed: %s", failures[number], attempts, cause)
            if failures[number] >= attempts:
                yield Failed(item, cause)
            else:
                waiting.append((number, item))


def _cause(error: RayError) -> str:
    cause = error.cause if isinstance(error, RayTaskError) else error
    return f"{type(cause).__name__}: {one_line(cause)}"
