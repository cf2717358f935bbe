"""Invariant: an update computes only new rows, and gives those of a full build; readers see all of it or none."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from prefect import flow
from scipy.stats import spearmanr

import lorif_core as lc
from flows.build import build
from flows.update import update
from lorif_core.config import Config
from lorif_core.errors import UserError
from lorif_core.gradients.roots import exact_roots
from lorif_core.lifecycle.update import make_update_plan
from lorif_core.model.loading import load_model
from lorif_core.search.queries import as_query
from lorif_core.search.query_encoder import QueryEncoder
from lorif_core.storage.lease import hold_lease
from lorif_core.tables.store import Store
from tasks.indexing import index_shards
from tasks.model_workers import ModelWorkers
from tests.integration.conftest import MakeConfig
from tests.integration.growing import Folder, codes_of, metadata_of, scores_of
from tests.integration.lorif import run
from tests.tiny_tokenizer import byte_tokenizer

QUERIES: list[object] = ["the cat sees it", {"prompt": "the dog ", "completion": "runs"}]
NONE = {"kind": "none"}
ONE = {"workers": 1}  # each takes seconds to start

needs_servers = pytest.mark.usefixtures("prefect_server", "ray_session")


@pytest.fixture
def folder(tmp_path: Path, corpus_file: Path) -> Folder:
    return Folder(tmp_path / "corpus", corpus_file)


def fresh(config: Config) -> Config:
    """The config of another index, which is built from the current corpus."""
    number = sum(path.name.startswith("fresh") for path in Path(config.index).parent.iterdir())
    other = config.model_copy(update={"index": str(Path(config.index).parent / f"fresh{number}")})
    build(other)
    return other


def write_config(config: Config, folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
    return str(path)


@needs_servers
def test_rows_and_scores_after_updates_are_those_of_a_full_build(
    make_config: MakeConfig, folder: Folder, tmp_path: Path
) -> None:
    """With new, changed, moved and vanished files, and with a reader of the first generation."""
    folder.put("a", range(20, 320))
    folder.put("b", range(320, 340))
    config = make_config(tmp_path / "index", corpus=folder.section, code={"dtype": "float32"}, compute=ONE)
    first = build(config)
    reader = lc.open_index(config.index)
    before = reader.scores(QUERIES)
    assert update(config) == first, "nothing may be published without a change"
    store = Store(config.index)
    inventory_before = store.rows.inventory(first.factors_version)

    folder.put("b", range(320, 340), ("cat", "tree"))
    folder.put("c", range(340, 370))
    second = update(config)
    assert second.generation == 2 and second.rows == 350
    assert second.changes["files"] == {"new": 1, "changed": 1, "moved": 0, "vanished": 0}
    assert (second.changes["rows_added"], second.changes["rows_removed"]) == (50, 20)
    assert second.changes["curvature"] == "merged" and second.newest.left == 20
    inventory = store.rows.inventory(second.factors_version)
    computed = {entry.shard[:7] for entry in inventory.difference(inventory_before).entries}
    assert computed == {"b.jsonl", "c.jsonl"}, "the file of 300 rows must not be computed again"
    rebuilt = fresh(config)
    assert codes_of(config) == codes_of(rebuilt) and metadata_of(config) == metadata_of(rebuilt)
    updated_scores, rebuilt_scores = scores_of(config, QUERIES), scores_of(rebuilt, QUERIES)
    for query in range(len(QUERIES)):
        names = sorted(updated_scores)
        pairs = [[scores[name][query] for name in names] for scores in (updated_scores, rebuilt_scores)]
        assert spearmanr(*pairs).statistic >= 0.99
    after = reader.scores(QUERIES)
    assert after[0] == before[0] and np.array_equal(after[1], before[1])

    folder.rename("a", "z")
    folder.drop("c")
    third = update(config)
    assert third.changes["files"] == {"new": 1, "changed": 0, "moved": 1, "vanished": 1}
    assert third.rows == 350 and third.changes["curvature"] == "fitted", "most rows have moved"
    assert {row[1].partition("[")[0] for row in metadata_of(config).values()} == {"b.jsonl", "c.jsonl", "z.jsonl"}
    fourth = update(config, remove_vanished=True)
    assert fourth.rows == 320 and fourth.changes["rows_removed"] == 30
    assert codes_of(config) == codes_of(fresh(config))
    assert [generation.generation for generation in store.generations()] == [1, 2, 3, 4]

    (path,) = (tmp_path / "corpus").glob("b.jsonl")
    time, text = path.stat().st_mtime_ns, path.read_text()
    path.rename(path.with_name("y.jsonl"))
    moved = make_update_plan(config).changes
    assert (moved.moved, moved.vanished, moved.dropped_rows) == (("b.jsonl",), (), 20)
    path.with_name("y.jsonl").write_text(text.replace("s3", "t3"))
    os.utime(path.with_name("y.jsonl"), ns=(time, time))
    other = make_update_plan(config).changes
    assert (other.moved, other.vanished, other.dropped_rows) == ((), ("b.jsonl",), 0), "its ids differ"


@needs_servers
def test_a_newer_metric_folds_queries_as_if_codes_were_whitened_again(
    make_config: MakeConfig, folder: Folder, tmp_path: Path
) -> None:
    folder.put("a", range(20, 80))
    config = make_config(
        tmp_path / "index", corpus=folder.section, projection={"kind": "random", "whiten": True, "factor": 4},
        code={"kind": "dense", "dtype": "float32"}, curvature=NONE, compute=ONE,
    )  # fmt: skip
    first = build(config)
    rows = codes_of(config)
    folder.put("b", range(80, 110), ("red", "old"))
    second = update(config)
    assert second.index_spec == first.index_spec, "the whitening of the codes must be frozen"
    drift = second.changes["drift"]
    assert 0 < drift["mean"] <= drift["worst"] and drift["layer"] in {
        layer.name for layer in first.index_spec.layers
    }
    updated_rows = codes_of(config)
    assert {name: updated_rows[name] for name in rows} == rows and second.newest.metric is not None

    again = build(config)
    assert again == second, "a build of the same corpus changes nothing, not the metric either"

    store = Store(config.index)
    frozen, newer = (
        store.whitenings.covariances(name)
        for name in (first.index_spec.projection.whitening, second.newest.metric)
    )
    assert frozen is not None and newer is not None
    inventory = store.rows.inventory(second.factors_version)
    assert newer.tokens == inventory.tokens and newer.digest() != frozen.digest()

    # the same rows and queries, whitened with the newer covariances, which are stored as float16
    model = load_model(config.model, config.storage)
    encoder = QueryEncoder(model, first.index_spec, exact_roots(newer))
    examples = {}
    for name in ("a", "b"):
        for line in (tmp_path / "corpus" / f"{name}.jsonl").read_text().splitlines():
            record = json.loads(line)
            examples[record["id"]] = as_query({"text": record["text"]}, 0)
    rows_ND = torch.cat(encoder.gradients(list(examples.values())).layers, dim=1).double()
    queries_QD = torch.cat(encoder.gradients([as_query(query, 0) for query in QUERIES]).layers, dim=1).double()
    expected = (rows_ND @ queries_QD.T).numpy()
    scores = scores_of(config, QUERIES)
    assert scores.keys() == examples.keys()
    np.testing.assert_allclose(
        np.stack([scores[name] for name in examples]), expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max()
    )


@needs_servers
def test_the_next_update_discards_the_work_of_a_crashed_update_that_no_longer_applies(
    make_config: MakeConfig, folder: Folder, tmp_path: Path
) -> None:
    """The crashed update has committed a file that is removed later, and has removed rows of a vanished file."""
    for number in range(3):
        folder.put(f"{number}", range(20 + 20 * number, 40 + 20 * number))
    config = make_config(tmp_path / "index", corpus=folder.section, curvature=NONE, compute=ONE)
    first = build(config)
    rows = codes_of(config)
    folder.put("bad", range(200, 220), ("cat", "dog"))
    folder.put("good", range(220, 240))
    folder.drop("0")

    @flow
    def die_before_publishing() -> None:
        plan = make_update_plan(config, remove_vanished=True)
        with hold_lease(config.index, config.storage, "update") as lease, ModelWorkers(config) as workers:
            index_shards.fn(config, plan.build, lease, False, workers)

    die_before_publishing()
    store = Store(config.index)
    assert store.latest() == first and codes_of(config) == rows and store.rows.counts()[0] == 80
    folder.drop("bad")
    second = update(config)
    assert second.rows == 80 and second.changes["files"]["vanished"] == 1, (
        "rows of the vanished file must be restored: this update does not remove them"
    )
    assert {name: codes_of(config)[name] for name in rows} == rows
    folder.put("0", range(20, 40))
    keeping = config.model_copy(update={"update": config.update.model_copy(update={"keep": 2})})
    update(keeping)
    assert codes_of(config) == codes_of(fresh(config))
    assert [generation.generation for generation in store.generations()] == [2, 3], "two must be retained"


@needs_servers
def test_bad_input_is_refused_before_anything_is_written(
    make_config: MakeConfig, folder: Folder, tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.put("a", range(20, 40))
    config = make_config(tmp_path / "index", corpus=folder.section, curvature=NONE, compute=ONE)
    path = write_config(config, tmp_path)
    code, _, err = run(capsys, "update", "-c", path)
    assert code == 2 and "does not exist; run lorif build first" in err and not (tmp_path / "index").exists()
    build(config)
    store = Store(config.index)
    version = store.rows.version()
    code, _, err = run(capsys, "update", "-c", path, "projection.factor=8")
    assert code == 2 and "projection.factor (4 there, 8 here)" in err
    other = tmp_path / "other-tokenizer"
    load_model(config.model, config.storage).model.save_pretrained(other)
    byte_tokenizer(bos=True).save_pretrained(other)
    for name in model_folder.iterdir():
        if not name.name.startswith("token"):
            (other / name.name).write_bytes(name.read_bytes())
    code, _, err = run(capsys, "update", "-c", path, f"model.path={other}")
    assert code == 2 and "tokenisation.tokenizer" in err
    code, _, err = run(capsys, "update", "-c", path, "update.refit_share=2")
    assert code == 2 and "update.refit_share" in err

    folder.drop("a")
    folder.put("b", range(30, 50))
    with pytest.raises(UserError, match=r"'s30'.*row 0 of .*b\.jsonl.*a\.jsonl, which left .*--remove-vanished"):
        update(config)
    assert store.rows.version() == version and len(store.generations()) == 1
    assert update(config, remove_vanished=True).rows == 20
