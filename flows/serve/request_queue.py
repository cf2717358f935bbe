"""A queue of questions for the single thread that computes; questions that wait together share one scan.

Answers are computed one scan at a time: torch uses all cores for one scan, and memory stays bounded. `Places`
bounds the number of questions.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from flows.questions import search_queries
from flows.serve.answer import ComputedAnswer
from flows.serve.errors import ApiError, error_of, failure_text, internal_error
from flows.serve.live_index import LiveIndex, OpenGeneration
from flows.serve.places import Places
from flows.serve.question import Question
from lorif_core.errors import LorifError, UserError
from lorif_core.out_of_memory import is_out_of_memory
from lorif_core.search.queries import Query
from lorif_core.search.query_blocks import queries_per_block

log = logging.getLogger(__name__)

MAX_WAITING = 256
MAX_PER_SCAN = 16
"""More questions per scan would share its reads, but every question waits for the gradients of all of them."""
_MEMORY_GB = 1.0  # as `lorif query`


@dataclass(slots=True, eq=False)
class _WaitingQuestion:
    question: Question
    query: Query
    answer: "asyncio.Future[ComputedAnswer]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def options(self) -> tuple[str | None, str]:
        return self.question.where, self.question.normalise


class RequestQueue:
    """Accepts questions and answers them from the current generation.

    Args:
        live_index: holds the current generation.
    """

    def __init__(self, live_index: LiveIndex) -> None:
        self._live_index = live_index
        self.places = Places(MAX_WAITING)
        self._waiting: deque[_WaitingQuestion] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "lorif-answers")
        self._closing = False
        self.answered = 0

    @asynccontextmanager
    async def place(self, *, has_arrived: bool) -> AsyncIterator[None]:
        """Reserve a place for one question; see `Places.take`. Raises ApiError also if the server shuts down."""
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
        waiting = _WaitingQuestion(question, question.query())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.answer

    async def work(self) -> None:
        """Answer questions until cancelled."""
        loop = asyncio.get_running_loop()

        def finish(waiting: _WaitingQuestion, result: ComputedAnswer | BaseException) -> None:
            loop.call_soon_threadsafe(self._finish, waiting, result)

        while True:
            await self._arrived.wait()
            batch = self._next_batch()
            if not batch:
                self._arrived.clear()
                continue
            try:
                await loop.run_in_executor(self._thread, _answer_batch, self._live_index.current, batch, finish)
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

    def _next_batch(self) -> list[_WaitingQuestion]:
        """Take the first question and later ones with the same options; drop questions that were withdrawn."""
        pending = [waiting for waiting in self._waiting if not waiting.answer.done()]
        batch = [waiting for waiting in pending if waiting.options == pending[0].options][:MAX_PER_SCAN]
        in_batch = set(map(id, batch))
        self._waiting = deque(waiting for waiting in pending if id(waiting) not in in_batch)
        return batch

    def _finish(self, waiting: _WaitingQuestion, result: ComputedAnswer | BaseException) -> None:
        if waiting.answer.done():
            return
        if isinstance(result, BaseException):
            waiting.answer.set_exception(result)
        else:
            self.answered += 1
            waiting.answer.set_result(result)


def _closing_error() -> ApiError:
    return ApiError(503, "closing", "the server is shutting down; ask again later", {"Retry-After": "10"})


_Finish = Callable[[_WaitingQuestion, ComputedAnswer | BaseException], None]


def _answer_batch(current: OpenGeneration, batch: Sequence[_WaitingQuestion], finish: _Finish) -> None:
    """Answer a batch, in the computing thread; an error ends the questions that it concerns."""
    size = queries_per_block(current.index.generation, max(w.question.top_k for w in batch), _MEMORY_GB)
    for start in range(0, len(batch), size):
        _answer_in_one_scan(current, batch[start : start + size], finish)


def _answer_in_one_scan(current: OpenGeneration, batch: Sequence[_WaitingQuestion], finish: _Finish) -> None:
    try:
        options = current.index.options(*batch[0].options, two_stage=current.two_stage)
        top_k = max(waiting.question.top_k for waiting in batch)
        queries = [waiting.query for waiting in batch]
        results = search_queries(
            current.index, current.checkpoint, queries, top_k, options, two_stage=current.two_stage
        )
    except Exception as error:  # noqa: BLE001 - sent to the client, or logged
        if len(batch) > 1 and (isinstance(error, UserError) or is_out_of_memory(error)):  # one may be at fault
            for waiting in batch:
                _answer_in_one_scan(current, [waiting], finish)
            return
        for waiting in batch:
            finish(waiting, _error_for_client(error, current))
        return
    # questions that need extra work of their own come last
    for waiting, result in sorted(zip(batch, results, strict=True), key=lambda pair: pair[0].question.is_long):
        if waiting.answer.cancelled():
            continue
        try:
            own = replace(result, top=result.top.first(waiting.question.top_k))
            finish(waiting, ComputedAnswer(current, waiting.question, own, options))
        except Exception as error:  # noqa: BLE001 - sent to the client, or logged
            finish(waiting, _error_for_client(error, current))


def _error_for_client(error: Exception, current: OpenGeneration) -> ApiError:
    known = error_of(error)
    if isinstance(error, LorifError) and (known is None or known.status == 422):
        reason = current.unreadable_reason()  # then the question is not at fault
        if reason is not None:
            return ApiError(503, "index_gone", f"the index can no longer be read: {reason}", {"Retry-After": "10"})
    if known is None:
        log.error("a question failed: %s", failure_text(error))
    return known or internal_error()
