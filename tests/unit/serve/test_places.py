"""Invariant: at most so many places are held, and a slow client yields its place to a newcomer."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from flows.serve import places
from flows.serve.errors import ApiError
from flows.serve.places import Places
from tests.patience import patience


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test with a time limit."""

    async def limited() -> None:
        async with asyncio.timeout(patience(10)):
            await test()

    asyncio.run(limited())


async def hold(held: Places, until: asyncio.Event, *, waits: bool, has_arrived: bool = True) -> str:
    """Hold a place until an event; returns `timeout` if the place was taken away."""
    async with held.take(has_arrived=has_arrived):
        try:
            async with asyncio.timeout(None) as limit:
                if not waits:
                    await until.wait()
                    return "done"
                with held.waits_for_client(limit):
                    await until.wait()
        except TimeoutError:
            return "timeout"
    return "done"


@pytest.mark.parametrize("waits", [True, False])
def test_beyond_the_last_place_a_question_is_refused(waits: bool) -> None:
    async def test() -> None:
        held, until = Places(3), asyncio.Event()
        tasks = [asyncio.create_task(hold(held, until, waits=waits)) for _ in range(3)]
        await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(ApiError) as refusal:
                await hold(held, until, waits=waits)
            assert refusal.value.status == 429 and int(refusal.value.headers["Retry-After"]) > 0
        until.set()
        assert await asyncio.gather(*tasks) == ["done"] * 3
        assert await hold(held, until, waits=waits) == "done"

    run(test)


def test_the_slowest_clients_yield_to_as_many_newcomers_that_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "IMPATIENT_SECONDS", 0.0)

    async def test() -> None:
        held, until, now = Places(6), asyncio.Event(), asyncio.Event()
        busy = [asyncio.create_task(hold(held, until, waits=False)) for _ in range(2)]
        slow = [asyncio.create_task(hold(held, until, waits=True)) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError):
            await hold(held, now, waits=False, has_arrived=False)
        now.set()
        newcomers = await asyncio.gather(*(hold(held, now, waits=False) for _ in range(3)))
        assert newcomers == ["done"] * 3
        until.set()
        assert await asyncio.gather(*slow) == ["timeout"] * 3 + ["done"]
        assert await asyncio.gather(*busy) == ["done"] * 2

    run(test)
