"""How much memory codes may take by default."""

from pathlib import Path

import psutil

_SHARE = 0.25
_CGROUP = Path("/sys/fs/cgroup")


def default_memory_gb() -> float:
    """A quarter of what is free now on this machine, or in this container where that is less."""
    return _SHARE * min(psutil.virtual_memory().available, _free_in_container()) / 2**30


def _free_in_container() -> float:
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # no cgroup v2, or the root of it
        return float("inf")
    return float("inf") if limit == "max" else max(0.0, float(limit) - float(used))
