"""Invariant: rows of a part are scored with its checkpoint, whitening and curvature, on a scale common to all."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import lorif_core as lc
from lorif_core.config import Config
from lorif_core.lifecycle.index_shard import ShardIndexer
from lorif_core.lifecycle.plan import make_plan
from lorif_core.search.index import Index
from lorif_core.spec import IndexSpec
from lorif_core.tables.generation import Generation, Part, generation_of, now, ranges
from lorif_core.tables.store import Store
from tests.integration.conftest import MakeConfig
from tests.models import gpt2, scaled
from tests.tiny_tokenizer import VOCAB, byte_tokenizer

COVERAGE = '{"tracked": 1, "total": 1, "untracked": []}'
QUERIES = ["the cat sees it", {"prompt": "the dog ", "completion": "runs"}]


@pytest.fixture
def corpus(corpus_file: Path, tmp_path: Path) -> dict[str, str]:
    """Two files of twenty rows."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = corpus_file.read_text().splitlines(keepends=True)
    for number in range(2):
        (folder / f"{number}.jsonl").write_text("".join(lines[20 + 20 * number : 40 + 20 * number]))
    return {"uri": str(folder)}


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkpoint of the same layers."""
    folder = tmp_path_factory.mktemp("other-model")
    scaled(gpt2(seed=1, vocab_size=VOCAB)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def index_parts(specs: Sequence[tuple[Config, IndexSpec]]) -> Generation:
    """Index one file per spec into one table, in this process; publish a generation with a part for each spec."""
    config, first = specs[0]
    store = Store(config.index)
    store.create(first)
    parts: list[Part] = []
    for (part_config, spec), shard in zip(specs, make_plan(config).shards, strict=True):
        before = set(store.rows.fragment_ids(store.rows.version())) if parts else set()
        receipt = ShardIndexer(part_config, spec).index(shard)
        version = store.rows.commit_wave([receipt], store.rows.version())
        added = ranges(set(store.rows.fragment_ids(version)) - before)
        parts.append(
            Part(
                spec.to_json(), spec.checkpoint, part_config.model.path, None, curvature="", curvature_kind="none",
                curvature_json="{}", factored_query=False, rows=receipt.rows,
                tokens=receipt.tokens, fragments=added,
            )
        )  # fmt: skip
    if len({part.spec for part in parts}) == 1:
        parts = [replace(parts[0], rows=sum(part.rows for part in parts), fragments=None)]
    return store.publish(
        generation_of(
            parts, generation=1, created_at=now(), factors_version=version,
            curvature_version=store.curvatures.version(), coverage_json=COVERAGE,
            skipped_json="[]", timings_json="{}",
        )
    )  # fmt: skip


def own_influence(index: Index) -> np.ndarray:
    """s(q, q) of every query at the newest checkpoint, without curvature."""
    gradients = index.encode(QUERIES)[-1]
    return sum(layer.double().square().sum(dim=1) for layer in gradients.layers).numpy()


def scores_by_id(config: Config) -> dict[str, np.ndarray]:
    ids, scores = lc.open_index(config.index).scores(QUERIES)
    return dict(zip(ids, scores.T, strict=True))


def test_two_parts_of_one_checkpoint_score_as_one(
    make_config: MakeConfig, corpus: dict[str, str], tmp_path: Path, prefect_server: None, ray_session: None
) -> None:
    """Up to a division by s(q, q); in this process and in a distributed scan."""
    from flows.attribute import attribute

    one_part = make_config(tmp_path / "one", corpus=corpus, curvature={"kind": "none"})
    two_parts = make_config(tmp_path / "two", corpus=corpus, curvature={"kind": "none"})
    spec = make_plan(one_part).spec
    twin = replace(spec, tokenisation=replace(spec.tokenisation, max_length=63))  # another spec with the same rows
    index_parts([(one_part, spec), (one_part, spec)])
    published = index_parts([(two_parts, spec), (two_parts, twin)])
    assert [part.rows for part in published.parts] == [20, 20] and len(
        {part.spec for part in published.parts}
    ) == 2
    expected, actual = scores_by_id(one_part), scores_by_id(two_parts)
    own = own_influence(lc.open_index(one_part.index))
    assert actual.keys() == expected.keys() and len(actual) == 40
    for name, scores in expected.items():
        np.testing.assert_allclose(actual[name], scores / own, rtol=1e-5, atol=1e-7)
    (tmp_path / "q.jsonl").write_text('{"text": "the cat sees it"}\n')
    attribute(two_parts, str(tmp_path / "q.jsonl"), str(tmp_path / "out"), 40)
    rows = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    proponents = [row for row in rows if row["side"] == "proponent"]
    assert [row["example_id"] for row in proponents] == sorted(actual, key=lambda name: (-actual[name][0], name))
    for row in proponents:
        assert row["score"] == pytest.approx(actual[row["example_id"]][0], rel=1e-5)
    assert "rows of all checkpoints can be ranked" in (tmp_path / "out" / "report.html").read_text()


def test_every_part_is_scored_at_its_own_checkpoint(
    make_config: MakeConfig, corpus: dict[str, str], other_model: Path, tmp_path: Path
) -> None:
    both = make_config(tmp_path / "both", corpus=corpus)
    newer = both.model_copy(update={"model": both.model.model_copy(update={"path": str(other_model)})})
    specs = [make_plan(config).spec for config in (both, newer)]
    assert specs[0].checkpoint != specs[1].checkpoint
    published = index_parts([(both, specs[0]), (newer, specs[1])])
    assert published.checkpoint == specs[1].checkpoint and published.spec == specs[1].hash
    alone = newer.model_copy(update={"index": str(tmp_path / "alone")})
    index_parts([(alone, specs[1]), (alone, specs[1])])
    actual, expected = scores_by_id(both), scores_by_id(alone)
    own = own_influence(lc.open_index(alone.index))
    (second,) = (part for part in lc.open_index(both.index).parts[1:])
    names = [name for block in second.blocks() for name in block.example_ids]
    assert len(names) == 20
    for name in names:
        np.testing.assert_allclose(actual[name], expected[name] / own, rtol=1e-5, atol=1e-7)
    older = [name for name in actual if name not in names]
    assert not any(np.allclose(actual[name], expected[name] / own, rtol=1e-2) for name in older)
