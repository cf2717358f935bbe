"""Errors of the API: `{"error": {"code": ..., "message": ...}}`, where the message is one sentence."""

import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from lorif_core.errors import LorifError, StoreUnavailableError, UserError
from lorif_core.out_of_memory import is_out_of_memory
from lorif_core.storage.faults import one_line

_DESCRIPTIONS = {
    400: "The body is not valid JSON, or the request is not valid HTTP.",
    401: "The token is missing or wrong.",
    404: "The path or the example does not exist.",
    405: "The path does not support this method.",
    408: "The head or the body of the request did not arrive in time.",
    409: "The requested generation needs a checkpoint that the server does not have in memory.",
    410: "The requested generation does not exist any more.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    421: "The Host header does not name this machine.",
    422: "The question is not valid, or cannot be answered.",
    429: "Too many questions are waiting.",
    500: "The server failed; its log has the cause.",
    503: "The server shuts down or is out of memory, or the index was deleted or its store does not answer.",
}

_OUT_OF_MEMORY = (
    "the server ran out of memory; ask for a shorter text or a smaller top_k, or start the server with a lower "
    "--memory-gb"
)


_QUOTED = re.compile(r"""['"`].*['"`]""", re.DOTALL)


class Error(BaseModel):
    """What went wrong."""

    code: str = Field(description="A stable name of the error, for programs.")
    message: str = Field(description="One sentence for people that says what is wrong.")


class ErrorBody(BaseModel):
    """The body of every response that is not an answer."""

    error: Error = Field(description="The error that ended the request.")


class ApiError(Exception):
    """A request that ends without an answer.

    Args:
        status: HTTP status.
        code: stable name of the error, for programs.
        message: one sentence.
        headers: extra headers of the response.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})

    def response(self) -> JSONResponse:
        """The HTTP response of the error."""
        body = {"error": {"code": self.code, "message": str(self)}}
        return JSONResponse(body, self.status, self.headers)


def error_of(error: BaseException) -> ApiError | None:
    """The API error that a client gets for an exception; None if only the log may describe it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, StoreUnavailableError):
        return ApiError(503, "store_unavailable", str(error), {"Retry-After": "10"})
    if is_out_of_memory(error):
        return ApiError(503, "out_of_memory", _OUT_OF_MEMORY, {"Retry-After": "10"})
    if isinstance(error, UserError):
        return ApiError(422, "unanswerable", str(error))
    return None


def failure_text(error: BaseException) -> str:
    """What the log says about a failure: no text of a question or of the corpus, which a message may quote."""
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" at {Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames)
    message = f": {_QUOTED.sub('...', one_line(error))}" if isinstance(error, LorifError) else ""
    return f"{type(error).__name__}{place}{message}"


def internal_error() -> ApiError:
    """A failure whose cause is in the log only."""
    return ApiError(500, "failed", "the server failed to answer; its log has the cause")


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's errors about a body; it does not repeat what the client sent."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "no_json", f"the body is not valid JSON: {first['ctx']['error']}")
    field = ".".join(str(step) for step in first["loc"][1:])
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(422, "invalid", f"{field}: {message}" if field else message)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error statuses of a route, for the OpenAPI document."""
    return {status: {"model": ErrorBody, "description": _DESCRIPTIONS[status]} for status in statuses}
