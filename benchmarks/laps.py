"""A stopwatch for consecutive steps."""

import time


class Laps:
    """Seconds of consecutive steps; each step ends where the next begins.

    Args:
        launched: wall-clock time at which another process started this one; the first step is `start python`.
    """

    def __init__(self, launched: float) -> None:
        self.seconds = {"start python": time.time() - launched}
        self._clock = time.perf_counter()

    def end(self, name: str) -> None:
        """Record the step that ends now under a name."""
        self._clock, previous = time.perf_counter(), self._clock
        self.seconds[name] = self._clock - previous
