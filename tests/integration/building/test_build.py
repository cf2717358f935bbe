"""Invariants of a build: it has every row once, publishes nothing on failure, and does not depend on workers."""

import json
from pathlib import Path

import lancedb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import lorif_core as lc
from flows.build import build
from lorif_core.config import Config
from lorif_core.curvature.randomized_svd import fit_layers, layer_groups
from lorif_core.curvature.scan import ScanRequest, ScanResult, scan_blocks
from lorif_core.errors import IncompleteBuildError, UserError
from lorif_core.gradients.codes import CodeLayout
from lorif_core.lifecycle.index_shard import NO_SCORED_TOKEN, ShardIndexer
from lorif_core.lifecycle.plan import make_plan
from lorif_core.storage.lease import hold_lease
from lorif_core.tables.store import Store
from tests.integration.conftest import MakeConfig
from tests.integration.rows import stored_rows

ROWS = 1099


def test_a_generation_has_every_row_once_and_lists_skipped_examples(built: Config) -> None:
    generation = Store(built.index).latest()
    rows = stored_rows(built, generation.factors_version)
    assert len(rows) == generation.rows == ROWS
    assert set(rows) == {f"s{i}" for i in range(1100) if i != 7}
    assert json.loads(generation.skipped_json) == [["s7", NO_SCORED_TOKEN]]


def test_tables_are_plain_lancedb(built: Config) -> None:
    database = lancedb.connect(built.index)
    factors = database.open_table("factors")
    assert factors.count_rows() == ROWS
    row = factors.search().where("example_id = 's0'").to_list()[0]
    expected = {
        "example_id",
        "shard",
        "uri",
        "row",
        "tokens",
        "loss",
        "content_hash",
        "checkpoint",
        "spec",
        "text",
    }
    assert expected <= set(row)
    assert database.open_table("generations").count_rows() >= 1
    assert database.open_table("curvature").count_rows() == 8 * 2 * 16


def test_two_ray_workers_equal_one_process(built: Config) -> None:
    """Compares rows and curvature of the distributed build with the same steps in this process."""
    plan = make_plan(built)
    indexer = ShardIndexer(built, plan.spec)
    stored = stored_rows(built)
    layout = CodeLayout(plan.spec.layers, plan.spec.code)
    codes, scales = [], []
    for shard in plan.shards:
        rows, _, _ = indexer.encode(list(indexer.read(shard)))
        codes.append(torch.from_numpy(rows.codes).float())
        scales.append(torch.from_numpy(rows.scales))
        for row, example in enumerate(rows.examples):
            expected = np.concatenate([codes[-1][row].numpy(), scales[-1][row].numpy()])
            actual = np.frombuffer(stored[example.example_id], np.float32)
            np.testing.assert_allclose(expected, actual, rtol=1e-5, atol=1e-5 * np.abs(actual).max())

    def scan(request: ScanRequest) -> ScanResult:
        return scan_blocks(zip(codes, scales, strict=True), layout, request)

    dims = [layer.dim for layer in plan.spec.layers]
    single = fit_layers(range(len(dims)), dims, ROWS, plan.curvature, scan)
    store = Store(built.index)
    generation = store.latest()
    for index, distributed in store.curvatures.layers(generation, generation.newest):
        np.testing.assert_allclose(distributed.sigma2, single[index].sigma2[: single[index].rank], rtol=1e-5)
        queries = torch.randn(3, dims[index], generator=torch.Generator().manual_seed(index))
        expected, actual = single[index].fold(queries), distributed.fold(queries)
        assert (expected - actual).norm() <= 1e-5 * expected.norm()


def test_layer_groups_give_the_same_curvature(built: Config) -> None:
    """With memory for one layer at a time there are more passes, but the numbers are equal."""
    from lorif_core.tables.blocks import block_rows

    plan = make_plan(built)
    dims = [layer.dim for layer in plan.spec.layers]
    assert len(layer_groups(dims, ROWS, plan.curvature, 4.0)) == 1
    assert len(layer_groups(dims, ROWS, plan.curvature, 1e-4)) > 1
    with pytest.raises(UserError, match=r"compute\.memory_gb"):
        layer_groups(dims, ROWS, plan.curvature, 1e-6)
    assert block_rows(plan.layout, 4.0) > block_rows(plan.layout, 1e-3) >= 16


