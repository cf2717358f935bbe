"""Runs `lorif serve` in its own process, on a free loopback port, and sends requests to it."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.patience import patience

JSON = {"Content-Type": "application/json"}
_COMMAND = "from flows.cli import main; main()"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that accepts connections; `log` is its stderr."""

    process: "subprocess.Popen[str]"
    address: str
    log: Path

    def client(self, **options: Any) -> httpx.AsyncClient:
        """A client without a limit on connections."""
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(
            base_url=self.address, timeout=patience(60), limits=limits, trust_env=False, **options
        )

    def ask(self, question: Any, **headers: str) -> httpx.Response:
        """POST /answers."""
        content = question if isinstance(question, bytes) else json.dumps(question).encode()
        return httpx.post(
            f"{self.address}answers",
            content=content,
            headers={**JSON, **headers},
            timeout=patience(60),
            trust_env=False,
        )

    def get(self, path: str, **headers: str) -> httpx.Response:
        """GET a path."""
        return httpx.get(f"{self.address}{path}", headers=headers, timeout=patience(60), trust_env=False)

    def start_request(self, question: dict[str, Any], **headers: str) -> "PartialRequest":
        """Send the headers of a question but not its body."""
        url = urlsplit(self.address)
        return PartialRequest(
            socket.create_connection((url.hostname, url.port), timeout=patience(60)), json.dumps(question), headers
        )


class PartialRequest:
    """A request whose headers are sent and whose body is not."""

    def __init__(self, connection: socket.socket, body: str, extra: dict[str, str]) -> None:
        self._connection, self._body = connection, body.encode()
        headers = {"Host": "localhost", **JSON, "Content-Length": len(self._body), "Connection": "close", **extra}
        lines = ["POST /answers HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())

    def send_body(self) -> None:
        """Send the body."""
        self._connection.sendall(self._body)

    def status(self) -> int:
        """Wait for the response; returns its status."""
        with self._connection, self._connection.makefile("rb") as reader:
            return int(reader.readline().split()[1])

    def disconnect(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def running_server(index: str, log: Path, *options: str) -> Iterator[RunningServer]:
    """Start a server and wait until it prints its address; kill it at the end of the block."""
    command = [sys.executable, "-c", _COMMAND, "serve", index, "--port", "0", "--json", *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, log.read_text()
            yield RunningServer(process, json.loads(line)["address"], log)
        finally:
            process.kill()
