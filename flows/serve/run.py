"""Start and stop the server: access, its socket, and a shutdown that loses no answer."""

import errno
import logging
import os
import resource
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import uvicorn

from flows.serve.app import create_app
from flows.serve.connection import Connection
from flows.serve.limits import Access, is_loopback
from flows.serve.live_index import LiveIndex
from flows.serve.memory import default_memory_gb
from flows.serve.request_queue import RequestQueue
from lorif_core.errors import UserError

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "LORIF_SERVE_TOKEN"
_TOKEN_CHARACTERS = 16
_BACKLOG = 4096
_CONNECTIONS = 4096
_OTHER_FILES = 512
"""Files that are not connections: those of the index, of libraries, and connections to an object store."""
_GRACE_SECONDS = 25
"""Time for waiting questions after a request to stop; a kubelet waits for 30 seconds."""
_LAST_SECONDS = 5


class Server(uvicorn.Server):
    """A uvicorn server that closes its queue before its connections."""

    def __init__(self, config: uvicorn.Config, queue: RequestQueue) -> None:
        super().__init__(config)
        self._queue = queue

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer the questions that wait, and refuse new ones."""
        self._queue.close(_GRACE_SECONDS - _LAST_SECONDS)
        await super().shutdown(sockets)


@dataclass(frozen=True, slots=True)
class Serving:
    """A server whose socket is bound and whose index is open."""

    server: Server
    listener: socket.socket
    live_index: LiveIndex
    queue: RequestQueue

    @property
    def address(self) -> str:
        """URL of the explorer page."""
        host, port = self.listener.getsockname()[:2]
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def listen(self) -> None:
        """Accept connections, which `run` will serve; from now on a signal leads to an orderly shutdown."""
        for number in (signal.SIGTERM, signal.SIGINT):
            # at its end uvicorn raises the signal again for the handler that was installed before: its own, here
            signal.signal(number, self.server.handle_exit)
        self.listener.listen(_BACKLOG)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then until the waiting questions are answered."""
        self.server.run(sockets=[self.listener])


def prepare(
    uri: str,
    overrides: Sequence[str],
    host: str,
    port: int,
    model: str | None,
    memory_gb: float | None,
    two_stage: bool,
) -> Serving:
    """Check access, bind the port, open the index and load the model.

    Raises:
        UserError: the host is not loopback and no token is set, the port is in use, or see `LiveIndex`.
    """
    access = Access(_token(host), is_loopback(host))
    memory = default_memory_gb() if memory_gb is None else memory_gb
    live_index = LiveIndex(uri, overrides, model, memory, two_stage=two_stage)
    listener = _bind(host, port)
    queue = RequestQueue(live_index)
    config = uvicorn.Config(
        create_app(live_index, queue, access), http=Connection, log_config=None, log_level="warning",
        access_log=False, server_header=False, limit_concurrency=_connection_limit(), backlog=_BACKLOG,
        timeout_graceful_shutdown=_GRACE_SECONDS, ws="none", proxy_headers=False,
    )  # fmt: skip
    return Serving(Server(config, queue), listener, live_index, queue)


def _connection_limit() -> int:
    """How many connections may be open; raises the soft limit of open files as far as it is needed."""
    needed = _CONNECTIONS + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return max(allowed - _OTHER_FILES, allowed // 2)


def _token(host: str) -> str | None:
    """The token that requests must carry. Raises UserError if it is required and missing, or not acceptable."""
    token = os.environ.get(TOKEN_VARIABLE)
    if token is None and not is_loopback(host):
        raise UserError(
            f"--host {host} can be reached from other machines; set {TOKEN_VARIABLE} to a secret of at least "
            f"{_TOKEN_CHARACTERS} characters, which requests must carry; see docs/how-to/serve.md"
        )
    if token is not None and (len(token) < _TOKEN_CHARACTERS or not token.isascii() or not token.isprintable()):
        raise UserError(
            f"{TOKEN_VARIABLE} must be at least {_TOKEN_CHARACTERS} printable ASCII characters; make one with "
            f"openssl rand -hex 32"
        )
    if token is not None and token != token.strip():
        raise UserError(f"{TOKEN_VARIABLE} begins or ends with a space, which no request can carry; remove it")
    return token


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} of {host} is in use; choose another with --port, or stop the program that uses it"
            ) from None
        raise UserError(f"the server cannot listen on port {port} of {host}: {error.strerror}") from None
    return listener
