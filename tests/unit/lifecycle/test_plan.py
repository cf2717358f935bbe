"""Invariant: a model, tokenizer or corpus that cannot be indexed is refused before any work begins."""

from typing import Any

import pytest
from transformers import ByT5Tokenizer

from lorif_core.config import Config
from lorif_core.errors import UserError
from lorif_core.lifecycle.plan import check_settings
from lorif_core.model.loading import Skeleton
from tests.tiny_tokenizer import byte_tokenizer


def check(tokenizer: Any, **corpus: str) -> None:
    raw = {"index": "i", "model": {"path": "m"}, "corpus": {"uri": "c", **corpus}}
    check_settings(Config.model_validate(raw), Skeleton(None, tokenizer, "float32", None, {}), ())


def test_pairs_need_a_tokenizer_with_offsets() -> None:
    with pytest.raises(UserError, match=r"a pair of p and c cannot be split .* ByT5Tokenizer"):
        check(ByT5Tokenizer(), prompt="p", completion="c")
    check(byte_tokenizer(), prompt="p", completion="c")
    for other in ({}, {"tokens": "t"}, {"tokens": "t", "prompt": "p", "completion": "c"}):
        check(ByT5Tokenizer(), **other)


PAIRS = {"prompt": "p", "completion": "c", "chat_template": "model"}


@pytest.mark.parametrize("corpus", [{"messages": "m"}, PAIRS])
def test_conversations_need_a_template_and_offsets(corpus: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer"):
        check(None, **corpus)
    with pytest.raises(UserError, match=r"the model's tokenizer has none; set corpus.chat_template to a Jinja"):
        check(byte_tokenizer(), **corpus)
    with pytest.raises(UserError, match=r"not valid Jinja in line 2: .*; correct it"):
        check(byte_tokenizer(), **{**corpus, "chat_template": "{{ 1 }}\n{% if %}"})
    with pytest.raises(UserError, match=r"ByT5Tokenizer does not tell which characters"):
        check(ByT5Tokenizer(), **{**corpus, "chat_template": "{{ messages[0].content }}"})
    named = byte_tokenizer()
    named.chat_template = {"rag": "{{ 1 }}"}
    with pytest.raises(UserError, match=r"none named default .it has rag."):
        check(named, **corpus)
    named.chat_template = "{{ messages[0].content }}"
    check(named, **corpus)
    check(byte_tokenizer(), **{**corpus, "chat_template": "{{ messages[0].content }}"})
