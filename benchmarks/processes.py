"""A command whose processes are watched from outside: their peak memory, singly and in sum, and SIGKILL to all."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

_LORIF = [sys.executable, "-c", "from flows.cli import main; main()"]
_SAMPLE_SECONDS = 1.0
_SAMPLE_SHARE = 0.02  # of the time; reading the shares of a large process makes its page faults wait


class WatchedCommand:
    """A running command and all processes that it starts.

    `peaks` has the largest resident set in MiB by role of the process. It is Linux's `VmHWM`, which includes peaks
    between two samples; shared memory counts for each process. `peak_of_sum` is the largest sampled sum of
    proportional set sizes (PSS) in MiB, in which shared memory counts once.

    Args:
        command: the command line to run.
        log: file for its output.
    """

    def __init__(self, command: list[str], log: Path) -> None:
        self.peak_of_sum = 0.0
        self._peak_by_pid: dict[int, float] = {}
        self._roles: dict[int, str] = {}
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self._root = psutil.Process(self._process.pid)
        self._watching = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def peaks(self) -> dict[str, float]:
        """MiB by role."""
        by_role: dict[str, float] = {}
        for pid, peak in self._peak_by_pid.items():
            by_role[self._roles[pid]] = max(peak, by_role.get(self._roles[pid], 0.0))
        return by_role

    def wait(self) -> int:
        """Wait until the command ends; return its exit code."""
        code = self._process.wait()
        self._stop_watching()
        return code

    def kill_when(self, reached: Callable[[], bool]) -> None:
        """Send SIGKILL to all processes as soon as a condition is true.

        Raises:
            RuntimeError: the command ends before.
        """
        while not reached():
            if self._process.poll() is not None:
                raise RuntimeError("the command ended before it could be killed")
            time.sleep(0.05)
        self._stop_watching()
        tree = [self._root, *self._root.children(recursive=True)]
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(tree, timeout=30)

    def _stop_watching(self) -> None:
        self._watching = False
        self._thread.join()

    def _watch(self) -> None:
        while self._watching:
            total, started = 0.0, time.perf_counter()
            with suppress(psutil.Error):  # the command has ended
                for process in [self._root, *self._root.children(recursive=True)]:
                    with suppress(psutil.Error, OSError):  # this process has ended
                        total += self._sample(process)
            self.peak_of_sum = max(self.peak_of_sum, total)
            time.sleep(max(_SAMPLE_SECONDS, (time.perf_counter() - started) / _SAMPLE_SHARE))

    def _sample(self, process: psutil.Process) -> float:
        """Record the peak of a process; return its proportional set size in MiB."""
        role = self._role(process)
        if self._roles.get(process.pid, "other") == "other" or role == "worker" or role.endswith("Actor"):
            self._roles[process.pid] = role
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        shares = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8")
        peak = _mib(status, "VmHWM")
        self._peak_by_pid[process.pid] = max(peak, self._peak_by_pid.get(process.pid, 0.0))
        return _mib(shares, "Pss")

    def _role(self, process: psutil.Process) -> str:
        if process.pid == self._root.pid:
            return "driver"
        command_line = " ".join(process.cmdline())
        names = {"ray::ScoreActor": "ScoreActor", "ray::QueryActor": "QueryActor", "ray::RoleHost": "worker",
                 "raylet": "raylet", "gcs_server": "gcs_server", "prefect.server": "Prefect server"}  # fmt: skip
        return next((role for part, role in names.items() if part in command_line), "other")


def watched_lorif(folder: Path, *words: object) -> tuple[dict[str, Any], float, WatchedCommand]:
    """Run a command of lorif; returns the JSON that it prints, its wall seconds, and its watched processes.

    Raises:
        RuntimeError: the command failed; the message ends like its output.
    """
    log = folder / "log"
    log.unlink(missing_ok=True)
    started = time.perf_counter()
    watched = WatchedCommand([*_LORIF, *map(str, words), "--json"], log)
    if watched.wait():
        raise RuntimeError(f"lorif {words[0]} failed: {log.read_text(encoding='utf-8')[-2000:]}")
    lines = log.read_text(encoding="utf-8").splitlines()  # of both streams
    printed = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    return printed, time.perf_counter() - started, watched


def _mib(text: str, field: str) -> float:
    """MiB of a field of a /proc file, which Linux reports in KiB."""
    return next(int(line.split()[1]) / 2**10 for line in text.splitlines() if line.startswith(f"{field}:"))
