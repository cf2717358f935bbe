"""Invariants: commits cost as much as the table is large; joined shards are as durable as single ones."""

from pathlib import Path

import lance
import pytest

from lorif_core.errors import LorifError
from lorif_core.lifecycle import waves
from lorif_core.lifecycle.garbage import find_garbage
from lorif_core.lifecycle.indexing import adopt
from lorif_core.lifecycle.verify import verify
from lorif_core.lifecycle.waves import Waves
from lorif_core.tables.datafiles import DataFiles
from lorif_core.tables.datasets import Tables
from lorif_core.tables.receipts import Receipt, Receipts
from lorif_core.tables.store import Store
from tests.unit.tables.small_store import (
    LEASE,
    SPEC,
    finished,
    generation,
    keep_only,
    new_store,
    rows,
    shard,
    shard_numbers,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


def new_waves(store: Store) -> Waves:
    inventory = store.rows.inventory()
    return Waves(store, LEASE, SPEC.hash, inventory.version, len(inventory.keys))


def index(store: Store, *numbers: int) -> list[Receipt]:
    """Finished shards, with their receipts stored, as a worker leaves them."""
    receipts = [finished(store, number) for number in numbers]
    for receipt in receipts:
        Receipts(store.uri, store.storage).write(receipt, SPEC.hash)
    return receipts


def join(store: Store, growing: Waves, group: tuple[Receipt, ...]) -> None:
    joined = store.rows.join(group)
    Receipts(store.uri, store.storage).write(joined, SPEC.hash)
    growing.add_joined(group, joined)


def data_files(store: Store) -> int:
    return len(DataFiles(store.uri, store.storage).list_files("factors"))


def build(store: Store, count: int) -> None:
    growing = new_waves(store)
    for number in range(count):
        (receipt,) = index(store, number)
        if group := growing.add(receipt):
            join(store, growing, group)
    if group := growing.rest():
        join(store, growing, group)
    growing.commit()


def test_the_manifests_of_a_build_are_few_times_the_last_one(store: Store) -> None:
    """With waves of a fixed number of shards they grow with the square of the table."""
    build(store, 300)
    assert store.rows.inventory().rows == 1200 and shard_numbers(store) == set(range(300))
    versions = store.rows.version()
    assert versions < 20, "300 / 16 = 19 commits, if they did not grow"
    assert data_files(store) == len(store.rows.fragment_ids(versions)) < 20
    assert not Receipts(store.uri, store.storage).all()


def test_old_versions_go_while_the_build_runs_and_those_of_generations_stay(store: Store) -> None:
    """What is not committed yet stays, too; a suspended committer of before finds its versions gone and stops."""
    build(store, 17)
    published = store.publish(generation(store, 1))
    before = store.rows.version()
    staged = index(store, 200)
    build(store, 100)
    versions = [entry["version"] for entry in lance.dataset(f"{store.uri}/factors.lance").versions()]
    assert published.factors_version in versions and len([v for v in versions if v > before]) == 1
    assert [item.shards for item in verify(store).damage if item.table == "factors"] == []
    assert DataFiles(store.uri, store.storage).adoptable(staged) == staged
    rows_before = store.rows.counts()
    with pytest.raises(LorifError):
        store.rows.commit_wave(staged, before)
    assert store.rows.counts() == rows_before


def test_a_build_goes_on_if_old_versions_cannot_be_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LorifError("the store refuses to delete")

    monkeypatch.setattr(Tables, "remove_versions", fail)
    build(store, 40)
    assert store.rows.inventory().rows == 160


def test_a_fragment_is_closed_when_it_is_large(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(size for _, size in finished(store, 0).files)
    monkeypatch.setattr(waves, "FRAGMENT_BYTES", 5 * size)
    growing = new_waves(store)
    groups = [growing.add(finished(store, number)) for number in range(12)]
    assert [len(group) for group in groups if group] == [5, 5] and len(growing.rest()) == 2


def test_joined_rows_are_those_of_their_shards_in_the_order_of_the_corpus(store: Store) -> None:
    growing = new_waves(store)
    for receipt in index(store, 2, 0, 1):
        growing.add(receipt)
    join(store, growing, growing.rest())
    growing.commit()
    (block,) = store.rows.scan(store.rows.version(), 100)
    assert block.example_ids == [f"it's {number}/{row}" for number in range(3) for row in range(4)]
    assert (block.codes[4:8].numpy() == rows(1).codes).all()
    store.publish(generation(store, 1))
    assert {item.table for item in verify(store).damage} == {"curvature"}, "which the test did not fit"
    keep_only(store, 0, 2)
    assert shard_numbers(store) == {0, 2} and store.rows.counts() == (8, 24)


@pytest.mark.parametrize("killed_after", ["index", "join", "receipt", "removal", "commit"])
def test_a_kill_at_any_moment_loses_no_finished_shard(store: Store, killed_after: str) -> None:
    """The next run adopts what is finished, each shard once; nothing that it does not need stays in the way."""
    growing, receipts = new_waves(store), Receipts(store.uri, store.storage)
    group = tuple(index(store, 0, 1, 2))
    joined = store.rows.join(group) if killed_after != "index" else None
    if joined is not None and killed_after != "join":
        receipts.write(joined, SPEC.hash)
        if killed_after in ("removal", "commit"):
            growing.add_joined(group, joined)
        if killed_after == "commit":
            store.rows.commit_wave([joined], store.rows.version())
    index(store, 3)
    resumed = new_waves(store)
    present = shard_numbers(store)
    adopt(store, SPEC.hash, {shard(number).key for number in range(5) if number not in present}, resumed)
    keep_only(store, *range(5))
    assert shard_numbers(store) == {0, 1, 2, 3} and store.rows.counts() == (16, 48)
    garbage = find_garbage(store, 1)
    DataFiles(store.uri, store.storage).remove(garbage.files)
    receipts.remove_named(garbage.receipts)
    assert store.rows.counts() == (16, 48) and not receipts.all()


def test_a_joined_shard_that_is_no_longer_wanted_is_left_out(store: Store) -> None:
    """The corpus changed between the kill and the next run."""
    joined = store.rows.join(index(store, 0, 1, 2))
    Receipts(store.uri, store.storage).write(joined, SPEC.hash)
    resumed = new_waves(store)
    adopt(store, SPEC.hash, {shard(number).key for number in (0, 2, 5)}, resumed)
    keep_only(store, 0, 2, 5)
    assert shard_numbers(store) == {0, 2} and store.rows.counts() == (8, 24)


def test_garbage_collection_spares_what_a_killed_run_has_joined(store: Store) -> None:
    group = index(store, 0, 1)
    joined = store.rows.join(group)
    Receipts(store.uri, store.storage).write(joined, SPEC.hash)
    garbage = find_garbage(store, 1)
    assert len(garbage.receipts) == 2, "of the single shards"
    assert {file.name for file in garbage.files} == {name for receipt in group for name, _ in receipt.files}
