"""Texts that the model continues, sent as server-sent events while they are made."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from pydantic import BaseModel, Field

from flows.serve.answering import GENERATION_SECONDS
from flows.serve.errors import error_of, internal_error
from flows.serve.live_index import OpenGeneration
from flows.serve.question import GenerationRequest
from flows.serve.request_queue import Emit, RequestQueue
from lorif_core.corpus.messages import parse_conversation
from lorif_core.model.generation import EndReason, Generated, generate, generate_after


class GenerationEvent(BaseModel):
    """The data of the last event of a continuation."""

    text: str = Field(description="The whole continuation, without the prompt.")
    tokens: int = Field(description="The number of its tokens.")
    reason: EndReason = Field(
        description="What ended it: the model (`end`), the requested `length`, or the server's limit of `time`."
    )


async def generation_events(queue: RequestQueue, request: GenerationRequest) -> AsyncGenerator[str]:
    """The events of a continuation: the text so far after each token, and the whole at the end.

    An event without a name has `{"text": ...}`, the whole text so far. The event `done` has a `GenerationEvent`.

    Raises:
        ApiError, LorifError: the model cannot continue the text.
    """

    def work(opened: OpenGeneration, emit: Emit) -> Generated:
        encoder = opened.index.encoder(opened.checkpoint)
        if request.prompt is not None:
            return generate(encoder.loaded, request.prompt, request.max_new_tokens, GENERATION_SECONDS, emit)
        messages = parse_conversation(request.messages, None, "the request").messages
        ids = encoder.opening(messages, None)
        return generate_after(encoder.loaded, ids, request.max_new_tokens, GENERATION_SECONDS, emit)

    async with aclosing(queue.stream(work)) as parts:
        async for part in parts:
            if isinstance(part, str):
                yield f"data: {json.dumps({'text': part})}\n\n"
            else:
                event = GenerationEvent(text=part.text, tokens=part.tokens, reason=part.reason)
                yield f"event: done\ndata: {event.model_dump_json()}\n\n"


async def after_first(first: str, events: AsyncGenerator[str]) -> AsyncGenerator[str]:
    """The first event and all others; a failure is the last one, named `error`, with the body of an error."""
    async with aclosing(events):
        yield first
        try:
            async for event in events:
                yield event
        except Exception as failure:  # noqa: BLE001 - the response has begun, so it cannot have another status
            error = error_of(failure) or internal_error()
            body = {"error": {"code": error.code, "message": str(error)}}
            yield f"event: error\ndata: {json.dumps(body)}\n\n"
