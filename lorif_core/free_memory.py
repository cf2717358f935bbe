"""Memory that is free on this machine, or in this container if that is less, and memory that this process has."""

import ctypes
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK = "5"  # what clears the peak


def free_memory() -> float:
    """Bytes that processes can still take before the system swaps or kills."""
    return min(psutil.virtual_memory().available, _free_in_container())


def _free_in_container() -> float:
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # no cgroup v2, or its root
        return float("inf")
    return float("inf") if limit == "max" else max(0.0, float(limit) - float(used))


def resident_memory() -> int | None:
    """Resident bytes of this process; None if the system does not say."""
    return _status("VmRSS")


def peak_memory() -> int | None:
    """Largest resident bytes of this process since `reset_peak`; None if the system does not say."""
    return _status("VmHWM")


def reset_peak() -> bool:
    """Let the peak begin at the current size; False if this is not Linux, or not allowed."""
    try:
        _RESET.write_text(_PEAK)
    except OSError:
        return False
    return True


def return_freed_memory() -> None:
    """Give freed memory back to the system; glibc would keep it for other allocations of the same thread."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # other C libraries have no such function
        trim(0)


def _status(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 2**10 for line in lines if line.startswith(f"{name}:")), None)
