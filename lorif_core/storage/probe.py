"""Tests whether an index can be written to a store, and whether the store applies If-None-Match atomically.

Without atomicity, two committers could each believe that they wrote the next version of a table, and rows would
disappear without an error (STACK.md, section 3).
"""

import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from lorif_core.storage.objects import Objects

_RACES = 10  # on Swift a race has one winner by luck with probability 0.4, and all ten with 1e-4
_WRITERS = 8


@dataclass(frozen=True, slots=True)
class ConditionalPut:
    """The number of races, and the number of fair ones: those with exactly one winner."""

    races: int
    fair: int

    @property
    def atomic(self) -> bool:
        """Whether every race had exactly one winner."""
        return self.fair == self.races

    def sentence(self) -> str:
        """The result and its consequence, for logs and `lorif check`."""
        if self.atomic:
            return f"conditional put is atomic ({self.races} of {self.races} races had one winner)"
        return (
            f"conditional put is not atomic ({self.fair} of {self.races} races had one winner): single-committer "
            f"mode, only the lease keeps other builds out"
        )


def probe_conditional_put(objects: Objects) -> ConditionalPut:
    """Run races in which several writers create the same object; the objects are removed afterwards.

    Raises:
        UserError: the location cannot be written.
        StoreUnavailableError: the store keeps failing.
    """
    run = uuid.uuid4().hex
    names = [f"probe/{run}-{race}.json" for race in range(_RACES)]

    def wins(name: str, writer: int) -> bool:
        return objects.create(name, {"runner": f"{run}-{writer}"})

    # the first write runs alone, so a location that cannot be written gives one error and leaves no objects
    races = [[wins(names[0], 0)]] + [[] for _ in names[1:]]
    try:
        with ThreadPoolExecutor(_WRITERS) as pool:
            for name, race in zip(names, races, strict=True):
                race += pool.map(partial(wins, name), range(len(race), _WRITERS))
    finally:
        objects.remove(names)
    return ConditionalPut(_RACES, sum(sum(race) == 1 for race in races))
