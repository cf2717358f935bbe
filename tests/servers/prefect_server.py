"""A Prefect server and a worker as an operator runs them: two processes on 127.0.0.1 with their own home."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import psutil

from tests.infra.files import ROOT
from tests.patience import patience

_START_SECONDS = 120.0


class PrefectServer(AbstractContextManager["PrefectServer"]):
    """Context manager that starts a server, and stops it and its workers at the end.

    Args:
        home: an empty folder, used as PREFECT_HOME and for logs.
        variables: further environment variables of server, worker and commands.
    """

    def __init__(self, home: Path, variables: Mapping[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._home = home
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        self._environment = {
            **inherited,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
            # shorter polling intervals than the defaults
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            **variables,
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def api(self) -> str:
        """PREFECT_API_URL."""
        return f"http://127.0.0.1:{self._port}/api"

    def __enter__(self) -> "PrefectServer":
        self._start("server", "server", "start", "--host", "127.0.0.1", "--port", str(self._port))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the workers first, which ends their runs, then the server; kill processes that do not end."""
        for process in reversed(self._processes.values()):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            process.send_signal(signal.SIGINT)
            _, alive = psutil.wait_procs(family, timeout=patience(20))
            for descendant in alive:
                descendant.kill()
            process.wait()

    def wait_for_server(self) -> None:
        """Wait until the server answers."""
        deadline = time.monotonic() + patience(_START_SECONDS)
        while time.monotonic() < deadline:
            assert self._processes["server"].poll() is None, self.log("server")
            try:
                with urllib.request.urlopen(f"{self.api}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(f"the server does not answer: {self.log('server')}")

    def start_worker(self, pool: str) -> None:
        """Start a worker, which creates the pool if necessary."""
        self._start("worker", "worker", "start", "--pool", pool, "--type", "process")

    def command(self, *words: str) -> str:
        """Run `prefect ...` in the repository and return its output."""
        completed = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *words],
            cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert completed.returncode == 0, f"{words}: {(completed.stdout + completed.stderr)[-3000:]}"
        return completed.stdout

    def log(self, name: str) -> str:
        """The last 6,000 characters of the log of the server or the worker."""
        return (self._home / f"{name}.log").read_text(errors="replace")[-6000:]

    def running(self) -> list[int]:
        """Process ids of the server, the worker and all their descendants."""
        ids = []
        for process in self._processes.values():
            if psutil.pid_exists(process.pid):
                children = psutil.Process(process.pid).children(recursive=True)
                ids += [process.pid, *(child.pid for child in children)]
        return ids

    def _start(self, name: str, *words: str) -> None:
        with (self._home / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "prefect", *words],
                cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
