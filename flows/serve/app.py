"""The routes of `lorif serve` and its OpenAPI document."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from flows.serve.answer_schema import Answer
from flows.serve.docs import docs_page
from flows.serve.errors import ApiError, error_of, error_responses, failure_text, validation_error
from flows.serve.examples import ExampleRecord, read_example
from flows.serve.export import answer_file
from flows.serve.generations import after_first, generation_events
from flows.serve.limits import GENERATION_HEADER, Access, LimitsMiddleware
from flows.serve.live_index import LiveIndex
from flows.serve.pairs import PairAnswer, answer_pair
from flows.serve.question import ID_MAX, TOP_K_MAX, GenerationRequest, Pair, Question
from flows.serve.request_queue import RequestQueue
from flows.serve.state import Health, IndexFacts, health_of, index_facts
from flows.serve.suggestions import SuggestedQuestions, Suggestions
from lorif_core.errors import LorifError
from lorif_core.report.page import Explorer, render_explorer

log = logging.getLogger(__name__)

REFRESH_SECONDS = 5.0
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'nonce-{0}'; script-src 'nonce-{0}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_HTTP_ERRORS = {
    400: ("no_json", "the body is not readable JSON"),
    404: ("no_such_path", "the path does not exist; /docs lists all paths"),
    405: ("no_such_method", "the path does not support this method; /docs lists all methods"),
}


def create_app(live_index: LiveIndex, queue: RequestQueue, access: Access) -> FastAPI:
    """The app that answers questions to an index."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(_log_lost_error)
        async with _background_tasks(live_index, queue):
            yield

    app = FastAPI(
        title="lorif", version="1", description="Which training examples made the model say this?",
        docs_url=None, redoc_url=None, lifespan=lifespan,
    )  # fmt: skip
    app.add_middleware(LimitsMiddleware, queue=queue, access=access)
    _add_error_handlers(app)
    _add_pages(app, live_index, access)
    _add_api(app, live_index, queue, access)
    return app


