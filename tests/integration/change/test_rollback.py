"""Invariant: a rollback restores the index, for readers and as the base of the next change."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import lorif_core as lc
from flows.build import build
from flows.update import update
from lorif_core.lifecycle.removal import REMOVED
from lorif_core.tables.receipts import Receipt
from lorif_core.tables.store import Store
from tests.integration.change.test_gc import collect
from tests.integration.conftest import MakeConfig
from tests.integration.growing import Folder, codes_of, metadata_of
from tests.integration.lorif import run
from tests.patience import patience
from tests.unit.tables.small_store import SPEC, commit, generation, keep_only, rows, shard, shard_numbers

QUERIES = ["the cat sees it", {"prompt": "the dog ", "completion": "runs"}]
ONE = {"workers": 1}  # each takes seconds to start


def ids_of(store: Store) -> set[str]:
    """Examples of the newest generation."""
    version = store.latest().factors_version
    return {example_id for block in store.rows.scan(version, 9) for example_id in block.example_ids}


@pytest.fixture
def grown(tmp_path: Path) -> Store:
    """Three generations: of shard 0, of 0 and 1, of 1 and 2."""
    store = Store(str(tmp_path / "index"))
    store.create(SPEC)
    commit(store, 0)
    store.publish(generation(store, 1))
    commit(store, 1)
    store.publish(generation(store, 2))
    commit(store, 2)
    keep_only(store, 1, 2)
    store.publish(generation(store, 3))
    return store


def test_an_earlier_generation_is_restored_quickly(grown: Store, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.perf_counter()
    code, out, _ = run(capsys, "rollback", grown.uri, "2", "--json")
    seconds = time.perf_counter() - started
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and result["generation"] == 4 and result["rows"] == 8 and seconds < patience(20), seconds
    assert result["changes"] == {"command": "rollback", "to": 2, "removed_again": 0}
    assert ids_of(grown) == {f"it's {number}/{i}" for number in (0, 1) for i in range(4)}
    assert grown.rows.inventory().keys == {(SPEC.hash, shard(number).key) for number in (0, 1)}, (
        "the newest version must have these shards, too"
    )
    code, out, _ = run(capsys, "rollback", grown.uri, "2", "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["generation"] == 4, "a repeated rollback must do nothing"
    run(capsys, "rollback", grown.uri, "3")
    assert ids_of(grown) == {f"it's {number}/{i}" for number in (1, 2) for i in range(4)}
    collect(grown, keep=1)
    assert [retained.generation for retained in grown.generations()] == [5] and len(ids_of(grown)) == 8


def test_unknown_and_collected_generations_are_refused(grown: Store, capsys: pytest.CaptureFixture[str]) -> None:
    collect(grown, keep=2)
    mistakes = {
        "1": "generation 1 of .* was collected; available generations: 2, 3",
        "9": "never had a generation 9",
        "x": "x",
    }
    for number, message in mistakes.items():
        code, _, err = run(capsys, "rollback", grown.uri, number)
        assert code == 2 and len(err.strip().splitlines()) == 1
        assert re.search(message, err)
    code, _, err = run(capsys, "rollback", f"{grown.uri}-none", "1")
    assert code == 2 and "does not exist" in err
    assert [retained.generation for retained in grown.generations()] == [2, 3]


def test_examples_removed_in_the_meantime_stay_removed(grown: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """The spec of these rows has no ids, so an example is identified by its content."""
    examples = [replace(example, content_hash=f"{number:032}") for number, example in enumerate(rows(3).examples)]
    fragments = grown.rows.write(iter([replace(rows(3), examples=examples)]), shard(3), SPEC)
    grown.rows.commit_wave([Receipt(shard(3).key, tuple(fragments), 4, 12, 12, (), 0.0)], grown.rows.version())
    grown.publish(generation(grown, 4))
    keep_only(grown, 1, 2)
    grown.publish(generation(grown, 5))
    grown.rows.note_removed(pa.table({"example_id": ["another name"], "content_hash": [f"{2:032}"]}))
    code, out, _ = run(capsys, "rollback", grown.uri, "4", "--json")
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and result["rows"] == 11 and result["changes"]["removed_again"] == 1
    assert "it's 3/2" not in ids_of(grown) and {"it's 3/1", "it's 1/2"} < ids_of(grown)
    assert grown.latest().removals == 1 and grown.rows.skipped({shard(3).file}) == [("it's 3/2", REMOVED)]
    inventory = grown.rows.inventory()
    assert inventory.rows == 11 and len(inventory.keys) == len(inventory.fragments) == 3


def test_a_generation_whose_rows_were_all_removed_is_refused(
    grown: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = [replace(example, content_hash=f"{number:032}") for number, example in enumerate(rows(3).examples)]
    keep_only(grown)
    fragments = grown.rows.write(iter([replace(rows(3), examples=examples)]), shard(3), SPEC)
    grown.rows.commit_wave([Receipt(shard(3).key, tuple(fragments), 4, 12, 12, (), 0.0)], grown.rows.version())
    grown.publish(generation(grown, 4))
    keep_only(grown)
    commit(grown, 1)
    grown.publish(generation(grown, 5))
    hashes = [example.content_hash for example in examples]
    grown.rows.note_removed(pa.table({"example_id": ["another name"] * 4, "content_hash": hashes}))
    code, _, err = run(capsys, "rollback", grown.uri, "4")
    assert code == 2 and "all rows of generation 4" in err and "removed on request" in err
    assert grown.latest().generation == 5 and shard_numbers(grown) == {1}, "the newest version must be restored"
    assert run(capsys, "compact", grown.uri)[0] == 0


@pytest.mark.usefixtures("prefect_server", "ray_session")
def test_an_update_after_a_rollback_ignores_the_rolled_back_generation(
    make_config: MakeConfig, tmp_path: Path, corpus_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows and curvature are those of an index that never had the bad generation."""
    folder = Folder(tmp_path / "corpus", corpus_file)
    folder.put("a", range(20, 220))
    config = make_config(tmp_path / "index", corpus=folder.section, compute=ONE)
    build(config)
    before = lc.open_index(config.index).scores(QUERIES)
    folder.put("bad", range(300, 320), ("cat", "dog"))
    update(config)
    code, _, _ = run(capsys, "rollback", config.index, "1")
    after = lc.open_index(config.index).scores(QUERIES)
    assert code == 0 and after[0] == before[0] and np.array_equal(after[1], before[1])
    folder.drop("bad")
    folder.put("good", range(400, 420))
    newest = update(config)
    assert newest.generation == 4 and newest.rows == 220 and newest.changes["files"]["vanished"] == 0
    fresh = config.model_copy(update={"index": str(tmp_path / "fresh")})
    build(fresh)
    assert codes_of(config) == codes_of(fresh) and metadata_of(config) == metadata_of(fresh)
    store = Store(config.index)
    for _, fitted in store.curvatures.layers(newest, newest.newest):
        assert fitted.rows == 220

    # a rollback that crashes after it has restored the table, and before it publishes
    folder.drop("good")
    store.rows.rewind(store.generations()[0].factors_version)
    folder.put("more", range(500, 510))
    assert update(config).rows == 230, "published rows must not be lost"
