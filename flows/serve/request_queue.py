"""A queue of questions for the single thread that computes; questions that wait together share one scan.

Answers are computed one scan at a time: torch uses all cores for one scan, and memory stays bounded. Other work
that needs the model or the codes waits in the same queue. `Places` bounds how much waits.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from flows.serve.answer import ComputedAnswer
from flows.serve.answering import answer_batch, error_for_client
from flows.serve.errors import ApiError, failure_text, internal_error
from flows.serve.live_index import LiveIndex, OpenGeneration
from flows.serve.places import Places
from flows.serve.question import Question

log = logging.getLogger(__name__)

MAX_WAITING = 256
MAX_PER_SCAN = 16
"""More questions per scan would share its reads, but every question waits for the gradients of all of them."""

Result = TypeVar("Result")
Work = Callable[[OpenGeneration], Result]
Emit = Callable[[str], bool]
"""Sends a part of a result on its way; False if nobody waits for it any more."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A question, or other work that needs the computing thread, and the future of its result."""

    job: Question | Work[Any]
    generation: int | None
    result: "asyncio.Future[Any]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def question(self) -> Question:
        return cast(Question, self.job)

    @property
    def is_withdrawn(self) -> bool:
        return self.result.cancelled()

    @property
    def scan(self) -> Hashable:
        """Equal for questions that may share a scan."""
        if not isinstance(self.job, Question) or self.job.generate is not None:
            return id(self)
        return self.job.where, self.job.normalise, self.generation


class RequestQueue:
    """Accepts questions and other work, and computes them with the current generation or another one.

    Args:
        live_index: holds the current generation.
    """

    def __init__(self, live_index: LiveIndex) -> None:
        self._live_index = live_index
        self.places = Places(MAX_WAITING)
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "lorif-answers")
        self._closing = False
        self.answered = 0

    @asynccontextmanager
    async def place(self, *, has_arrived: bool) -> AsyncIterator[None]:
        """Reserve a place for one request; see `Places.take`. Raises ApiError also if the server shuts down."""
        if self._closing:
            raise _closing_error()
        async with self.places.take(has_arrived=has_arrived):
            yield

    @property
    def generation(self) -> int:
        """Number of the generation that answers now."""
        return self._live_index.current.index.generation.generation

    async def ask(self, question: Question) -> ComputedAnswer:
        """Wait for the answer to a question; cancelling the call withdraws it. Raises ApiError and LorifError."""
        question.query()  # an error of the question needs no turn
        answer: ComputedAnswer = await self._enqueue(question, question.generation).result
        return answer

    async def run(self, work: Work[Result], generation: int | None = None) -> Result:
        """Wait for other work; cancelling the call withdraws it. Raises ApiError."""
        result: Result = await self._enqueue(work, generation).result
        return result

    async def stream(
        self, work: Callable[[OpenGeneration, Emit], Result], generation: int | None = None
    ) -> AsyncGenerator[str | Result]:
        """The parts that other work emits, as they come, and last its result. Closing the iterator ends the work.

        Raises:
            ApiError: the work failed.
        """
        loop, parts = asyncio.get_running_loop(), asyncio.Queue[str | None]()
        is_closed = threading.Event()

        def emit(part: str) -> bool:
            loop.call_soon_threadsafe(parts.put_nowait, part)
            return not is_closed.is_set()

        waiting = self._enqueue(lambda opened: work(opened, emit), generation)
        waiting.result.add_done_callback(lambda _: parts.put_nowait(None))
        try:
            while (part := await parts.get()) is not None:
                yield part
            yield await waiting.result
        finally:
            is_closed.set()
            waiting.result.cancel()

    def _enqueue(self, job: Question | Work[Any], generation: int | None) -> _Waiting:
        waiting = _Waiting(job, generation)
        self._waiting.append(waiting)
        self._arrived.set()
        return waiting

    async def work(self) -> None:
        """Compute what waits, until cancelled."""
        loop = asyncio.get_running_loop()

        def finish(waiting: _Waiting, result: Any) -> None:
            loop.call_soon_threadsafe(self._finish, waiting, result)

        while True:
            await self._arrived.wait()
            batch = self._next_batch()
            if not batch:
                self._arrived.clear()
                continue
            try:
                await loop.run_in_executor(self._thread, _compute, self._live_index, batch, finish)
            except Exception as error:  # noqa: BLE001 - later batches must still be answered
                log.error("a batch of questions failed: %s", failure_text(error))
                for waiting in batch:
                    self._finish(waiting, internal_error())

    def close(self, seconds: float) -> None:
        """Accept no further questions; refuse those that still wait after some seconds."""
        self._closing = True
        asyncio.get_running_loop().call_later(seconds, self._refuse_waiting)

    def _refuse_waiting(self) -> None:
        for waiting in self._waiting:
            self._finish(waiting, _closing_error())
        self._waiting.clear()

    def _next_batch(self) -> list[_Waiting]:
        """Take the first of what waits, and later questions that may share its scan; drop what was withdrawn."""
        pending = [waiting for waiting in self._waiting if not waiting.result.done()]
        batch = [waiting for waiting in pending if waiting.scan == pending[0].scan][:MAX_PER_SCAN]
        in_batch = set(map(id, batch))
        self._waiting = deque(waiting for waiting in pending if id(waiting) not in in_batch)
        return batch

    def _finish(self, waiting: _Waiting, result: Any) -> None:
        if waiting.result.done():
            return
        if isinstance(result, BaseException):
            waiting.result.set_exception(result)
        else:
            self.answered += isinstance(waiting.job, Question)
            waiting.result.set_result(result)


def _closing_error() -> ApiError:
    return ApiError(503, "closing", "the server is shutting down; ask again later", {"Retry-After": "10"})


def _compute(live_index: LiveIndex, batch: Sequence[_Waiting], finish: Callable[[_Waiting, Any], None]) -> None:
    """Answer questions that share a scan, or do other work, in the computing thread."""
    first, opened = batch[0], live_index.current
    try:
        opened = live_index.at(first.generation)
        if not isinstance(first.job, Question):
            finish(first, first.job(opened))
            return
    except Exception as error:  # noqa: BLE001 - sent to the client, or logged
        for waiting in batch:
            finish(waiting, error_for_client(error, opened))
        return
    answer_batch(opened, batch, finish)
