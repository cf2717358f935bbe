"""The routes of `lorif serve`, and its OpenAPI document."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from flows.serve.answer import Answer
from flows.serve.docs import docs_page
from flows.serve.errors import RefusedError, documented, invalid, refusal_of
from flows.serve.limits import GENERATION, Access, Limits
from flows.serve.live_index import Newest
from flows.serve.question import TOP_K_MAX, Question
from flows.serve.request_queue import Desk
from flows.serve.state import Health, IndexFacts, health_of, index_facts
from lorif_core.errors import LorifError
from lorif_core.report.page import Explorer, render_explorer

REFRESH_SECONDS = 5.0
_POLICY = (
    "default-src 'none'; style-src 'nonce-{0}'; script-src 'nonce-{0}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_UNANSWERED = {
    400: ("no_json", "the body is no JSON that can be read"),
    404: ("no_such_path", "there is no such path; /docs lists those that there are"),
    405: ("no_such_method", "this path has no such method; /docs lists those that there are"),
}


def create_app(newest: Newest, desk: Desk, access: Access) -> FastAPI:
    """The app over an opened index."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with _running(newest, desk):
            yield

    app = FastAPI(
        title="lorif", version="1", description="Which training examples made the model say this?",
        docs_url=None, redoc_url=None, lifespan=lifespan,
    )  # fmt: skip
    app.add_middleware(Limits, desk=desk, access=access)
    _add_errors(app)
    _add_pages(app, newest, access)
    _add_api(app, newest, desk, access)
    return app


@asynccontextmanager
async def _running(newest: Newest, desk: Desk) -> AsyncIterator[None]:
    async def keep_newest() -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await asyncio.to_thread(newest.refresh)

    tasks = [asyncio.create_task(desk.work()), asyncio.create_task(keep_newest())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _add_errors(app: FastAPI) -> None:
    async def not_valid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return invalid(error.errors()).response()

    async def not_there(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code, message = _UNANSWERED.get(error.status_code, ("not_understood", str(error.detail)))
        return RefusedError(error.status_code, code, message, error.headers).response()

    async def not_answered(_: Request, error: Exception) -> Response:
        refusal = refusal_of(error)
        if refusal is None:
            raise error
        return refusal.response()

    app.add_exception_handler(RequestValidationError, not_valid)
    app.add_exception_handler(HTTPException, not_there)
    app.add_exception_handler(RefusedError, not_answered)
    app.add_exception_handler(LorifError, not_answered)


def _add_pages(app: FastAPI, newest: Newest, access: Access) -> None:
    @app.get("/", include_in_schema=False)
    async def explorer() -> HTMLResponse:
        opened = newest.current
        generation, nonce = opened.index.generation, secrets.token_urlsafe(16)
        page = Explorer(
            title=f"LoRIF: {newest.name}",
            generation=generation.generation,
            rows=generation.rows,
            checkpoint=generation.checkpoint,
            created_at=generation.created_at.strftime("%Y-%m-%d %H:%M UTC"),
            columns=opened.columns,
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
    return HTMLResponse(content, headers={"Content-Security-Policy": _POLICY.format(nonce)})


def _add_api(app: FastAPI, newest: Newest, desk: Desk, access: Access) -> None:
    # the check itself comes before the body is read, in `limits`; this is its documentation
    needs = [Depends(HTTPBearer(auto_error=False))] if access.token is not None else []

    @app.get("/health", responses=documented(421))
    async def health() -> Health:
        """Whether answers are given, and of which generation."""
        return health_of(newest)

    @app.get("/index", dependencies=needs, responses=documented(401, 421))
    async def index() -> IndexFacts:
        """The generation that answers, and what is refused beyond."""
        return index_facts(newest)

    statuses = documented(400, 401, 408, 413, 415, 421, 422, 429, 500, 503)
    html = {"description": "The answer", "content": {"text/html": {"schema": {"type": "string"}}}}

    @app.post("/answers", dependencies=needs, response_model=Answer, responses={200: html, **statuses})
    async def answers(question: Question, request: Request) -> Response:
        """Which training examples matter to a query. `Accept: text/html` gives a fragment of a page instead."""
        started = time.perf_counter()
        answered = await desk.ask(question)
        headers = {GENERATION: str(answered.generation.generation)}
        if "text/html" in request.headers.get("accept", ""):
            fragment = await asyncio.to_thread(answered.html)  # of a hundred long texts it takes a while
            return HTMLResponse(fragment, headers=headers)
        content = answered.json(time.perf_counter() - started)
        return Response(content, headers=headers, media_type="application/json")
