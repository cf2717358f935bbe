"""Invariant: a question that lacks memory gets a 503 that says what to lower; those beside it are answered."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from flows.serve import answering
from flows.serve.answering import _answer_in_one_scan
from flows.serve.errors import ApiError, error_of


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")], ids=repr)
def test_a_lack_of_memory_is_told_to_the_client(error: Exception) -> None:
    told = error_of(error)
    assert told is not None and (told.status, told.code) == (503, "out_of_memory")
    assert "--memory-gb" in str(told) and "Retry-After" in told.headers


def test_only_the_question_that_lacks_memory_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions share a scan; one that is too long must not take its neighbours with it."""

    def search(_index: Any, _checkpoint: Any, queries: list[str], *_: Any, **__: Any) -> list[Any]:
        if "long" in queries:
            raise MemoryError
        return [SimpleNamespace(query=query, top=SimpleNamespace(first=lambda k: k)) for query in queries]

    def waiting(query: str) -> Any:
        return SimpleNamespace(
            query=query, is_withdrawn=False,
            question=SimpleNamespace(
                query=lambda: query, generate=None, where=None, normalise="none", top_k=1, is_long=False
            ),
        )  # fmt: skip

    monkeypatch.setattr(answering, "search_queries", search)
    monkeypatch.setattr(answering, "replace", lambda result, **_: result)
    monkeypatch.setattr(answering, "ComputedAnswer", lambda _current, _question, result, _options: result.query)
    index = SimpleNamespace(options=lambda *_, **__: None)
    current = cast(Any, SimpleNamespace(index=index, checkpoint=None, two_stage=False))
    batch = [waiting(query) for query in ("short", "long", "other")]
    answers: dict[str, Any] = {}
    _answer_in_one_scan(current, batch, lambda question, answer: answers.update({question.query: answer}))
    refused = answers.pop("long")
    assert answers == {"short": "short", "other": "other"}
    assert isinstance(refused, ApiError) and refused.status == 503
