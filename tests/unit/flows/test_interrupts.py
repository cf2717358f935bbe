"""Invariant: the first signal unwinds a command; a second one ends its processes at once, in silence."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.patience import patience
from tests.processes import wait_for_end

UNWINDS_SLOWLY = """
import subprocess, sys, time
from flows.interrupts import Interrupts, Terminated
interrupts = Interrupts()
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
try:
    print(child.pid, flush=True)
    time.sleep(600)
except (KeyboardInterrupt, Terminated) as error:
    print(type(error).__name__, flush=True)
    time.sleep(600)
"""
HAS_ENDED = """
import atexit, time
from flows.interrupts import Interrupts
interrupts = Interrupts()
interrupts.command_has_ended()
atexit.register(lambda: (print("0", flush=True), time.sleep(600)))
"""


@pytest.fixture
def start() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()


def run(code: str, processes: list[subprocess.Popen[str]]) -> tuple[subprocess.Popen[str], int]:
    """Run a program up to its first line, which has a process id."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    processes.append(process)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.parametrize(
    ("first", "second", "code", "unwound"),
    [
        (signal.SIGINT, signal.SIGINT, 130, "KeyboardInterrupt"),
        (signal.SIGTERM, signal.SIGTERM, 143, "Terminated"),
        (signal.SIGTERM, signal.SIGINT, 130, "Terminated"),
    ],
)
def test_a_second_signal_ends_the_command_and_its_processes(
    first: int, second: int, code: int, unwound: str, start: list[subprocess.Popen[str]]
) -> None:
    process, child = run(UNWINDS_SLOWLY, start)
    process.send_signal(first)
    assert process.stdout is not None and process.stdout.readline() == f"{unwound}\n"
    process.send_signal(second)
    _, err = process.communicate(timeout=patience(20))
    assert (process.returncode, err) == (code, "")
    wait_for_end([child])


def test_ctrl_c_at_the_exit_of_the_process_prints_no_traceback(start: list[subprocess.Popen[str]]) -> None:
    process, _ = run(HAS_ENDED, start)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=patience(20))
    assert (process.returncode, err) == (130, "")
