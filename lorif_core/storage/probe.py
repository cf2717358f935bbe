"""Whether a store keeps its promises: an index can be written there, and If-None-Match is honoured atomically.

Where it is not, two committers could each believe that they wrote the next version of a table, and rows would
vanish without an error (STACK.md, section 3).
"""

import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from lorif_core.storage.objects import Objects

_RACES = 10  # on Swift four races of ten are fair by luck; all ten are once in ten thousand probes
_RUNNERS = 8


@dataclass(frozen=True, slots=True)
class ConditionalPut:
    """How many races were run, and how many of them had exactly one winner."""

    races: int
    fair: int

    @property
    def atomic(self) -> bool:
        """Whether every race had exactly one winner."""
        return self.fair == self.races

    def sentence(self) -> str:
        """What was found and what follows from it, for logs and `lorif check`."""
        if self.atomic:
            return f"conditional put is atomic ({self.races} of {self.races} races had one winner)"
        return (
            f"conditional put is not atomic ({self.fair} of {self.races} races had one winner): single-committer "
            f"mode, the lease alone keeps other builds out"
        )


def probe_conditional_put(objects: Objects) -> ConditionalPut:
    """Let several writers create the same object, a few times; the objects are removed again.

    Raises:
        UserError: the location cannot be written.
        StoreUnavailableError: the store keeps failing.
    """
    run = uuid.uuid4().hex
    names = [f"probe/{run}-{race}.json" for race in range(_RACES)]

    def win(name: str, runner: int) -> bool:
        return objects.create(name, {"runner": f"{run}-{runner}"})

    # the first write comes alone: where nothing may be written, that is said once and leaves nothing behind
    races = [[win(names[0], 0)]] + [[] for _ in names[1:]]
    try:
        with ThreadPoolExecutor(_RUNNERS) as pool:
            for name, race in zip(names, races, strict=True):
                race += pool.map(partial(win, name), range(len(race), _RUNNERS))
    finally:
        objects.remove(names)
    return ConditionalPut(_RACES, sum(sum(race) == 1 for race in races))
