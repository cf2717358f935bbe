"""How long a test waits: seconds on a quiet machine, times how much slower this machine was found to be.

A time limit only ends a test that hangs, so a busy machine must not reach it. Each process measures the slowness
once, by starting Python and hashing: both need the processor, and so does whatever a test waits for.
"""

import hashlib
import os
import subprocess
import sys
import time
from functools import cache

_QUIET_SECONDS = 0.1  # of the work below, on two quiet cores
_STARTS, _HASHED_MIB = 3, 64
_SPARE = 2.0  # the load may rise after the measurement


@cache
def slowness() -> float:
    """How many times slower this machine is than a quiet one, at least 1."""
    started = time.perf_counter()
    for _ in range(_STARTS):
        subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
    for _ in range(_HASHED_MIB):
        hashlib.sha256(bytes(2**20)).digest()
    measured = (time.perf_counter() - started) / _QUIET_SECONDS
    waiting = os.getloadavg()[0] / (os.cpu_count() or 1)
    return max(1.0, measured, waiting)


def patience(seconds: float) -> float:
    """A time limit of so many seconds on a quiet machine, for this one."""
    return _SPARE * seconds * slowness()
