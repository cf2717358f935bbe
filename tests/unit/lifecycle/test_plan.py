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
