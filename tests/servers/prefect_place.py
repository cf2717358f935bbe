"""A Prefect server and a worker as an operator runs them: two processes on 127.0.0.1, with a home of their own."""

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

_START_SECONDS = 120.0


class PrefectPlace(AbstractContextManager["PrefectPlace"]):
    """The server runs from `with` to its end, and so do workers that are started.

    Args:
        home: an empty folder, for PREFECT_HOME with its database, and for logs.
        variables: further environment of server, worker and commands.
    """

    def __init__(self, home: Path, variables: Mapping[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._home = home
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        self._environment = {
            **kept,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
            # nobody wants to wait for the next look
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            **variables,
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def api(self) -> str:
        """PREFECT_API_URL."""
        return f"http://127.0.0.1:{self._port}/api"

    def __enter__(self) -> "PrefectPlace":
        self._start("server", "server", "start", "--host", "127.0.0.1", "--port", str(self._port))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Everything is stopped: the worker first, which ends its runs, and whatever does not end by itself."""
        for process in reversed(self._processes.values()):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            process.send_signal(signal.SIGINT)
            _, alive = psutil.wait_procs(family, timeout=20)
            for left in alive:
                left.kill()
            process.wait()

    def await_server(self) -> None:
        """Until the server answers."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            assert self._processes["server"].poll() is None, self.log("server")
            try:
                with urllib.request.urlopen(f"{self.api}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(f"the server does not answer: {self.log('server')}")

    def start_worker(self, pool: str) -> None:
        """Start a worker, which makes the pool if it is not there."""
        self._start("worker", "worker", "start", "--pool", pool, "--type", "process")

    def command(self, *words: str) -> str:
        """Run `prefect ...` in the repository; its output."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *words],
            cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {(done.stdout + done.stderr)[-3000:]}"
        return done.stdout

    def log(self, name: str) -> str:
        """The end of what the server or the worker has said."""
        return (self._home / f"{name}.log").read_text(errors="replace")[-6000:]

    def running(self) -> list[int]:
        """Process ids of the server, the worker and everything below them."""
        found = []
        for process in self._processes.values():
            if psutil.pid_exists(process.pid):
                found += [
                    process.pid,
                    *(child.pid for child in psutil.Process(process.pid).children(recursive=True)),
                ]
        return found

    def _start(self, name: str, *words: str) -> None:
        with (self._home / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "prefect", *words],
                cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
