"""How much memory is free on this machine, or in this container if that is less."""

from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> float:
    """Bytes that processes can still take before the system swaps or kills."""
    return min(psutil.virtual_memory().available, _free_in_container())


def _free_in_container() -> float:
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # no cgroup v2, or its root
        return float("inf")
    return float("inf") if limit == "max" else max(0.0, float(limit) - float(used))
