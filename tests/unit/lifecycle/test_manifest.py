"""Invariant: an update indexes and removes only the difference between the corpus and the generation."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorif_core.corpus.shards import Listing
from lorif_core.errors import LorifError
from lorif_core.lifecycle.manifest import compare, known_files
from lorif_core.spec import FileTag, ShardRef, parse_shard_key
from lorif_core.tables.generation import Part
from lorif_core.tables.inventory import Inventory, InventoryEntry, recount_parts
from tests.unit.tables.small_store import SPEC

HASH = SPEC.hash


def shards(name: str, etag: str, count: int, size: int = 10) -> list[ShardRef]:
    return [ShardRef(f"/corpus/{name}", name, etag, size, 4 * k, 4, None) for k in range(count)]


def inventory_of(refs: Iterable[ShardRef], spec: str = HASH) -> Inventory:
    return Inventory(
        7,
        tuple(InventoryEntry(spec, ref.key, number, f"{number}.lance", 4, 12) for number, ref in enumerate(refs)),
    )


def listing(refs: Iterable[ShardRef], known: Iterable[FileTag] = (), damaged: Iterable[FileTag] = ()) -> Listing:
    refs = tuple(refs)
    files = {ref.file for ref in refs} | {*known, *damaged}
    return Listing(refs, tuple((file.name, "cut off") for file in damaged), tuple(sorted(files)))


@given(
    st.text(min_size=1), st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(0, 10**12),
    st.integers(0, 10**9), st.integers(1, 512),
)  # fmt: skip
def test_a_key_contains_file_and_range(name: str, etag: str, size: int, start: int, rows: int) -> None:
    """Names may contain any characters; an ETag has no brackets."""
    etag = etag.replace("[", "").replace("]", "")
    shard = ShardRef("x", name, etag, size, start, rows)
    assert parse_shard_key(shard.key) == (shard.file, start, start + rows)


def test_names_that_look_like_keys_are_parsed_and_other_texts_are_refused() -> None:
    shard = ShardRef("x", "a[0:4]@b-5", "9-2", 7, 4, 4)
    assert parse_shard_key(shard.key) == (FileTag("a[0:4]@b-5", "9-2", 7), 4, 8)
    with pytest.raises(ValueError, match="not the key"):
        parse_shard_key("a.jsonl")


def test_files_are_new_changed_moved_vanished_or_unchanged() -> None:
    before = [
        *shards("same", "1", 2), *shards("changed", "1", 2), *shards("gone", "5", 1), *shards("old-name", "77", 1),
    ]  # fmt: skip
    same = FileTag("same", "1", 10)
    after = [*shards("changed", "2", 1), *shards("new", "3", 1), *shards("new-name", "77", 1)]
    changes = compare(inventory_of(before), listing(after, [same]), remove_vanished=False)
    assert (changes.new, changes.changed, changes.moved, changes.vanished) == (
        ("new", "new-name"), ("changed",), ("old-name",), ("gone",),
    )  # fmt: skip
    assert {shard.name for shard in changes.shards} == {"changed", "new", "new-name"}
    assert {parse_shard_key(key)[0].name for _, key in changes.retained} == {"same", "gone"}
    assert changes.dropped_rows == 3 * 4 and not changes.is_empty
    dropping = compare(inventory_of(before), listing(after, [same]), remove_vanished=True)
    assert dropping.dropped_rows == 4 * 4 and dropping.vanished == ("gone",)


def test_an_unchanged_corpus_changes_nothing() -> None:
    before = [*shards("a", "1", 2), *shards("b", "1", 1)]
    known = known_files(inventory_of(before), [])
    assert known == {FileTag("a", "1", 10), FileTag("b", "1", 10)}
    assert compare(inventory_of(before), listing([], known), remove_vanished=True).is_empty


def test_rows_of_a_damaged_file_stay_until_it_is_repaired() -> None:
    before = [*shards("a", "1", 2), *shards("b", "1", 1)]
    changes = compare(
        inventory_of(before), listing([], [FileTag("b", "1", 10)], [FileTag("a", "2", 3)]), remove_vanished=True
    )
    assert changes.is_empty and len(changes.retained) == 3


def test_a_file_with_a_gap_or_a_quarantined_part_is_read_again() -> None:
    complete, gap, late = shards("a", "1", 3), shards("b", "1", 3), shards("c", "1", 3)
    inventory = inventory_of([*complete, gap[0], gap[2], late[1]])
    assert known_files(inventory, []) == {FileTag("a", "1", 10)}
    assert known_files(inventory, [complete[2].key]) == set() == known_files(inventory, ["a"])
    changes = compare(inventory, listing([*gap, *late], [FileTag("a", "1", 10)]), remove_vanished=False)
    assert changes.shards == (gap[1], late[0], late[2]) and changes.dropped_rows == 0 and not changes.changed


def test_rows_of_every_spec_stay_or_leave_with_their_file() -> None:
    """Rows of an older checkpoint are not indexed again at a newer one just because their file still exists."""
    old, new = shards("a", "1", 2), shards("b", "1", 1)
    inventory = Inventory(
        7, (*inventory_of(old, "older").entries, InventoryEntry(HASH, new[0].key, 9, "9.lance", 4, 12))
    )
    known = known_files(inventory, [])
    assert compare(inventory, listing([], known), remove_vanished=False).retained == inventory.keys
    replaced = compare(inventory, listing(shards("a", "2", 1), [FileTag("b", "1", 10)]), remove_vanished=False)
    assert replaced.retained == {(HASH, new[0].key)} and replaced.dropped_rows == 8


def test_surplus_entries_are_unexpected_or_duplicate() -> None:
    refs = [*shards("a", "1", 2), *shards("a", "1", 1), *shards("b", "1", 1)]
    inventory = inventory_of(refs)
    expected = {(HASH, ref.key) for ref in refs[:2]}
    assert [entry.fragment for entry in inventory.surplus(expected)] == [2, 3]


def test_rows_without_a_part_are_an_error_and_empty_parts_are_left_out() -> None:
    part = Part(SPEC.to_json(), SPEC.checkpoint, "/m", None, "", "none", "{}", False, 0, 0)
    other = Part('{"a": 1}', "sha256:1", "/m", None, "", "none", "{}", False, 0, 0)
    (recounted,) = recount_parts([other, part], inventory_of(shards("a", "1", 3)))
    assert (recounted.rows, recounted.tokens, recounted.fragments) == (12, 36, None)
    of_other = inventory_of(shards("a", "1", 2), other.spec)
    both = Inventory(1, (*of_other.entries, InventoryEntry(HASH, "x", 5, "y", 1, 2)))
    assert [part.fragments for part in recount_parts([other, part], both)] == [((0, 1),), ((5, 5),)]
    with pytest.raises(LorifError, match="no part"):
        recount_parts([other], inventory_of(shards("a", "1", 1)))
