"""ASGI middleware in front of the app: who may ask, how large a body may be, and how many questions may wait.

A question holds a place while its body is read and until its answer is sent, so the memory for both is bounded. A
client that disconnects frees its place at once. The body of any other request is dropped unread.
"""

import asyncio
import hmac
import ipaddress
import logging
import time
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.serve.errors import ApiError, failure_text, internal_error
from flows.serve.places import Places
from flows.serve.request_queue import RequestQueue

log = logging.getLogger(__name__)

BODY_BYTES = 2**20
BODY_SECONDS = 30.0
_TOGETHER_SECONDS, _TOGETHER_BYTES = 0.1, 2**16
GENERATION_HEADER = "X-Lorif-Generation"
_OPEN_PATHS = frozenset(("/", "/health", "/docs", "/openapi.json"))
_QUEUED_PATHS = frozenset(("/answers", "/pairs", "/generations"))
_LOGGED_CHARACTERS = 60
_CLOSE = {"Connection": "close"}  # the rest of the body is on its way
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
        token: bearer token that requests must carry; None if they need none.
        is_loopback: only this machine reaches the server, so a Host header with another name means DNS rebinding.
    """

    token: str | None
    is_loopback: bool


class LimitsMiddleware:
    """Refuses requests that may not reach the app, and logs one line per request, without body or query string."""

    def __init__(self, app: ASGIApp, queue: RequestQueue, access: Access) -> None:
        self._app, self._queue, self._access = app, queue, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault(GENERATION_HEADER, str(self._queue.generation))
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            with suppress(ClientDisconnect):
                await self._check_and_run(scope, receive, send_with_headers)
        except ApiError as error:
            if "expect" in Headers(scope=scope):  # the client may send its body, or another request
                error.headers["Connection"] = "close"
            await error.response()(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001 - logged here; a client never sees a traceback
            log.error("a request failed: %s", failure_text(error))
            if not status:
                await internal_error().response()(scope, receive, send_with_headers)
        path, milliseconds = ascii(scope["path"][:_LOGGED_CHARACTERS]), 1000 * (time.perf_counter() - started)
        log.info("%s %s %s %.0f ms", scope["method"], path, status or "disconnected", milliseconds)

    async def _check_and_run(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        self._check_token(headers, scope["path"])
        if (scope["method"], scope["path"]) == ("GET", "/examples"):
            async with self._queue.place(has_arrived=True):
                await _run_while_connected(self._app, scope, b"", receive, _patient_send(send, self._queue.places))
            return
        if scope["method"] != "POST" or scope["path"] not in _QUEUED_PATHS:
            await _run_while_connected(self._app, scope, b"", receive, send)
            return
        _check_body(headers)
        body, places = _Body(receive), self._queue.places
        if places.is_full:
            await body.read_what_has_arrived()
        async with self._queue.place(has_arrived=body.is_complete):
            content = await body.read(places)
            await _run_while_connected(self._app, scope, content, receive, _patient_send(send, places))

    def _check_host(self, headers: Headers) -> None:
        if self._access.is_loopback and not is_loopback(_host_name(headers.get("host", ""))):
            raise ApiError(421, "wrong_host", "the Host header must be localhost or a loopback address")

    def _check_token(self, headers: Headers, path: str) -> None:
        if self._access.token is None or path in _OPEN_PATHS:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        matches = hmac.compare_digest(token.strip().encode(), self._access.token.encode())
        if scheme.lower() != "bearer" or not matches:
            raise ApiError(
                401, "wrong_token", "the request must carry Authorization: Bearer and the server's token",
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip


def _patient_send(send: Send, places: Places) -> Send:
    """Send, and wait until the client has read nearly all; `Connection` limits that time."""

    async def send_and_wait(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
            return
        await send({**message, "more_body": True})
        try:
            async with asyncio.timeout(None) as limit:
                with places.waits_for_client(limit):  # uvicorn waits before it sends the next message
                    await send({"type": "http.response.body", "more_body": message.get("more_body", False)})
        except TimeoutError:  # another client needs the place
            raise ClientDisconnect from None

    return send_and_wait


def _check_body(headers: Headers) -> None:
    """Refuse a body by what its headers say."""
    if _media_type(headers) != "application/json":
        raise ApiError(415, "not_json", "the body must be sent as Content-Type: application/json")
    announced = headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > BODY_BYTES:
        raise _too_large()


class _Body:
    """The body of a question.

    Args:
        receive: the channel of the request.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._chunks: list[bytes] = []
        self._size = 0
        self.is_complete = False

    async def read_what_has_arrived(self) -> None:
        """Read a body that arrives together with its head, if it is small."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_TOGETHER_SECONDS):
                while not self.is_complete and self._size < _TOGETHER_BYTES:
                    await self._read_chunk()

    async def read(self, places: Places) -> bytes:
        """The whole body. Raises ApiError if it is too large or too slow."""
        try:
            async with asyncio.timeout(BODY_SECONDS) as limit:
                with places.waits_for_client(limit):
                    while not self.is_complete:
                        await self._read_chunk()
        except TimeoutError:
            headers = {**_CLOSE, "Retry-After": "1"}
            raise ApiError(408, "too_slow", "the body did not arrive in time", headers) from None
        return b"".join(self._chunks)

    async def _read_chunk(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._chunks.append(message.get("body", b""))
        self._size += len(self._chunks[-1])
        if self._size > BODY_BYTES:
            raise _too_large()
        self.is_complete = not message.get("more_body", False)


def is_loopback(host: str) -> bool:
    """Whether a name or address always means this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(header: str) -> str:
    """The name in a Host header, without the port and without the brackets of an IPv6 address."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _too_large() -> ApiError:
    return ApiError(413, "too_large", f"the body is larger than {BODY_BYTES:,} bytes", _CLOSE)


async def _run_while_connected(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Run the app until it has answered or the client disconnects."""
    disconnect = asyncio.create_task(_await_disconnect(receive))
    unread = [body]

    async def replay() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await asyncio.shield(disconnect)
        return {"type": "http.disconnect"}

    running = asyncio.ensure_future(app(scope, replay, send))
    try:
        await asyncio.wait({running, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        for task in (running, disconnect):
            task.cancel()
        await asyncio.gather(running, disconnect, return_exceptions=True)


async def _await_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
