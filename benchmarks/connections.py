"""What happens to honest clients of `lorif serve` while a thousand connections are open, most of them hostile.

    python -m benchmarks.connections [--seconds 60 --connections 1000 --out FILE]

Hostile connections are silent, send the head of a request or its body byte by byte, do not read the answer, or
send a body that is too large. Each is opened again when the server ends it. Meanwhile 20 honest clients ask
questions, and one asks for /health. Every reply to them must be an answer, or a refusal with status 429 or 503 as
JSON with Retry-After. The index has the size of the demo's and the default preset.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.run_record import write_result

_HONEST = 20
_PAUSE_SECONDS = 0.5  # of a slow sender between two bytes
_ERRORS = (ConnectionError, TimeoutError, asyncio.IncompleteReadError)


def main() -> None:
    from benchmarks.serve import served
    from benchmarks.wikitext import in_new_process, lorif, prepare, write_config
    from benchmarks.workload import DEFAULT_TEXT

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=DEFAULT_TEXT)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--sequences", type=int, default=866)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorif-connections-") as name:
        folder = Path(name)
        in_new_process(prepare, arguments.text, folder, arguments.sequences, arguments.layers, arguments.width)
        lorif("build", "-c", str(write_config(folder)))
        with served(str(folder / "index")) as address:
            load = measure(address, arguments.seconds, arguments.connections)
    result = {"connections": arguments.connections, "seconds": arguments.seconds, **load.summary()}
    result["load_average"] = [round(average, 1) for average in os.getloadavg()]
    print(json.dumps(result, indent=2))
    if arguments.out:
        write_result(arguments.out, result)


@dataclass
class Load:
    """What honest clients and the server experienced.

    Attributes:
        replies: (status, whether its form is as promised) -> count, of questions.
        seconds: the time to each reply.
        health: the time to each reply of /health, all of which had status 200.
        lost: questions without any reply.
        resident: resident bytes of the server, one number a second.
        opened: how often each kind of hostile connection was opened.
        answered_after: whether a question is answered when the load has ended.
    """

    replies: Counter[tuple[int, bool]] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    lost: int = 0
    resident: list[int] = field(default_factory=list)
    opened: Counter[str] = field(default_factory=Counter)
    answered_after: bool = False

    def summary(self) -> dict[str, Any]:
        """The numbers for a report."""
        first, last = (self.resident[round(share * (len(self.resident) - 1))] for share in (0.25, 1))
        return {
            "opened": dict(sorted(self.opened.items())),
            "questions": sum(self.replies.values()),
            "answered": self.replies[200, True],
            "refused": sum(count for (status, _), count in self.replies.items() if status in (429, 503)),
            "not_in_form": sum(count for (_, in_form), count in self.replies.items() if not in_form),
            "lost": self.lost,
            "question_p50_ms": round(1000 * statistics.median(self.seconds), 1),
            "health_replies": len(self.health),
            "health_p50_ms": round(1000 * statistics.median(self.health), 1),
            "health_max_ms": round(1000 * max(self.health), 1),
            "resident_mib_after_a_quarter": first >> 20,
            "resident_mib_at_the_end": last >> 20,
            "answered_after": self.answered_after,
        }


def measure(address: str, seconds: float, connections: int, limit: float = 60.0) -> Load:
    """Put a server under load.

    Args:
        address: URL of the server on this machine.
        seconds: length of the load.
        connections: open connections, of which 20 are honest.
        limit: seconds after which an honest reply counts as lost.
    """
    return asyncio.run(_measure(address, seconds, connections, limit))


async def _measure(address: str, seconds: float, connections: int, limit: float) -> Load:
    url = urlsplit(address)
    assert url.hostname and url.port
    client, load = _Client(url.hostname, url.port, limit), Load()
    (process,) = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.laddr[1:] == (url.port,) and connection.status == psutil.CONN_LISTEN
    }
    tasks = [
        asyncio.create_task(_again(hostile, client, load))
        for hostile in itertools.islice(itertools.cycle(_HOSTILE), connections - _HONEST - 1)
    ]
    tasks += [asyncio.create_task(_ask(client, load, number)) for number in range(_HONEST)]
    tasks += [asyncio.create_task(_check_health(client, load)), asyncio.create_task(_watch(process, load))]
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    deadline = time.monotonic() + limit
    while not load.answered_after and time.monotonic() < deadline:
        status, _ = await client.question("after")
        load.answered_after = status == 200
    return load


class _Client:
    """Requests byte by byte, so that they can be broken off anywhere."""

    def __init__(self, host: str, port: int, limit: float) -> None:
        self._host, self._port, self.limit = host, port, limit

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def request(self, head: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the reply to a whole request."""
        async with asyncio.timeout(self.limit), self.connection() as (reader, writer):
            writer.write(f"{head}\r\nHost: localhost\r\nConnection: close\r\n".encode())
            writer.write(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            reply = await reader.read()
        lines, _, content = reply.partition(b"\r\n\r\n")
        status, *headers = lines.decode().split("\r\n")
        pairs = (line.split(": ", 1) for line in headers)
        return int(status.split()[1]), {name.lower(): value for name, value in pairs}, content

    async def question(self, text: str) -> tuple[int, bool]:
        """Status of a question, and whether its reply has the form that is promised."""
        body = json.dumps({"text": f"the cat sees {text}"}).encode()
        status, headers, content = await self.request(_QUESTION, body)
        if headers["content-type"] != "application/json":
            return status, False
        reply = json.loads(content)
        if status == 200:
            return status, bool(reply["proponents"])
        return status, status in (429, 503) and int(headers["retry-after"]) > 0 and bool(reply["error"]["message"])


_QUESTION = "POST /answers HTTP/1.1\r\nContent-Type: application/json"
_Hostile = Callable[[_Client], Awaitable[None]]


async def _again(hostile: _Hostile, client: _Client, load: Load) -> None:
    while True:
        load.opened[hostile.__name__.removeprefix("_")] += 1
        with suppress(*_ERRORS):
            await hostile(client)
        await asyncio.sleep(0.05)


async def _silent(client: _Client) -> None:
    async with client.connection() as (reader, _):
        await reader.read()


async def _slow_head(client: _Client) -> None:
    async with client.connection() as (reader, writer):
        await _trickle(reader, writer, b"GET /health HTTP/1.1\r\nX: " + b"a" * 1000)


async def _slow_body(client: _Client) -> None:
    async with client.connection() as (reader, writer):
        writer.write(f"{_QUESTION}\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n".encode())
        await _trickle(reader, writer, b"x" * 1000)


async def _slow_reader(client: _Client) -> None:
    async with client.connection() as (reader, writer):
        body = json.dumps({"text": "the cat", "top_k": 100}).encode()
        writer.write(f"{_QUESTION}\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        while await reader.read(1):
            await asyncio.sleep(_PAUSE_SECONDS)


async def _large_body(client: _Client) -> None:
    async with client.connection() as (reader, writer):
        writer.write(f"{_QUESTION}\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        await _trickle(reader, writer, b"10000\r\n" + b"x" * 2**16 + b"\r\n", 2**16)


async def _trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes, size: int = 1) -> None:
    """Send data again and again in small pieces until the server ends the connection."""
    ended = asyncio.create_task(reader.read())
    for start in itertools.cycle(range(0, len(data), size)):
        writer.write(data[start : start + size])
        await writer.drain()
        if (await asyncio.wait([ended], timeout=_PAUSE_SECONDS))[0]:
            break
    ended.cancel()


_HOSTILE: tuple[_Hostile, ...] = (_silent, _slow_head, _slow_body, _slow_reader, _large_body)


async def _ask(client: _Client, load: Load, number: int) -> None:
    for count in itertools.count():
        started = time.perf_counter()
        try:
            load.replies[await client.question(f"{number} {count}")] += 1
        except _ERRORS:
            load.lost += 1
        load.seconds.append(time.perf_counter() - started)
        await asyncio.sleep(0.2)


async def _check_health(client: _Client, load: Load) -> None:
    while True:
        started = time.perf_counter()
        status, _, _ = await client.request("GET /health HTTP/1.1")
        assert status == 200
        load.health.append(time.perf_counter() - started)
        await asyncio.sleep(0.2)


async def _watch(process: int, load: Load) -> None:
    while True:
        load.resident.append(psutil.Process(process).memory_info().rss)
        await asyncio.sleep(1)


if __name__ == "__main__":
    main()
