"""Answers batches of questions, in the computing thread."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from flows.questions import generated_query, search_queries
from flows.serve.answer import ComputedAnswer
from flows.serve.errors import ApiError, error_of, failure_text, internal_error
from flows.serve.live_index import OpenGeneration
from flows.serve.question import Question
from lorif_core.errors import LorifError, UserError
from lorif_core.out_of_memory import is_out_of_memory
from lorif_core.search.queries import Query
from lorif_core.search.query_blocks import queries_per_block

log = logging.getLogger(__name__)

GENERATION_SECONDS = 20.0
"""The longest time in which the model continues a text, while other questions wait."""
_MEMORY_GB = 1.0  # as `lorif query`


class WaitingQuestion(Protocol):
    """A question that waits; `is_withdrawn` if nobody waits for it any more."""

    @property
    def question(self) -> Question:
        """The question."""

    @property
    def is_withdrawn(self) -> bool:
        """Whether nobody waits for its answer."""


Finish = Callable[[Any, ComputedAnswer | BaseException], None]


def answer_batch(current: OpenGeneration, batch: Sequence[WaitingQuestion], finish: Finish) -> None:
    """Answer questions with equal options; an error ends the questions that it concerns."""
    size = queries_per_block(current.index.generation, max(w.question.top_k for w in batch), _MEMORY_GB)
    for start in range(0, len(batch), size):
        _answer_in_one_scan(current, batch[start : start + size], finish)


def _answer_in_one_scan(current: OpenGeneration, batch: Sequence[WaitingQuestion], finish: Finish) -> None:
    first = batch[0].question
    try:
        options = current.index.options(first.where, first.normalise, two_stage=current.two_stage)
        top_k = max(waiting.question.top_k for waiting in batch)
        queries = [_query_of(current, waiting.question) for waiting in batch]
        results = search_queries(
            current.index, current.checkpoint, queries, top_k, options, two_stage=current.two_stage
        )
    except Exception as error:  # noqa: BLE001 - sent to the client, or logged
        if len(batch) > 1 and (isinstance(error, UserError) or is_out_of_memory(error)):  # one may be at fault
            for waiting in batch:
                _answer_in_one_scan(current, [waiting], finish)
            return
        for waiting in batch:
            finish(waiting, error_for_client(error, current))
        return
    # questions that need extra work of their own come last
    for waiting, result in sorted(zip(batch, results, strict=True), key=lambda pair: pair[0].question.is_long):
        if waiting.is_withdrawn:
            continue
        try:
            own = replace(result, top=result.top.first(waiting.question.top_k))
            finish(waiting, ComputedAnswer(current, waiting.question, own, options))
        except Exception as error:  # noqa: BLE001 - sent to the client, or logged
            finish(waiting, error_for_client(error, current))


def _query_of(current: OpenGeneration, question: Question) -> Query:
    """The query of a question; its completion is generated if it asks for that."""
    query = question.query()
    if question.generate is None:
        return query
    loaded = current.index.encoder(current.checkpoint).loaded
    return generated_query(loaded, query, question.generate.max_new_tokens, GENERATION_SECONDS)


def error_for_client(error: Exception, current: OpenGeneration) -> ApiError:
    """The API error of any exception; a cause that clients may not see is logged."""
    known = error_of(error)
    if isinstance(error, LorifError) and (known is None or known.status == 422):
        reason = current.unreadable_reason()  # then the question is not at fault
        if reason is not None:
            return ApiError(503, "index_gone", f"the index can no longer be read: {reason}", {"Retry-After": "10"})
    if known is None:
        log.error("a question failed: %s", failure_text(error))
    return known or internal_error()