@asynccontextmanager
async def _background_tasks(live_index: LiveIndex, queue: RequestQueue) -> AsyncIterator[None]:
    """Answer questions and look for newer generations, for the length of the block."""

    async def refresh_repeatedly() -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await asyncio.to_thread(live_index.refresh)

    tasks = [asyncio.create_task(queue.work()), asyncio.create_task(refresh_repeatedly())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _log_lost_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that nothing awaited; asyncio itself would log its message, which may quote a question."""
    error = context.get("exception")
    log.error("%s: %s", context["message"], "no exception" if error is None else failure_text(error))


def _add_error_handlers(app: FastAPI) -> None:
    async def on_validation_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return validation_error(error.errors()).response()

    async def on_http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code, message = _HTTP_ERRORS.get(error.status_code, ("not_understood", str(error.detail)))
        return ApiError(error.status_code, code, message, error.headers).response()

    async def on_lorif_error(_: Request, error: Exception) -> Response:
        known = error_of(error)
        if known is None:
            raise error
        return known.response()

    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(ApiError, on_lorif_error)
    app.add_exception_handler(LorifError, on_lorif_error)


def _add_pages(app: FastAPI, live_index: LiveIndex, access: Access) -> None:
    @app.get("/", include_in_schema=False)
    async def explorer() -> HTMLResponse:
        opened = live_index.current
        generation, nonce = opened.index.generation, secrets.token_urlsafe(16)
        page = Explorer(
            title=f"LoRIF: {live_index.name}",
            generation=generation.generation,
            rows=generation.rows,
            checkpoint=generation.checkpoint,
            created_at=generation.created_at.strftime("%Y-%m-%d %H:%M UTC"),
            columns=tuple((name, name in opened.number_columns) for name in opened.columns),
            top_k_max=TOP_K_MAX,
            needs_token=access.token is not None,
            two_stage=opened.two_stage,
        )
        return _page(render_explorer(page, nonce), nonce)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        return _page(docs_page(app.openapi(), nonce), nonce)


def _page(content: str, nonce: str) -> HTMLResponse:
    return HTMLResponse(content, headers={"Content-Security-Policy": _CONTENT_SECURITY_POLICY.format(nonce)})


def _add_api(app: FastAPI, live_index: LiveIndex, queue: RequestQueue, access: Access) -> None:
    # `LimitsMiddleware` checks the token before it reads the body; this only documents it
    needs_token = [Depends(HTTPBearer(auto_error=False))] if access.token is not None else []

    @app.get("/health", responses=error_responses(421))
    async def health() -> Health:
        """Report whether the server answers, and from which generation."""
        return health_of(live_index)

    @app.get("/index", dependencies=needs_token, responses=error_responses(401, 421))
    async def index() -> IndexFacts:
        """Describe the generation that answers, and the limits of a question."""
        return index_facts(live_index)

    suggested = SuggestedQuestions(live_index)

    @app.get("/suggestions", dependencies=needs_token, responses=error_responses(401, 421))
    async def suggestions() -> Suggestions:
        """Suggest questions: passages of the index, each cut into a prompt and its continuation."""
        return await asyncio.to_thread(suggested.current)

    @app.get(
        "/examples", dependencies=needs_token, responses=error_responses(401, 404, 408, 421, 422, 429, 500, 503)
    )
    async def examples(
        id: Annotated[str, Query(max_length=ID_MAX, description="The id of the training example.")],
    ) -> ExampleRecord:
        """Show a training example: its text, all its columns, and its neighbours in its file."""
        return await asyncio.to_thread(read_example, live_index.current, id)

    statuses = error_responses(400, 401, 408, 409, 410, 413, 415, 421, 422, 429, 500, 503)
    text, binary = {"schema": {"type": "string"}}, {"schema": {"type": "string", "format": "binary"}}
    html = {
        "description": "The answer.",
        "content": {"text/html": text, "text/csv": text, "application/vnd.apache.parquet": binary},
    }

    @app.post("/answers", dependencies=needs_token, response_model=Answer, responses={200: html, **statuses})
    async def answers(question: Question, request: Request) -> Response:
        """Find the training examples that matter most to a query.

        With `Accept: text/html` the response is a fragment of an HTML page instead of JSON. With `format` it is a
        file.
        """
        started = time.perf_counter()
        answer = await queue.ask(question)
        headers = {GENERATION_HEADER: str(answer.generation.generation)}
        if question.format != "json":
            file = await asyncio.to_thread(answer_file, answer, question.format)
            return Response(file.content, headers={**headers, **file.headers}, media_type=file.media_type)
        if "text/html" in request.headers.get("accept", ""):
            fragment = await asyncio.to_thread(answer.html)  # a hundred long texts take a while
            return HTMLResponse(fragment, headers=headers)
        content = answer.json(time.perf_counter() - started)
        return Response(content, headers=headers, media_type="application/json")

    @app.post("/pairs", dependencies=needs_token, responses=statuses)
    async def pairs(pair: Pair) -> PairAnswer:
        """Show what a span of a training text adds to the score of each token of a query."""
        return await queue.run(partial(answer_pair, pair=pair), pair.generation)

    stream = {
        "description": "The continuation, as server-sent events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
    no_pin = {status: response for status, response in statuses.items() if status not in (409, 410)}

    @app.post(
        "/generations", dependencies=needs_token, response_class=StreamingResponse,
        responses={200: stream, **no_pin},
    )  # fmt: skip
    async def generations(request: GenerationRequest) -> StreamingResponse:
        """Let the model continue a text, by its most likely tokens.

        The response is a stream of server-sent events. The data of each is `{"text": ...}`, the continuation so
        far. The last event has the name `done` and the data `{"text", "tokens", "reason"}`, where the reason is
        `end`, `length` or `time`; or it has the name `error` and the body of an error. Closing the connection ends
        it.
        """
        events = generation_events(queue, request)
        first = await anext(events)  # a text that cannot be continued gets the status of its error
        return StreamingResponse(after_first(first, events), media_type="text/event-stream")
