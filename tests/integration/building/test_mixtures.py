"""Invariant: the default preset builds and answers for a mixture of experts, and tracks its experts."""

import json
from pathlib import Path

import numpy as np
import pytest

import lorif_core as lc
from flows.build import build
from lorif_core.config_file import parse_config
from lorif_core.tables.store import Store
from tests.mixtures import MIXTURES
from tests.tiny_tokenizer import VOCAB, byte_tokenizer

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")


def test_a_mixture_finds_the_text_that_is_the_query(corpus_file: Path, tmp_path: Path) -> None:
    lines = corpus_file.read_text().splitlines(keepends=True)[:60]
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    MIXTURES["olmoe"](vocab_size=VOCAB).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    config = parse_config(
        {
            "index": str(tmp_path / "index"),
            "corpus": {"uri": str(tmp_path / "texts.jsonl"), "id": "id", "max_length": 64},
            "compute": {"workers": 1, "tokens_per_batch": 2048},
            "model": {"path": str(tmp_path / "model")},
        }
    )
    build(config)
    names = [layer.name for layer in Store(config.index).latest().index_spec.layers]
    assert {name.rpartition(".")[0] for name in names} == {f"model.layers.{block}.mlp.experts" for block in (0, 1)}
    texts = {record["id"]: record["text"] for record in map(json.loads, lines)}
    asked = [name for name in texts if texts[name]][:8]
    ids, scores = lc.open_index(config.index).scores([texts[name] for name in asked])
    assert [texts[ids[best]] for best in np.argmax(scores, axis=1)] == [texts[name] for name in asked]