def test_python_api_agrees_with_itself(built: Config) -> None:
    index = lc.open_index(built.index)
    queries = ["the cat sees it", {"prompt": "the dog ", "completion": "runs"}]
    ids, scores = index.scores(queries)
    assert scores.shape == (2, ROWS) and scores.dtype == np.float32 and len(ids) == ROWS
    for row, top in enumerate(index.top_k(queries, 5)):
        order = sorted(range(ROWS), key=lambda i: (-scores[row, i], ids[i]))
        assert [hit.example_id for hit in top.proponents] == [ids[i] for i in order[:5]]
        assert top.opponents[0].score == scores[row].min()
    assert [generation.generation for generation in index.generations()] == [1]


def test_a_build_with_a_damaged_file_publishes_nothing_and_resumes(
    make_config: MakeConfig, corpus_file: Path, tmp_path: Path, built: Config
) -> None:
    lines = corpus_file.read_text().splitlines(keepends=True)
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(lines[:600]))
    content = "".join(lines[600:])
    changing = folder / "b.jsonl"
    changing.write_text(content)
    config = make_config(tmp_path / "index", corpus={"uri": str(folder)}, code={"dtype": "float32"})
    plan = make_plan(config)
    changing.write_text(content.replace("cat", "CAT"))  # after the plan listed it

    from prefect import flow

    from tasks.indexing import index_shards
    from tasks.model_workers import ModelWorkers

    @flow
    def index_only() -> None:
        with hold_lease(config.index, config.storage, "build") as lease, ModelWorkers(config) as workers:
            index_shards.fn(config, plan, lease, False, workers)

    with pytest.raises(IncompleteBuildError, match=r"b\.jsonl"):
        index_only()
    store = Store(config.index)
    assert store.generations() == []
    assert len(stored_rows(config)) == 599
    changing.write_text(content)
    assert build(config).rows == ROWS
    expected = stored_rows(built)
    for name, row in stored_rows(config).items():
        np.testing.assert_allclose(
            np.frombuffer(row, np.float32), np.frombuffer(expected[name], np.float32), rtol=1e-4, atol=1e-4
        )


def test_a_rebuild_drops_rows_that_left_the_corpus_and_readers_keep_theirs(
    make_config: MakeConfig, corpus_file: Path, tmp_path: Path, prefect_server: None, ray_session: None
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    lines = corpus_file.read_text().splitlines(keepends=True)
    corpus.write_text("".join(lines[:40]))
    config = make_config(tmp_path / "index", corpus={"uri": str(corpus)}, curvature={"kind": "none"})
    build(config)
    reader = lc.open_index(config.index)
    before = reader.scores(["the cat"])
    corpus.write_text("".join(lines[20:50]))
    assert build(config).rows == 30
    after = reader.scores(["the cat"])
    assert before[0] == after[0] and np.array_equal(before[1], after[1])
    assert set(lc.open_index(config.index).scores(["the cat"])[0]) == {f"s{i}" for i in range(20, 50)}
    with pytest.raises(UserError, match=r"projection\.factor \(4 there, 8 here\)"):
        build(make_config(tmp_path / "index", corpus={"uri": str(corpus)}, projection={"factor": 8}))
    assert len(Store(config.index).generations()) == 2
    assert build(config).generation == 2, "a build that changes nothing must publish nothing"
    assert len(Store(config.index).generations()) == 2


def test_attribute_writes_its_three_files(built: Config, tmp_path: Path) -> None:
    from flows.attribute import attribute

    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"id": "q1", "text": "the cat sees"}\n{"id": "q2", "prompt": "a ", "completion": "dog"}\n')
    out = tmp_path / "out"
    summary = attribute(built, str(queries), str(out), 3)
    table = pq.read_table(out / "scores.parquet").to_pylist()
    assert len(table) == 2 * 2 * 3 == summary["scores"]
    assert list(table[0]) == ["query_id", "rank", "side", "example_id", "score", "shard", "checkpoint", "text"]
    expected = lc.open_index(built.index).top_k(["the cat sees"], 3)[0]
    ids = [row["example_id"] for row in table if row["query_id"] == "q1" and row["side"] == "proponent"]
    assert ids == [hit.example_id for hit in expected.proponents]
    assert [row["rank"] for row in table[:3]] == [1, 2, 3]
    assert "<html" in (out / "report.html").read_text()
    assert json.loads((out / "summary.json").read_text())["bytes_per_example"] > 0
    with pytest.raises(UserError, match="not empty"):
        attribute(built, str(queries), str(out), 3)
