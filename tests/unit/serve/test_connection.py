"""Invariant: a silent or slow client loses its connection, and one that is refused gets its refusal as JSON."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from flows.serve import connection
from flows.serve.connection import Connection
from flows.serve.errors import ApiError
from tests.patience import patience

SHORT = 0.3
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass
class Served:
    """A server of an app that refuses every POST and answers every GET with `size` bytes."""

    size: int = 2
    port: int = 0
    state: ServerState = field(default_factory=ServerState)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await ApiError(413, "too_large", "the body is too large", {"Connection": "close"}).response()(
                scope, receive, send
            )
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(self.size), "more_body": True})
        await send({"type": "http.response.body"})

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=2**16)


@asynccontextmanager
async def serving(served: Served, limit: int | None = None) -> AsyncIterator[Served]:
    config = uvicorn.Config(
        served.app, http=Connection, interface="asgi3", log_config=None, ws="none", limit_concurrency=limit
    )
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(config=config, server_state=served.state, app_state={}), "127.0.0.1", 0
    )
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()


def run(test: Callable[[Served], Awaitable[None]], served: Served | None = None, limit: int | None = None) -> None:
    """Run a test against a server; it ends after ten seconds of patience."""

    async def with_server() -> None:
        async with serving(served or Served(), limit) as ready, asyncio.timeout(patience(10)):
            await test(ready)

    asyncio.run(with_server())


def parsed(reply: bytes) -> tuple[int, Any]:
    """Status and JSON body of a response."""
    head, _, body = reply.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", SHORT)


def test_a_silent_connection_ends() -> None:
    async def test(served: Served) -> None:
        connections = [await served.open() for _ in range(50)]
        for reader, writer in connections:
            assert await reader.read() == b""
            writer.close()
        while served.state.connections:
            await asyncio.sleep(0.01)

    run(test)


def test_a_connection_that_is_silent_after_its_response_ends() -> None:
    async def test(served: Served) -> None:
        reader, writer = await served.open()
        for _ in range(3):
            writer.write(GET)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await reader.readuntil(b"0\r\n\r\n")
        assert await reader.read() == b""

    run(test)


@pytest.mark.parametrize("is_second", [False, True])
def test_a_slow_head_gets_408_however_steadily_it_trickles(is_second: bool) -> None:
    async def test(served: Served) -> None:
        reader, writer = await served.open()
        if is_second:
            writer.write(GET)
            await reader.readuntil(b"0\r\n\r\n")
        reply = asyncio.create_task(reader.read())
        while not reply.done():
            writer.write(b"G")
            await asyncio.sleep(SHORT / 10)
        status, body = parsed(await reply)
        assert (status, body["error"]["code"]) == (408, "too_slow")

    run(test)


@pytest.mark.parametrize("request_", [b"\x00\x01\x02\r\n\r\n", GET[:20] + b"a" * 2**17, b"GARBAGE\r\n\r\n"])
def test_what_is_not_http_gets_400_as_json(request_: bytes) -> None:
    async def test(served: Served) -> None:
        reader, writer = await served.open()
        writer.write(request_)
        status, body = parsed(await reader.read())
        assert (status, body["error"]["code"]) == (400, "no_http")

    run(test)


@pytest.mark.parametrize("framing", ["length", "chunked", "slow", "keep-alive"])
@pytest.mark.parametrize("size", [5 * 10**6, 5 * 10**7])
def test_a_refused_body_does_not_reset_the_connection(framing: str, size: int) -> None:
    """A client that sends everything before it reads finds its 413; on a reset it would find nothing."""

    async def test(served: Served) -> None:
        reader, writer = await served.open()
        length = "Transfer-Encoding: chunked" if framing == "chunked" else f"Content-Length: {size}"
        close = "" if framing == "keep-alive" else "Connection: close\r\n"
        writer.write(f"POST /answers HTTP/1.1\r\nHost: localhost\r\n{close}{length}\r\n\r\n".encode())
        for _ in range(20):
            part = bytes(size // 20)
            writer.write(b"%x\r\n%b\r\n" % (len(part), part) if framing == "chunked" else part)
            await writer.drain()
            if framing == "slow":
                await asyncio.sleep(SHORT / 5)
        status, body = parsed(await reader.read())
        assert (status, body["error"]["code"]) == (413, "too_large")
        writer.close()

    run(test)


def test_a_refused_client_that_never_stops_sending_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", SHORT)

    async def test(served: Served) -> None:
        _, writer = await served.open()
        writer.write(b"POST /answers HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
        with suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(SHORT / 20)
        assert not served.state.connections

    run(test)


def test_a_client_that_does_not_read_its_response_loses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SEND_SECONDS", SHORT)

    async def test(served: Served) -> None:
        _, writer = await served.open()
        writer.write(GET)
        await writer.drain()
        while not served.state.tasks:
            await asyncio.sleep(0.01)
        while served.state.connections or served.state.tasks:
            await asyncio.sleep(0.01)

    run(test, Served(size=10**8))


def test_a_new_connection_always_finds_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent connections, slow heads and refused senders yield to it, the oldest first."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 60.0)
    limit = 40

    async def test(served: Served) -> None:
        waiting = []
        for number in range(4 * limit):
            reader, writer = await served.open()
            writer.write((b"", GET[:9], b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")[number % 3])
            waiting.append((reader, writer))
            if not number % 10:
                honest, asks = await served.open()
                asks.write(GET)
                assert (await honest.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200")
                asks.close()
            assert len(served.state.connections) <= limit + 1
        await waiting[0][0].read()
        assert not waiting[-2][0].at_eof()
        for _, writer in waiting:
            writer.close()

    run(test, limit=limit)
