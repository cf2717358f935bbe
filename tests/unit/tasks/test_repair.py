"""Invariant: the next update reads every file again that a repair has taken rows from."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lorif_core.config import ComputeConfig
from lorif_core.lifecycle.manifest import known_files
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store
from tasks.repair import repair
from tests.unit.tables.small_store import LEASE, commit, generation, new_store, shard


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A generation without a curvature, of three shards of one file, each in a fragment of its own."""
    store = new_store(tmp_path)
    commit(store, 0, 1, 2)
    built = generation(store, 1)
    part = replace(built.newest, curvature_kind="none")
    store.publish(replace(built, parts_json=json.dumps([asdict(part)])))
    return store


def repaired_without(store: Store, number: int) -> Generation:
    """The generation of a repair after the data file of a shard was damaged."""
    (damaged,) = (entry.file for entry in store.rows.inventory().entries if entry.shard == shard(number).key)
    return repair(store, {damaged}, ComputeConfig(), LEASE, refit=False)


def unread_files(store: Store) -> set[Any]:
    """Files that an update of the newest generation does not read."""
    newest = store.latest()
    places = [place for place, _ in json.loads(newest.quarantined_json)]
    return set(known_files(store.rows.inventory(newest.factors_version), places))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_lost_shard_is_quarantined_wherever_it_is_in_its_file(store: Store, number: int) -> None:
    assert unread_files(store) == {shard(0).file}
    published = repaired_without(store, number)
    assert published.rows == 8 and unread_files(store) == set()
    ((place, cause),) = json.loads(published.quarantined_json)
    assert place == shard(number).key and "lorif verify --repair" in cause


def test_files_are_quarantined_if_the_lost_shards_cannot_be_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The damaged file has no record of its contents, as in an index of an older lorif."""
    (entry,) = (entry for entry in store.rows.inventory().entries if entry.shard == shard(2).key)
    monkeypatch.setattr("lorif_core.tables.shard_rows._recorded_entries", lambda tables, fragments: {})
    (Path(store.uri) / "factors.lance" / "data" / entry.file).write_bytes(b"")
    repair(store, {entry.file}, ComputeConfig(), LEASE, refit=False)
    assert unread_files(store) == set() and json.loads(store.latest().quarantined_json)[0][0] == "x.jsonl"
