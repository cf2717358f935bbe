"""What stands before the app: who may ask, how large a body may be, and how many may wait. Pure ASGI.

A question takes its place before its body is read, so that what is held in memory is bounded. A client that leaves
frees its place at once.
"""

import asyncio
import hmac
import ipaddress
import logging
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.serve.errors import RefusedError, failed
from flows.serve.request_queue import Desk
from lorif_core.storage.faults import one_line

log = logging.getLogger(__name__)

BODY_BYTES = 2**20
BODY_SECONDS = 30.0
GENERATION = "X-Lorif-Generation"
_OPEN_PATHS = frozenset(("/", "/health", "/docs", "/openapi.json"))
_LOGGED_CHARACTERS = 60
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask.

    Attributes:
        token: what requests must carry as a bearer; None for nobody's.
        is_loopback: only this machine reaches the server, so that a Host of another name is a rebound DNS name.
    """

    token: str | None
    is_loopback: bool


class Limits:
    """Refuses what may not reach the app, and writes a line a request, without its body or its query string."""

    def __init__(self, app: ASGIApp, desk: Desk, access: Access) -> None:
        self._app, self._desk, self._access = app, desk, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, sent = time.perf_counter(), [0]

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent[0] = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault(GENERATION, str(self._desk.generation))
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            with suppress(ClientDisconnect):
                await self._pass_on(scope, receive, send_safely)
        except RefusedError as refusal:
            await refusal.response()(scope, receive, send_safely)
        except Exception as error:  # noqa: BLE001 - the log has it; nobody is shown a traceback
            log.error("a request failed: %s: %s", type(error).__name__, one_line(error))
            if not sent[0]:
                await failed().response()(scope, receive, send_safely)
        path, milliseconds = ascii(scope["path"][:_LOGGED_CHARACTERS]), 1000 * (time.perf_counter() - started)
        log.info("%s %s %s %.0f ms", scope["method"], path, sent[0] or "left", milliseconds)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        self._check_token(headers, scope["path"])
        with self._place(scope):
            body = await _read(headers, receive)
            if scope["method"] == "POST" and _media_type(headers) != "application/json":
                raise RefusedError(415, "not_json", "the body must be sent as Content-Type: application/json")
            await _run_while_there(self._app, scope, body, receive, send)

    def _place(self, scope: Scope) -> AbstractContextManager[None]:
        asks = scope["method"] == "POST" and scope["path"] == "/answers"
        return self._desk.place() if asks else nullcontext()

    def _check_host(self, headers: Headers) -> None:
        if self._access.is_loopback and not is_loopback(_host_name(headers.get("host", ""))):
            raise RefusedError(421, "wrong_host", "the Host header must be localhost or a loopback address")

    def _check_token(self, headers: Headers, path: str) -> None:
        if self._access.token is None or path in _OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        matches = hmac.compare_digest(given.strip().encode(), self._access.token.encode())
        if scheme.lower() != "bearer" or not matches:
            raise RefusedError(
                401, "wrong_token", "the request must carry Authorization: Bearer and the server's token",
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether a name or address is always this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(header: str) -> str:
    """The name in a Host header: without the port, and an IPv6 address without its brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


async def _read(headers: Headers, receive: Receive) -> bytes:
    """The whole body. Raises RefusedError if it is too large or takes too long."""
    announced = headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > BODY_BYTES:
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read_all(receive)
    except TimeoutError:
        raise RefusedError(408, "too_slow", f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from None


async def _read_all(receive: Receive) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_BYTES:
            raise _too_large()
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large() -> RefusedError:
    return RefusedError(413, "too_large", f"the body is larger than {BODY_BYTES:,} bytes", {"Connection": "close"})


async def _run_while_there(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Run the app until it has answered or the client is gone."""
    gone = asyncio.create_task(_disconnected(receive))
    unread = [body]

    async def replay() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await asyncio.shield(gone)
        return {"type": "http.disconnect"}

    running = asyncio.ensure_future(app(scope, replay, send))
    try:
        await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        for task in (running, gone):
            task.cancel()
        await asyncio.gather(running, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
