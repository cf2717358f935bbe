"""Invariant: compaction changes neither rows nor parts of a generation, and loses nothing that is committed."""

from dataclasses import replace
from pathlib import Path

import pytest

from lorif_core.errors import UserError
from lorif_core.lifecycle import compaction
from lorif_core.lifecycle.compaction import compact, small_fragments
from lorif_core.lifecycle.verify import verify
from lorif_core.tables.inventory import Inventory, InventoryEntry
from lorif_core.tables.store import Store
from tests.unit.tables.small_store import LEASE, commit, generation, new_store, shard_numbers


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


def codes(store: Store, version: int) -> dict[str, bytes]:
    blocks = store.rows.scan(version, 100)
    return {
        name: row.numpy().tobytes()
        for block in blocks
        for name, row in zip(block.example_ids, block.codes, strict=True)
    }


def test_small_fragments_become_one_and_all_rows_stay(store: Store) -> None:
    for number in range(5):
        commit(store, number)
    before = store.publish(generation(store, 1))
    after = compact(store, LEASE)
    assert after.generation == 2 and after.changes == {"command": "compact", "fragments": 1}
    assert store.rows.fragment_ids(after.factors_version) != store.rows.fragment_ids(before.factors_version)
    assert len(store.rows.fragment_ids(after.factors_version)) == 1
    assert codes(store, after.factors_version) == codes(store, before.factors_version)
    assert shard_numbers(store) == set(range(5))
    assert (after.rows, after.tokens) == (before.rows, before.tokens)
    assert not store.rows.inventory().difference(store.rows.inventory(before.factors_version)).entries
    assert {item.table for item in verify(store).damage} == {"curvature"}, "which the test did not fit"
    assert compact(store, LEASE) == after, "there is nothing left to join"


def test_rows_of_an_unfinished_build_are_not_lost(store: Store) -> None:
    commit(store, 0)
    store.publish(generation(store, 1))
    commit(store, 1)
    with pytest.raises(UserError, match="unfinished"):
        compact(store, LEASE)
    assert shard_numbers(store) == {0, 1}


def test_fragments_of_one_spec_are_grouped_up_to_the_size_of_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "FRAGMENT_BYTES", 100)
    entries = [InventoryEntry("older" if n < 3 else "newer", f"s{n}", n, f"{n}.lance", 1, 1) for n in range(9)]
    inventory = Inventory(1, tuple(replace(entry) for entry in entries))
    sizes = dict(enumerate([40, 40, 10, 50, 50, 99, 20, 20, 51]))
    assert small_fragments(inventory, sizes) == [[0, 1, 2], [3, 4], [6, 7]]
