"""Seconds of steps, each ending where the next begins."""

import time


class Laps:
    """The first step, `start python`, began at a wall-clock time in another process."""

    def __init__(self, launched: float) -> None:
        self.seconds = {"start python": time.time() - launched}
        self._clock = time.perf_counter()

    def end(self, name: str) -> None:
        """The step that ends now."""
        self._clock, previous = time.perf_counter(), self._clock
        self.seconds[name] = self._clock - previous
