"""Rows of `factors` by shard, and their removal: whole fragments are removed, other fragments are rewritten.

Rows are never only marked as deleted. A fragment that loses rows is rewritten without them in one commit, so rows
that the newest version lacks disappear from storage together with the older versions.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lorif_core.tables.checksums import damaged
from lorif_core.tables.contents import CONTENT_COLUMNS, ShardCounts, decode_contents, with_contents
from lorif_core.tables.datasets import Tables
from lorif_core.tables.file_digests import DIGESTS_KEY
from lorif_core.tables.inventory import Inventory, InventoryEntry, ShardKey, fragments_only_of
from lorif_core.tables.receipts import Receipt

log = logging.getLogger(__name__)

FRAGMENT_BYTES = 64 * 2**20
"""Bytes of a large fragment: rows are joined until a fragment has so many."""

_TABLE = "factors"
_ROWS_PER_BATCH = 512  # Lance makes a page of a larger batch, whose rows are then read slowly
RowMask = Callable[[pa.RecordBatch], pa.Array]
"""Selects rows of a batch, which has all columns, by one boolean per row."""


def read_inventory(tables: Tables, version: int | None = None, known: Inventory | None = None) -> Inventory:
    """The inventory of a version of `factors`, from its manifest and the recorded contents of its files.

    Rows are read only in fragments that have no record, such as those of an older lorif or of another tool, and
    whose content is not in `known`.
    """
    dataset = tables.require(_TABLE, version)
    fragments = {fragment.fragment_id: fragment for fragment in dataset.get_fragments()}
    names = {number: _content_name(fragment) for number, fragment in fragments.items()}
    entries: dict[str, list[InventoryEntry]] = {}
    for entry in known.entries if known is not None else ():
        entries.setdefault(entry.file, []).append(entry)
    # by name: a fragment that was committed twice has two numbers
    unread = {name: fragments[number] for number, name in names.items() if name not in entries}
    if unread:
        entries |= _recorded_entries(tables, unread)
    unrecorded = [fragment for name, fragment in unread.items() if name not in entries]
    for entry in _scan_entries(tables, int(dataset.version), unrecorded, names):
        entries.setdefault(entry.file, []).append(entry)
    renumbered = (
        replace(entry, fragment=number) for number, name in names.items() for entry in entries.get(name, [])
    )
    return Inventory(int(dataset.version), tuple(renumbered))


def reconcile(
    tables: Tables,
    expected: Set[ShardKey],
    required: Set[ShardKey] = frozenset(),
    base: int | None = None,
    known: Inventory | None = None,
) -> Inventory:
    """Reduce the newest version to the expected shards, each once; published versions keep their rows.

    Args:
        tables: tables of the index.
        expected: shards that may stay.
        required: expected shards that cannot be indexed again. If one is missing, because a run removed it and
            then crashed, the newest version is first reset to `base`.
        base: a published version that has all required shards.
        known: see `read_inventory`.

    Returns:
        The inventory of the newest version.
    """
    inventory = read_inventory(tables, known=known)
    if base is not None and not required <= inventory.keys:
        log.warning(
            "restoring rows that an unfinished run had removed; the shards that it added are indexed again"
        )
        tables.restore(_TABLE, base)
        inventory = read_inventory(tables, known=inventory)
    surplus = inventory.surplus(expected)
    if not surplus:
        return inventory
    duplicates = sum(entry.key in expected for entry in surplus)
    if duplicates:
        log.warning("removing %d fragments that were committed twice", duplicates)
    removable = fragments_only_of(inventory, surplus)
    if removable:
        tables.remove_fragments(_TABLE, removable)
    mixed: dict[int, set[ShardKey]] = {}
    for entry in surplus:
        if entry.fragment not in removable:
            mixed.setdefault(entry.fragment, set()).add(entry.key)
    for fragment, keys in mixed.items():
        rewrite_fragments(tables, [fragment], partial(_rows_of_shards, keys=keys))
    return read_inventory(tables, known=inventory)


def rewind(tables: Tables, version: int) -> Inventory:
    """Give the newest version of `factors` the rows of a published version; returns its inventory."""
    published = read_inventory(tables, version)
    newest = read_inventory(tables, known=published)
    if newest.files == published.files and len(newest.entries) == len(published.entries):
        return newest
    tables.restore(_TABLE, version)
    return read_inventory(tables, known=published)


def without_files(tables: Tables, version: int, files: Set[str]) -> Inventory:
    """Give the newest version of `factors` the rows of a published version without those of some data files.

    It is a new version in any case, so that a fit of the published version is not taken for a fit of these.
    """
    restored = tables.restore(_TABLE, version)
    dropped = {
        fragment.fragment_id
        for fragment in restored.get_fragments()
        if not files.isdisjoint(file.path for file in fragment.data_files())
    }
    if dropped:
        tables.remove_fragments(_TABLE, dropped)
    return read_inventory(tables)


def rewrite_fragments(tables: Tables, fragments: Sequence[int], drop: RowMask) -> None:
    """Rewrite fragments of the newest version without the rows that `drop` selects, in one commit."""
    dataset = tables.require(_TABLE)
    written: list[str] = []
    for number in fragments:
        batches = _scan_fragments(tables, dataset, [number])
        written += write_rows(tables, _without_rows(batches, drop), dataset.schema)
    tables.replace_fragments(_TABLE, set(fragments), written)


def fragment_bytes(tables: Tables, version: int) -> dict[int, int]:
    """Bytes of the data files of each fragment of a version, by its number."""
    return {
        fragment.fragment_id: sum(file.file_size_bytes or 0 for file in fragment.data_files())
        for fragment in tables.require(_TABLE, version).get_fragments()
    }


def join_fragments(tables: Tables, groups: Sequence[Sequence[int]]) -> None:
    """Replace each group of fragments of the newest version by one with the same rows, in one commit."""
    dataset = tables.require(_TABLE)
    written: list[str] = []
    for group in groups:
        written += write_rows(tables, _scan_fragments(tables, dataset, group), dataset.schema)
    tables.replace_fragments(_TABLE, {number for group in groups for number in group}, written)


def _scan_fragments(tables: Tables, dataset: Any, numbers: Iterable[int]) -> Iterator[pa.RecordBatch]:
    fragments = [dataset.get_fragment(number) for number in numbers]
    return tables.scan(_TABLE, int(dataset.version), fragments=fragments, batch_size=_ROWS_PER_BATCH)


def _without_rows(batches: Iterator[pa.RecordBatch], drop: RowMask) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        remaining = batch.filter(pc.invert(drop(batch)))
        if remaining.num_rows:
            yield remaining


def write_rows(tables: Tables, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> list[str]:
    """Stream rows into an uncommitted fragment of `factors`; none if there are no rows.

    Returns:
        Its metadata as JSON, with the digests of its files and its contents.
    """
    first = next(batches, None)
    if first is None:
        return []
    counts = ShardCounts()
    (fragment,) = tables.write(_TABLE, counts.of(chain([first], batches)), schema)
    return [with_contents(fragment, counts.counts)]


def read_files(tables: Tables, receipts: Iterable[Receipt]) -> Iterator[pa.RecordBatch]:
    """Stream the rows of uncommitted fragments, after each of their files is compared with its digest."""
    for receipt in receipts:
        for fragment in receipt.fragments:
            for name, digest in json.loads(fragment)[DIGESTS_KEY].items():
                if tables.digests.compute(_TABLE, name) != digest:
                    raise damaged(tables.uri, f"the file data/{name} differs from its digest")
                yield from tables.read_file(_TABLE, name)


def _rows_of_shards(batch: pa.RecordBatch, keys: Set[ShardKey]) -> pa.Array:
    pairs = zip(batch.column("spec").to_pylist(), batch.column("shard").to_pylist(), strict=True)
    return pa.array([pair in keys for pair in pairs])


def _content_name(fragment: Any) -> str:
    """A name for a fragment's rows that is the same in all versions: its data files, and its deleted rows."""
    metadata = fragment.metadata.to_json()
    deleted = metadata["deletion_file"]
    name = "+".join(file["path"] for file in metadata["files"])
    return name if deleted is None else f"{name}-{deleted['id']}-{deleted['num_deleted_rows']}"


