"""Errors as the API tells them: `{"error": {"code": ..., "message": ...}}`, the message one sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse

from lorif_core.errors import StoreUnavailableError, UserError

_MEANINGS = {
    400: "the body is no JSON",
    401: "the token is missing or wrong",
    404: "there is no such path",
    405: "the path has no such method",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is not application/json",
    421: "the Host header is not a name of this machine",
    422: "the question cannot be answered as it is",
    429: "too many questions are waiting",
    500: "the server has failed; its log says why",
    503: "the server is shutting down, or the store of the index does not answer",
}


class Error(BaseModel):
    """What is wrong: a stable code, and a sentence for people."""

    code: str
    message: str


class ErrorBody(BaseModel):
    """Of every answer that is none."""

    error: Error


class RefusedError(Exception):
    """A request that gets no answer.

    Args:
        status: of HTTP.
        code: what programs go by.
        message: one sentence.
        headers: of the response.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})

    def response(self) -> JSONResponse:
        """As it is sent."""
        body = {"error": {"code": self.code, "message": str(self)}}
        return JSONResponse(body, self.status, self.headers)


def refusal_of(error: BaseException) -> RefusedError | None:
    """What a failed answer is told as; None for a failure that only the log may describe."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, StoreUnavailableError):
        return RefusedError(503, "store_unavailable", str(error), {"Retry-After": "10"})
    if isinstance(error, UserError):
        return RefusedError(422, "unanswerable", str(error))
    return None


def failed() -> RefusedError:
    """A failure whose cause is in the log."""
    return RefusedError(500, "failed", "the server has failed to answer; its log says why")


def invalid(errors: Sequence[Mapping[str, Any]]) -> RefusedError:
    """What is wrong with a body, of pydantic's list of errors; what was sent is not repeated."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return RefusedError(400, "no_json", f"the body is no JSON: {first['ctx']['error']}")
    place = ".".join(str(step) for step in first["loc"][1:])
    told = str(first["msg"]).removeprefix("Value error, ")
    return RefusedError(422, "invalid", f"{place}: {told}" if place else told)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Statuses for the OpenAPI document."""
    return {status: {"model": ErrorBody, "description": _MEANINGS[status]} for status in statuses}
