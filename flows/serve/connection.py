"""Connections that end: a client that is silent or slow cannot hold one for ever.

uvicorn has no time limit for the head of a request, for a client that does not read its response, or for the bytes
that a client still sends after it was refused. Its own refusals are plain text, and here they are JSON.
"""

import asyncio
import heapq
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from flows.serve.errors import ApiError

HEAD_SECONDS = 10.0
"""Time for the head of a request, from the opening of the connection or the end of the response before."""
SEND_SECONDS = 30.0
"""Time for a client to read a response that the system no longer buffers."""
LINGER_SECONDS = 30.0
"""Time for a client to finish a body that was refused, before the connection is closed."""
_CLOSE_SECONDS = 10.0
_LINGER_BYTES = 2**26
_SHARE_ENDED = 16


class Connection(H11Protocol):
    """An HTTP connection with time limits.

    Beyond `limit_concurrency` connections, those that have waited longest for a request end, so there is always
    room for a new one.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # uvicorn itself would answer 503 as plain text
        self._limit, self.limit_concurrency = self.limit_concurrency, None
        self._lingers = False
        self._lingered_bytes = 0
        self._waits_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    @property
    def _waits(self) -> bool:
        """Whether no request is in progress."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        self._transport = _Transport(transport, self._close)
        super().connection_made(self._transport)  # type: ignore[arg-type]
        self._await_head()
        if self._limit is not None and len(self.connections) > self._limit:
            self._make_room(self._limit)

    def _make_room(self, limit: int) -> None:
        waiting = [other for other in self.connections if isinstance(other, Connection) and other._waits]
        oldest = heapq.nsmallest(1 + limit // _SHARE_ENDED, waiting, key=lambda other: other._waits_since)
        for connection in oldest:
            connection._end_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        for timer in (self._timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle bytes of a request; drop those that follow a refusal."""
        if self._lingers:
            self._lingered_bytes += len(data)
            if self._lingered_bytes > _LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        if not self._waits and self._timer is not None:
            self._timer.cancel()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if self._waits and not self.transport.is_closing():
            self._await_head()

    def pause_writing(self) -> None:
        """The client reads more slowly than the response is sent."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read most of what was sent."""
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()

    def shutdown(self) -> None:
        """End the connection when its response is complete; a client that was refused has had its response."""
        if self.transport.is_closing():
            self.transport.abort()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(ApiError(400, "no_http", "the request is not valid HTTP, or its head is too large"))

    def _await_head(self) -> None:
        self._waits_since = self.loop.time()
        self._start_timer(HEAD_SECONDS, self._end_wait)

    def _start_timer(self, seconds: float, end: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, end)

    def _end_wait(self) -> None:
        """End a connection without a request; a client that has sent a part of one gets an answer."""
        if self._lingers or self.transport.get_write_buffer_size():
            self.transport.abort()
        elif self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(
                ApiError(
                    408, "too_slow", f"the head of the request did not arrive within {HEAD_SECONDS:.0f} seconds",
                    {"Retry-After": "1"},
                )
            )  # fmt: skip
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer in place of the app, and end the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the app stops, and what it still sends is dropped
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            with suppress(h11.LocalProtocolError):  # the answer to HEAD has no body
                self._write(error.response())
        self._close(lingers=True)

    def _write(self, response: Response) -> None:
        headers = [*response.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=response.status_code, headers=headers),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")

    def _close(self, lingers: bool = False) -> None:
        """Close the connection, but first read what the client still sends.

        A socket that is closed with unread bytes resets the connection, and the client would lose the response.
        """
        transport = self._transport
        if transport.is_closing():
            return
        transport.closes = True
        if lingers or self.conn.their_state is h11.SEND_BODY:
            self._lingers = True
            transport.write_eof()
            self.flow.resume_reading()
            self._start_timer(LINGER_SECONDS, transport.abort)
        else:
            transport.close_now()
            self._start_timer(_CLOSE_SECONDS, transport.abort)  # if the client does not read the rest


class _Transport:
    """A transport whose `close` is decided by its connection.

    Args:
        transport: the transport of asyncio.
        close: called in place of its `close`.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self.close, self.close_now = close, transport.close
        self.closes = False

    def is_closing(self) -> bool:
        return self.closes or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
