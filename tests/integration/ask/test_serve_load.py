"""Invariant: a thousand connections, most of them hostile, take neither /health nor the form of refusals away."""

import asyncio
from pathlib import Path

import httpx

from benchmarks.connections import measure
from flows.serve.request_queue import MAX_WAITING
from lorif_core.config import Config
from tests.integration.serving import running_server
from tests.patience import patience

_SECONDS, _CONNECTIONS = 10, 1000
_GROWTH_MIB = 150


def test_honest_clients_are_answered_or_refused_in_form(built: Config, tmp_path: Path) -> None:
    with running_server(built.index, tmp_path / "stderr") as server:
        load = measure(server.address, _SECONDS, _CONNECTIONS, limit=patience(30)).summary()
        log = (tmp_path / "stderr").read_text()
    assert min(load["opened"].values()) >= _CONNECTIONS // 6, load
    assert load["answered"] > 0 == load["not_in_form"] == load["lost"], load
    assert load["health_replies"] > 0 and load["health_max_ms"] < 1000 * patience(5), load
    assert load["resident_mib_at_the_end"] - load["resident_mib_after_a_quarter"] < _GROWTH_MIB, load
    assert load["answered_after"], load
    assert "the cat" not in log and "Traceback" not in log


def test_a_thousand_questions_at_once_fill_the_places_and_the_rest_are_refused_in_form(
    built: Config, tmp_path: Path
) -> None:
    with running_server(built.index, tmp_path / "stderr") as server:

        async def ask_all() -> list[httpx.Response]:
            async with server.client() as client:
                bodies = ({"text": f"the cat sees {number}"} for number in range(_CONNECTIONS))
                return await asyncio.gather(*(client.post("answers", json=body) for body in bodies))

        replies = asyncio.run(ask_all())
    refused = [reply for reply in replies if reply.status_code != 200]
    assert len(replies) - len(refused) >= MAX_WAITING
    for reply in refused:
        assert reply.status_code in (429, 503) and int(reply.headers["retry-after"]) > 0
        assert reply.json()["error"]["message"]
