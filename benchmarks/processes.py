"""A command watched from outside: peak memory of each of its processes and of all together; and SIGKILL to all."""

import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

_EVERY_SECONDS = 0.25


class Watched:
    """A command, and all processes that it starts, while they run.

    `peaks` has the largest resident set in MiB by what a process does: `VmHWM` of Linux, so that nothing between
    two looks is missed; shared memory counts for each. `together` is the largest sum seen of proportional shares
    (PSS), in which shared memory counts once.

    Args:
        command: what to run.
        log: file for its output.
    """

    def __init__(self, command: list[str], log: Path) -> None:
        self.together = 0.0
        self._high: dict[int, float] = {}
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
        found: dict[str, float] = {}
        for pid, high in self._high.items():
            found[self._roles[pid]] = max(high, found.get(self._roles[pid], 0.0))
        return found

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        code = self._process.wait()
        self._stop_watching()
        return code

    def kill_when(self, reached: Callable[[], bool]) -> None:
        """SIGKILL to all its processes once something is so. Raises RuntimeError if it ends before."""
        while not reached():
            if self._process.poll() is not None:
                raise RuntimeError("the command ended before it was to be killed")
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
            together = 0.0
            with suppress(psutil.Error):  # it has ended
                for process in [self._root, *self._root.children(recursive=True)]:
                    with suppress(psutil.Error, OSError):  # this one has
                        together += self._look(process)
            self.together = max(self.together, together)
            time.sleep(_EVERY_SECONDS)

    def _look(self, process: psutil.Process) -> float:
        role = self._role(process)
        if self._roles.get(process.pid, "other") == "other" or role.endswith("Actor"):
            self._roles[process.pid] = role
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        shares = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8")
        self._high[process.pid] = max(_mib(status, "VmHWM"), self._high.get(process.pid, 0.0))
        return _mib(shares, "Pss")

    def _role(self, process: psutil.Process) -> str:
        if process.pid == self._root.pid:
            return "driver"
        words = " ".join(process.cmdline())
        names = {"ray::ScoreActor": "ScoreActor", "ray::QueryActor": "QueryActor", "raylet": "raylet",
                 "gcs_server": "gcs_server", "prefect.server": "Prefect server"}  # fmt: skip
        return next((role for part, role in names.items() if part in words), "other")


def _mib(text: str, field: str) -> float:
    """A field of Linux's that is counted in KiB."""
    return next(int(line.split()[1]) / 2**10 for line in text.splitlines() if line.startswith(f"{field}:"))
