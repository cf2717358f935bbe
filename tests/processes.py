"""Processes of a program that a test has started."""

import time
from collections.abc import Iterable

import psutil

from tests.patience import patience


def wait_for_end(pids: Iterable[int]) -> None:
    """Wait until none of some processes runs; fails if one does not end."""
    deadline = time.monotonic() + patience(20)
    while left := [pid for pid in pids if _is_running(pid)]:
        assert time.monotonic() < deadline, [psutil.Process(pid).cmdline() for pid in left]
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # nobody may be there to reap it
    except psutil.NoSuchProcess:
        return False