def fragment_numbers(batch: pa.RecordBatch) -> pa.Array:
    """The fragment number of every row of a batch that was scanned with row addresses."""
    return pc.shift_right(batch.column("_rowaddr"), pa.scalar(32, pa.uint64()))


def _recorded_entries(tables: Tables, fragments: Mapping[str, Any]) -> dict[str, list[InventoryEntry]]:
    """Entries, by content name, of the fragments whose contents are recorded with as many rows as they have."""
    contents = tables.digests.contents(_TABLE)
    entries: dict[str, list[InventoryEntry]] = {}
    for name, fragment in fragments.items():
        counts = decode_contents(contents.get(name, ()))
        if counts and sum(count.rows for count in counts) == fragment.metadata.physical_rows:
            entries[name] = [
                InventoryEntry(count.spec, count.shard, fragment.fragment_id, name, count.rows, count.tokens)
                for count in counts
            ]
    return entries


def _scan_entries(
    tables: Tables, version: int, fragments: Sequence[Any], names: dict[int, str]
) -> list[InventoryEntry]:
    if not fragments:
        return []
    counts: dict[int, ShardCounts] = {}
    columns = list(CONTENT_COLUMNS)
    for batch in tables.scan(_TABLE, version, columns=columns, fragments=fragments, with_row_address=True):
        numbers = fragment_numbers(batch)
        for number in pc.unique(numbers).to_pylist():
            counts.setdefault(number, ShardCounts()).add(batch.filter(pc.equal(numbers, number)))
    return [
        InventoryEntry(count.spec, count.shard, number, names[number], count.rows, count.tokens)
        for number, of_fragment in counts.items()
        for count in of_fragment.counts
    ]
