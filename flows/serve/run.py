"""Running the server: who may reach it, its socket, and an end that loses no answer."""

import errno
import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import uvicorn

from flows.serve.app import create_app
from flows.serve.limits import Access, is_loopback
from flows.serve.live_index import Newest
from flows.serve.memory import default_memory_gb
from flows.serve.request_queue import Desk
from lorif_core.errors import UserError

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "LORIF_SERVE_TOKEN"
_TOKEN_CHARACTERS = 16
_BACKLOG = 1024
_CONNECTIONS = 512
_GRACE_SECONDS = 25
"""For what waits when the server is told to stop; a kubelet waits for 30."""
_LAST_SECONDS = 5


class Server(uvicorn.Server):
    """Uvicorn's, whose desk closes before its connections do."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self._desk = desk

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what waits, refuse what comes."""
        self._desk.close(_GRACE_SECONDS - _LAST_SECONDS)
        await super().shutdown(sockets)


@dataclass(frozen=True, slots=True)
class Serving:
    """A server whose socket is bound and whose index is open."""

    server: Server
    listener: socket.socket
    newest: Newest
    desk: Desk

    @property
    def address(self) -> str:
        """Where the page is."""
        host, port = self.listener.getsockname()[:2]
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def listen(self) -> None:
        """Whoever connects from now on is served as soon as `run` begins; a signal ends that in good order."""
        for number in (signal.SIGTERM, signal.SIGINT):
            # uvicorn raises the signal that has ended it once more, for whoever had a handler before: the server
            signal.signal(number, self.server.handle_exit)
        self.listener.listen(_BACKLOG)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then until what waits is answered."""
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
    """Check who may reach the server, take the port, open the index and load the model.

    Raises:
        UserError: beyond loopback there is no token, the port is taken, or as `Newest`.
    """
    access = Access(_token(host), is_loopback(host))
    memory = default_memory_gb() if memory_gb is None else memory_gb
    newest = Newest(uri, overrides, model, memory, two_stage=two_stage)
    listener = _bound(host, port)
    desk = Desk(newest)
    config = uvicorn.Config(
        create_app(newest, desk, access), log_config=None, log_level="warning", access_log=False,
        server_header=False, limit_concurrency=_CONNECTIONS, timeout_graceful_shutdown=_GRACE_SECONDS, ws="none",
        proxy_headers=False,
    )  # fmt: skip
    return Serving(Server(config, desk), listener, newest, desk)


def _token(host: str) -> str | None:
    """What requests must carry. Raises UserError if there must be one and there is none, or a short one."""
    token = os.environ.get(TOKEN_VARIABLE)
    if token is None and not is_loopback(host):
        raise UserError(
            f"--host {host} can be reached from other machines; set {TOKEN_VARIABLE} to a secret of at least "
            f"{_TOKEN_CHARACTERS} characters, which requests must carry"
        )
    if token is not None and (len(token) < _TOKEN_CHARACTERS or not token.isascii() or not token.isprintable()):
        raise UserError(
            f"{TOKEN_VARIABLE} must be at least {_TOKEN_CHARACTERS} printable ASCII characters; make one with "
            f"openssl rand -hex 32"
        )
    return token


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} of {host} is taken; give another with --port, or stop what has it"
            ) from None
        raise UserError(f"the server cannot listen on port {port} of {host}: {error.strerror}") from None
    return listener
