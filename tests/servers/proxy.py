"""A proxy for an object store that makes requests fail as stores and networks do, at a given rate and seed.

`python -m tests.servers.proxy URL --latency 0.05` prints its address and runs until it is killed.
"""

import argparse
import http.client
import random
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

Kind = Literal["slow_down", "reset_before", "reset_after", "stall", "truncate", "latency", "answer"]
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}


@dataclass(frozen=True)
class Fault:
    """A fault and the requests that get it.

    Attributes:
        kind: `slow_down`: a response 503; `reset_before`, `reset_after`: the connection is reset before or after
            the store receives the request; `stall`: no response for `seconds`, then a reset; `truncate`: half a
            body; `latency`: a delay of `seconds`; `answer`: a response with `status` and `code`, or a `page`.
        rate: share of the matching requests that get the fault.
        match: regular expression that is searched in "METHOD /path?query".
        extra: further XML elements of the response `answer`.
    """

    kind: Kind
    rate: float = 1.0
    match: str = ""
    seconds: float = 0.0
    status: int = 500
    code: str = ""
    extra: str = ""
    page: str = ""

    def body(self) -> bytes:
        """The body of the response `answer`: the page, or an error in the XML of S3."""
        head = '<?xml version="1.0" encoding="UTF-8"?>'
        error = f"<Code>{self.code}</Code><Message>{self.code} of the proxy</Message>{self.extra}"
        return (self.page or f"{head}\n<Error>{error}<RequestId>1</RequestId></Error>").encode()


class FaultProxy(AbstractContextManager["FaultProxy"]):
    """Forwards requests to a store, and injects the current fault.

    Attributes:
        fault: the current fault or None; it may be changed at any time.
        watch: called with every request before a fault is injected; it may change the fault.
        requests: number of requests.
        injected: number of requests that got a fault.
    """

    def __init__(self, upstream: str, seed: int = 0, fault: Fault | None = None) -> None:
        self.fault = fault
        self.watch: Callable[[str], None] = lambda request: None
        self.requests = self.injected = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        url = urlsplit(upstream)
        assert url.hostname is not None and url.port is not None
        handler = type("Handler", (_Handler,), {"proxy": self, "upstream": (url.hostname, url.port)})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.fault = None
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The endpoint of the proxy."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def draw(self, request: str) -> Fault | None:
        """The fault that a request gets, or None."""
        with self._lock:
            self.requests += 1
            self.watch(request)
            fault = self.fault
            if fault is None or not re.search(fault.match, request) or self._random.random() >= fault.rate:
                return None
            self.injected += 1
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultProxy
    upstream: tuple[str, int]
    _connection: http.client.HTTPConnection | None = None

    def _serve(self) -> None:
        body = self._body()
        fault = self.proxy.draw(f"{self.command} {self.path}")
        kind = None if fault is None else fault.kind
        if fault is None or kind in ("latency", "reset_after", "truncate"):
            if fault is not None and kind == "latency":
                time.sleep(fault.seconds)
            self._respond(kind, *self._forward(body))
        elif kind == "slow_down":
            self._respond_with(Fault("answer", status=503, code="SlowDown"))
        elif kind == "answer":
            self._respond_with(fault)
        else:
            if kind == "stall":
                time.sleep(fault.seconds)
            self._reset()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815 - http.server looks for these names

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        headers["Content-Length"] = str(len(body))
        for attempt in range(2):
            if self._connection is None:
                self._connection = http.client.HTTPConnection(*self.upstream)
            try:
                self._connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in headers.items():
                    self._connection.putheader(name, value)
                self._connection.endheaders(body)
                response = self._connection.getresponse()
                return response.status, response.getheaders(), response.read()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                self._connection.close()
                self._connection = None  # an idle connection that the store has closed
                if attempt:
                    raise
        raise AssertionError

    def _respond(self, kind: Kind | None, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        if kind == "reset_after":
            self._reset()
            return
        cut = len(body) // 2 if kind == "truncate" else len(body)
        if kind == "truncate" and not body:
            self._reset()
            return
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", str(len(body)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut < len(body):
            self._reset()

    def _respond_with(self, fault: Fault) -> None:
        body = b"" if self.command == "HEAD" else fault.body()
        self.send_response_only(fault.status)
        self.send_header("Content-Type", "application/xml")
        if region := re.search("<Region>(.+)</Region>", fault.extra):
            self.send_header("x-amz-bucket-region", region[1])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Do not log."""


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("upstream")
    parser.add_argument("--latency", type=float, default=0.0)
    arguments = parser.parse_args()
    fault = Fault("latency", seconds=arguments.latency) if arguments.latency else None
    with FaultProxy(arguments.upstream, fault=fault) as proxy:
        sys.stdout.write(f"{proxy.url}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
