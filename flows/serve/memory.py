"""How much memory the codes of an index may use by default."""

from pathlib import Path

import psutil

_SHARE = 0.25
_CGROUP = Path("/sys/fs/cgroup")


def default_memory_gb() -> float:
    """A quarter of the memory that is free on this machine, or in this container if that is less; GiB."""
    return _SHARE * min(psutil.virtual_memory().available, _free_in_container()) / 2**30


def _free_in_container() -> float:
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # no cgroup v2, or its root
        return float("inf")
    return float("inf") if limit == "max" else max(0.0, float(limit) - float(used))
