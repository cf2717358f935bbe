"""Invariant: an inventory reads no row if the contents of files are recorded, and is the same if they are not."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from lorif_core.curvature.scan import ScanRequest
from lorif_core.spec import ShardRef
from lorif_core.storage.objects import Objects
from lorif_core.tables.contents import ShardCount, decode_contents, file_contents, with_contents
from lorif_core.tables.datasets import Tables
from lorif_core.tables.file_digests import sealed
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.store import Store
from tasks.workers.curvature import CurvatureRole
from tests.unit.tables.small_store import SPEC, commit, finished, keep_only, shard


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables that were scanned so far."""
    names: list[str] = []
    scan = Tables.scan

    def recorded(self: Tables, name: str, *arguments: object, **options: object) -> Iterator[pa.RecordBatch]:
        names.append(name)
        return scan(self, name, *arguments, **options)

    monkeypatch.setattr(Tables, "scan", recorded)
    return names


def without_records(store: Store) -> Inventory:
    shutil.rmtree(Path(store.uri, "_lorif", "digests"))
    return Store(store.uri).rows.inventory()


def test_an_inventory_comes_from_the_manifest_and_the_records(store: Store, scans: list[str]) -> None:
    commit(store, 0, 1)
    commit(store, 2)
    recorded = Store(store.uri).rows.inventory()
    assert not scans and (recorded.rows, recorded.tokens) == (12, 36)
    assert without_records(store) == recorded and scans


def test_rewritten_fragments_are_recorded(store: Store, scans: list[str]) -> None:
    commit(store, 0, 1)
    (_, second) = store.rows.fragment_ids(store.rows.version())
    store.rows.rewrite([second], lambda batch: pc.match_substring(batch.column("example_id"), "/3"))
    scans.clear()
    recorded = Store(store.uri).rows.inventory()
    assert not scans and [entry.rows for entry in recorded.entries] == [4, 3]
    assert without_records(store) == recorded


def test_a_record_that_differs_from_the_manifest_is_not_believed(store: Store, scans: list[str]) -> None:
    commit(store, 0)
    expected, objects = store.rows.inventory(), Objects(store.uri, store.storage)
    (entry,) = objects.names("digests")
    value = objects.get(entry.name) or {}
    (runs,) = value["contents"].values()
    runs[0][4][2] += 1
    objects.put(entry.name, sealed({key: item for key, item in value.items() if key != "checksum"}))
    assert Store(store.uri).rows.inventory() == expected and scans
    objects.put(entry.name, {**value, "table": "changed"})
    assert Store(store.uri).rows.inventory() == expected, "a damaged record is no record"


def test_contents_are_read_as_they_were_written() -> None:
    other = ShardRef("/corpus/[0:1]@.jsonl", "[0:1]@.jsonl", "a-b@c", 7, 512, 9, None)
    counts = [
        ShardCount(SPEC.hash, shard(0).key, 4, 12),
        ShardCount(SPEC.hash, shard(3).key, 3, 11),
        ShardCount("another", shard(3).key, 3, 11),
        ShardCount(SPEC.hash, other.key, 9, 1),
    ]
    fragment = {"id": 0, "files": [{"path": "a.lance"}]}
    written = file_contents(json.loads(with_contents(json.dumps(fragment), counts)))
    assert list(written) == ["a.lance"] and decode_contents(written["a.lance"]) == counts
    assert file_contents(fragment) == {}


def joined(store: Store, *numbers: int) -> Inventory:
    store.rows.commit_wave(
        [store.rows.join([finished(store, number) for number in numbers])], store.rows.version()
    )
    return store.rows.inventory()


def test_rows_that_were_only_written_again_are_no_difference(store: Store) -> None:
    """A fragment has many shards, and one that leaves makes all others move to another file."""
    before = joined(store, 0, 1, 2)
    keep_only(store, 0, 2)
    commit(store, 3)
    after = store.rows.inventory()
    left, entered = before.difference(after), after.difference(before)
    assert [entry.shard for entry in left.entries] == [shard(1).key] and left.mixed == {before.fragments[0]}
    assert [entry.shard for entry in entered.entries] == [shard(3).key] and not entered.mixed
    assert left.selections == [(before.fragments[0], (shard(1).key,))]
    assert entered.selections == [(entered.fragments[0], None)]
    assert len(after.outside(before).entries) == 3, "rows that may have to be looked at again"


def test_a_curvature_scans_exactly_the_rows_of_a_difference(store: Store) -> None:
    before = joined(store, 0, 1, 2)
    keep_only(store, 0, 2)
    left = before.difference(store.rows.inventory())
    role = CurvatureRole(store, SPEC.to_json(), before.version, 100, 1)
    request = ScanRequest("gram", {0: torch.eye(16)})
    assert role.scan(request, left.selections).rows == 4
    assert role.scan(request, before.selections).rows == 12
