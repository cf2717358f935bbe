"""Builds a small index of one part in this process, without Ray and Prefect."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lance

import lorif_core as lc
from lorif_core.config_file import parse_config
from lorif_core.lifecycle.calibrate import ShardCalibrator, calibration_sample
from lorif_core.lifecycle.index_shard import ShardIndexer
from lorif_core.lifecycle.plan import make_plan
from lorif_core.search.index import Index
from lorif_core.tables.datasets import Tables
from lorif_core.tables.generation import Part, generation_of, now
from lorif_core.tables.store import Store
from tests.tiny_tokenizer import VOCAB

WORDS = ["the", "cat", "dog", "bird", "sees", "likes", "red", "old", "tree", "and", "then", "runs", "Zürich", "λ"]
PROMPTS = {"prompt": "prompt", "completion": "completion"}


def save_checkpoint(model: Any, tokenizer: Any, folder: Path) -> Path:
    """A checkpoint folder of a model and a tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_model(folder: Path, *, bos: bool = False) -> Path:
    """A tiny GPT-2 with a byte tokenizer, whose gradients depend on their texts, and which writes ASCII."""
    from tests.models import gpt2, scaled
    from tests.tiny_tokenizer import byte_tokenizer

    tokenizer = byte_tokenizer(bos=bos)
    return save_checkpoint(writing_ascii(scaled(gpt2(vocab_size=VOCAB)), tokenizer), tokenizer, folder)


def writing_ascii(model: Any, tokenizer: Any) -> Any:
    """A GPT-2 with a byte tokenizer, changed so that it says ASCII."""
    import torch

    ascii_ids = tokenizer.convert_tokens_to_ids([chr(code) for code in range(33, 127)])
    others = sorted({*range(len(tokenizer))} - {*ascii_ids})
    with torch.no_grad():
        model.transformer.wte.weight[others] *= 0.1
    return model


def build_small(
    folder: Path,
    model: Path,
    corpus: Mapping[str, Any],
    *,
    factored: bool = False,
    layers: str = "all",
    **sections: Any,
) -> Index:
    """An index without curvature, of all rows of a corpus, opened.

    Args:
        folder: a new folder for the index.
        model: a checkpoint.
        corpus: section `corpus`.
        factored: factor queries, as the preset `paper`.
        layers: `model.layers`.
        sections: other sections, or `preset`.
    """
    settings: dict[str, Any] = {"curvature": {"kind": "none"}, "compute": {"tokens_per_batch": 1024}}
    config = parse_config(
        {"index": str(folder), "model": {"path": str(model), "layers": layers}, "corpus": dict(corpus)}
        | settings
        | sections
    )
    plan, store = make_plan(config), Store(config.index)
    spec = plan.spec
    if spec.projection.is_whitened:
        covariances = ShardCalibrator(config, spec).covariances(calibration_sample(plan.shards, 20))
        spec = spec.with_whitening(store.whitenings.add(covariances, spec.layers, spec))
    store.create(spec)
    indexer = ShardIndexer(config, spec)
    receipts = [indexer.index(shard) for shard in plan.shards]
    version = store.rows.commit_wave(receipts, store.rows.version())
    rows, tokens = (sum(getattr(receipt, name) for receipt in receipts) for name in ("rows", "tokens"))
    part = Part(spec.to_json(), spec.checkpoint, str(model), None, "", "none", "{}", factored, rows, tokens)
    store.publish(
        generation_of(
            [part], generation=1, created_at=now(), factors_version=version,
            curvature_version=store.curvatures.version(), skipped_json="[]", timings_json="{}",
            coverage_json='{"tracked": 1, "total": 1, "untracked": []}',
        )
    )  # fmt: skip
    return lc.open_index(config.index)


def add_column(index: Index, name: str, value: str) -> int:
    """Add a column to an index, as users may, from an SQL expression; returns the version that has it."""
    dataset = lance.dataset(Tables(index.store.uri, index.store.storage).path("factors"))
    dataset.add_columns({name: value})
    return int(dataset.version)
