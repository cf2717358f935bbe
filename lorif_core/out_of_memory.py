"""Recognises that memory ran out, whoever says so, and names the settings that bound it.

Python and Arrow raise MemoryError, torch a RuntimeError on the CPU and an error of its own on a GPU, the system an
OSError, and Lance and Ray quote the text of others.
"""

import errno
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorif_core.errors import MemoryExhaustedError

_TEXT = re.compile(
    r"out of memory|(can.t|cannot|unable to|failed to) allocate|bad_alloc|ALLOC_FAILED|not enough memory"
    r"|resources exhausted|memory allocation|running low on memory|MemoryError",
    re.I,
)
_ASKED = re.compile(r"tried to allocate ([\d.]+) (bytes|[KMGT]iB)", re.I)
_FREE = re.compile(r"of which ([\d.]+) (bytes|[KMGT]iB) is free", re.I)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


@dataclass(frozen=True, slots=True)
class MemorySetting:
    """A setting that memory grows with: its key, its value, and the lowest value that is allowed."""

    key: str
    value: float
    lowest: float = 0.0

    def advice(self, factor: int) -> str | None:
        """How to divide the need for memory by a factor; None if the setting is as low as it can be."""
        fitting = self.value / factor
        if isinstance(self.value, int):
            fitting = max(math.floor(fitting), self.lowest)
        return f"{self.key} from {self.value:g} to {fitting:g}" if self.lowest <= fitting < self.value else None


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, by the error or by what caused it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError | MemoryExhaustedError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno == errno.ENOMEM
        if isinstance(error, OSError | RuntimeError) and _TEXT.search(str(error)):
            return True
        error = getattr(error, "cause", None) or error.__cause__
    return False


def memory_exhausted(who: str, cause: str, settings: Sequence[MemorySetting]) -> MemoryExhaustedError:
    """The error to raise where memory ran out.

    Args:
        who: the process, such as "a worker".
        cause: text of the error in one line; sizes in it tell what would fit.
        settings: the settings that bound the memory of the process.
    """
    factor = _factor(cause)
    lower = [advice for setting in settings if (advice := setting.advice(factor))]
    remedy = f"lower {', or '.join(lower)}, or " if lower else ""
    return MemoryExhaustedError(
        f"{who} ran out of memory ({cause}); {remedy}give it more memory, and run the command again"
    )


def _factor(cause: str) -> int:
    """By how much to lower a setting: by half, or by more if much more was asked for than was free."""
    asked, free = _ASKED.search(cause), _FREE.search(cause)
    if asked is None or free is None:
        return 2
    missing = _bytes(asked) / max(_bytes(free), 1.0)
    return 2 ** max(1, math.ceil(math.log2(missing))) if missing > 1 else 2


def _bytes(match: re.Match[str]) -> float:
    return float(match[1]) * _UNITS[match[2].lower()]
