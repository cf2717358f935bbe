"""Invariant: where memory runs out while a model runs, the message names settings that can still be lowered."""

from typing import Any

import pytest

from lorif_core.config import Config
from lorif_core.errors import MemoryExhaustedError
from tasks.memory import memory_errors, model_settings


def config(tokens_per_batch: Any, max_length: Any) -> Config:
    return Config.model_validate(
        {
            "index": "index",
            "model": {"path": "model"},
            "corpus": {"uri": "corpus.jsonl", "max_length": max_length},
            "compute": {"tokens_per_batch": tokens_per_batch, "memory_gb": 4},
        }
    )


@pytest.mark.parametrize(
    ("tokens_per_batch", "max_length", "advice"),
    [
        (8192, 512, "lower compute.tokens_per_batch from 8192 to 4096, or compute.memory_gb from 4 to 2, or "),
        (2048, 2048, "lower compute.memory_gb from 4 to 2, or corpus.max_length from 2048 to 1024, or give"),
        ("auto", 2048, "lower compute.memory_gb from 4 to 2, or corpus.max_length from 2048 to 1024, or give"),
        ("auto", "auto", "from 1024 to 512, or compute.memory_gb from 4 to 2, or give"),
        ("auto", 2, "or compute.memory_gb from 4 to 2, or give it more memory"),
    ],
)
def test_the_advice_can_be_followed(tokens_per_batch: Any, max_length: Any, advice: str) -> None:
    with (
        pytest.raises(MemoryExhaustedError, match=advice),
        memory_errors(model_settings(config(tokens_per_batch, max_length))),
    ):
        raise MemoryError
