"""Invariant: an evaluation uses the examples that have a scored token, and BM25 always has texts."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorif_core.errors import UserError
from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.evaluation.inputs import digest, load_inputs
from tests.models import gpt2


def evaluation(folder: Path, model: Path, rows: list[dict[str, Any]], **more: Any) -> EvaluationConfig:
    for name in ("corpus", "queries"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    column = "tokens" if "tokens" in rows[0] else "text"
    corpus = {"uri": str(folder / "corpus.jsonl"), column: column, "max_length": 16, "store_text": False}
    config = {"model": {"path": str(model)}, "corpus": corpus}
    return EvaluationConfig(config=config, queries=str(folder / "queries.jsonl"), methods={"a": {}}, **more)


def test_texts_are_loaded_for_bm25_even_if_the_index_stores_none(model_folder: Path, tmp_path: Path) -> None:
    inputs = load_inputs(evaluation(tmp_path, model_folder, [{"text": "a cat"}, {"text": "the dog"}]))
    assert inputs.texts() == (["a cat", "the dog"], ["a cat", "the dog"])
    assert digest(inputs.examples) == digest(inputs.examples) != digest(inputs.queries), "the digest includes ids"


def test_bm25_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "model")
    rows = [{"tokens": [1, 2, 3]}, {"tokens": [4, 5]}]
    with pytest.raises(UserError, match=r"no tokenizer to decode tokens; .* or set bm25: false"):
        load_inputs(evaluation(tmp_path, tmp_path / "model", rows))
    assert len(load_inputs(evaluation(tmp_path, tmp_path / "model", rows, bm25=False)).examples) == 2


def test_a_corpus_without_a_scored_token_is_refused(model_folder: Path, tmp_path: Path) -> None:
    empty = evaluation(tmp_path, model_folder, [{"text": "x"}])
    with pytest.raises(UserError, match=r"no example of the corpus .* has a scored token"):
        load_inputs(empty)
