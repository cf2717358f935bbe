"""Where questions wait for the one thread that computes. Those that wait together are asked in one scan.

Answers are computed one scan at a time: torch uses all cores for one, and memory stays bounded. A place is taken
before a question's body is read, so that what waits is bounded too, bodies included.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flows.questions import find
from flows.serve.answer import Answered
from flows.serve.errors import RefusedError, failed, refusal_of
from flows.serve.live_index import Newest, Opened
from flows.serve.question import Question
from lorif_core.errors import UserError
from lorif_core.search.queries import Query
from lorif_core.search.query_blocks import queries_per_block
from lorif_core.storage.faults import one_line

log = logging.getLogger(__name__)

PLACES = 256
TOGETHER = 16
"""Questions of a scan at most: later ones share its bytes, but all wait for the gradients of all."""
_MEMORY_GB = 1.0  # as `lorif query`
_RETRY_AFTER = "5"


@dataclass(slots=True, eq=False)
class _Waiting:
    question: Question
    query: Query
    answered: "asyncio.Future[Answered]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def terms(self) -> tuple[str | None, str]:
        return self.question.where, self.question.normalise


class Desk:
    """Takes questions and has them answered by the newest generation.

    Args:
        newest: the index.
    """

    def __init__(self, newest: Newest) -> None:
        self._newest = newest
        self._places = PLACES
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "lorif-answers")
        self._closing = False
        self.answered = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one question, from before its body is read. Raises RefusedError if there is none."""
        if self._closing:
            raise _closing()
        if not self._places:
            raise RefusedError(
                429,
                "busy",
                f"{PLACES} questions are waiting; ask again in a few seconds",
                {"Retry-After": _RETRY_AFTER},
            )
        self._places -= 1
        try:
            yield
        finally:
            self._places += 1

    @property
    def generation(self) -> int:
        """The one that answers now."""
        return self._newest.current.index.generation.generation

    async def ask(self, question: Question) -> Answered:
        """The answer, in turn. A caller that is cancelled waits no longer. Raises RefusedError and LorifError."""
        waiting = _Waiting(question, question.query())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.answered

    async def work(self) -> None:
        """Answer what waits, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = self._next()
            if not batch:
                self._arrived.clear()
                continue

            def told(waiting: _Waiting, result: Answered | BaseException) -> None:
                loop.call_soon_threadsafe(self._tell, waiting, result)

            try:
                await loop.run_in_executor(self._thread, _answer_batch, self._newest.current, batch, told)
            except Exception as error:  # noqa: BLE001 - the next ones are answered all the same
                for waiting in batch:
                    self._tell(waiting, _told(error))

    def close(self, seconds: float) -> None:
        """Take no further questions; what still waits after some seconds is refused."""
        self._closing = True
        asyncio.get_running_loop().call_later(seconds, self._refuse_rest)

    def _refuse_rest(self) -> None:
        for waiting in self._waiting:
            self._tell(waiting, _closing())
        self._waiting.clear()

    def _next(self) -> list[_Waiting]:
        """The first that waits, and others of its terms, in their order; those who have left are dropped."""
        alive = [waiting for waiting in self._waiting if not waiting.answered.done()]
        batch = [waiting for waiting in alive if waiting.terms == alive[0].terms][:TOGETHER]
        chosen = set(map(id, batch))
        self._waiting = deque(waiting for waiting in alive if id(waiting) not in chosen)
        return batch

    def _tell(self, waiting: _Waiting, result: Answered | BaseException) -> None:
        if waiting.answered.done():
            return
        if isinstance(result, BaseException):
            waiting.answered.set_exception(result)
        else:
            self.answered += 1
            waiting.answered.set_result(result)


def _closing() -> RefusedError:
    return RefusedError(503, "closing", "the server is shutting down; ask another one, or later")


Tell = Callable[[_Waiting, Any], None]


def _answer_batch(opened: Opened, batch: Sequence[_Waiting], tell: Tell) -> None:
    """Runs in the thread; whatever goes wrong is told to those whom it concerns."""
    size = queries_per_block(opened.index.generation, max(w.question.top_k for w in batch), _MEMORY_GB)
    for start in range(0, len(batch), size):
        _answer_together(opened, batch[start : start + size], tell)


def _answer_together(opened: Opened, batch: Sequence[_Waiting], tell: Tell) -> None:
    try:
        terms = opened.index.terms(*batch[0].terms, two_stage=opened.two_stage)
        top_k = max(waiting.question.top_k for waiting in batch)
        queries = [waiting.query for waiting in batch]
        found = find(opened.index, opened.checkpoint, queries, top_k, terms, two_stage=opened.two_stage)
    except Exception as error:  # noqa: BLE001 - it is told, or logged
        if len(batch) > 1 and isinstance(error, UserError):  # one of them is at fault, the others are not
            for waiting in batch:
                _answer_together(opened, [waiting], tell)
            return
        for waiting in batch:
            tell(waiting, _told(error))
        return
    # what takes a while for itself alone comes last
    for waiting, one in sorted(zip(batch, found, strict=True), key=lambda pair: pair[0].question.is_long):
        if waiting.answered.cancelled():
            continue
        try:
            tell(waiting, Answered(opened, waiting.question, one, terms))
        except Exception as error:  # noqa: BLE001 - it is told, or logged
            tell(waiting, _told(error))


def _told(error: Exception) -> RefusedError:
    refusal = refusal_of(error)
    if refusal is None:
        log.error("a question failed: %s: %s", type(error).__name__, one_line(error))
    return refusal or failed()
