"""Places for questions: they bound the memory for bodies and answers, and slow clients cannot hold them all.

A question takes a place before its body is read, and keeps it until its answer is sent. If no place is free, the
client that has kept the server waiting for longest loses its place to the newcomer. It does so sooner if the body
of the newcomer has arrived: slow clients that come again and again would otherwise outnumber the others.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from flows.serve.errors import ApiError

PATIENT_SECONDS = 10.0
"""Time for a client to send its body, or to read its answer, while others need its place."""
IMPATIENT_SECONDS = 3.0
"""The same while questions that have arrived need its place."""
_HANDOVER_SECONDS = 1.0
_RETRY_AFTER = "5"


class Places:
    """A number of places.

    Args:
        count: how many questions may be in progress.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = asyncio.Semaphore(count)
        self._waits: dict[asyncio.Timeout, float] = {}

    @property
    def is_full(self) -> bool:
        """Whether no place is free."""
        return self._free.locked()

    @asynccontextmanager
    async def take(self, *, has_arrived: bool) -> AsyncIterator[None]:
        """Hold a place for the length of the block.

        Args:
            has_arrived: whether the body of the question has arrived.

        Raises:
            ApiError: no place is free.
        """
        if self.is_full and not self._end_longest_wait(IMPATIENT_SECONDS if has_arrived else PATIENT_SECONDS):
            raise self._busy()
        try:
            async with asyncio.timeout(_HANDOVER_SECONDS):
                await self._free.acquire()
        except TimeoutError:
            raise self._busy() from None
        try:
            yield
        finally:
            self._free.release()

    @contextmanager
    def waits_for_client(self, limit: asyncio.Timeout) -> Iterator[None]:
        """The holder of a place waits for its client within the block, whose time limit may be cut short."""
        self._waits[limit] = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            self._waits.pop(limit, None)

    def _end_longest_wait(self, seconds: float) -> bool:
        """End the longest wait for a client, if it is longer than some seconds; returns whether it is."""
        limit, began = next(iter(self._waits.items()), (None, 0.0))
        now = asyncio.get_running_loop().time()
        if limit is None or now - began < seconds:
            return False
        del self._waits[limit]  # it can end only once
        limit.reschedule(now)
        return True

    def _busy(self) -> ApiError:
        message = f"{self._count} questions are waiting; ask again in a few seconds"
        return ApiError(429, "busy", message, {"Retry-After": _RETRY_AFTER})
