"""Invariant: a question has exactly one query; messages are checked and limited as texts are."""

from typing import Any

import pytest
from pydantic import ValidationError

from flows.serve.question import TEXT_MAX, Question
from lorif_core.search.queries import Query
from tests.chat_templates import CALLS, TALK, WEATHER


def test_messages_become_a_query() -> None:
    question = Question.model_validate({"messages": CALLS, "tools": [WEATHER]})
    assert question.query() == Query("question", messages=tuple(CALLS), tools=(WEATHER,))
    contrast = Question.model_validate({"contrast": [{"messages": TALK}, "text"]}).query().contrast
    assert contrast is not None and contrast[0].messages == tuple(TALK)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"messages": TALK, "text": "a"}, "give exactly one of .*; the query has text and messages"),
        ({"messages": []}, "at least 1 item"),
        ({"messages": ["a"]}, "valid dictionary"),
        ({"messages": TALK * 30}, "at most 100 items"),
        ({"text": "a", "tools": [WEATHER]}, "tools go with messages"),
        ({"messages": [{"role": "assistant", "content": "a" * TEXT_MAX}]}, "more than 100,000 characters"),
    ],
)
def test_refused_bodies(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Question.model_validate(body)
