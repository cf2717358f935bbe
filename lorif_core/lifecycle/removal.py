"""Takedown: select examples, record them, and remove their rows wherever they reappear.

The table `removed` records the examples permanently. Indexing skips them. Rows that enter the newest version in
another way (by a receipt of an earlier run, or from an earlier generation) are removed before it is published. An
example is identified by its id if the corpus has ids. Otherwise its id is only a position in a file, so it is
identified by its content.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from lorif_core.errors import UserError
from lorif_core.spec import IndexSpec
from lorif_core.tables.checksums import damaged
from lorif_core.tables.filters import condition_sql, reads_text
from lorif_core.tables.generation import Generation
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.store import Store

REMOVED = "removed on request"

_COLUMNS = ["example_id", "content_hash"]


@dataclass(frozen=True, slots=True)
class Removals:
    """Removed examples: their ids, or their content hashes if the corpus has no ids.

    `count` is the number of entries of the table `removed`.
    """

    ids: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()
    count: int = 0

    def has(self, example_id: str, content_hash: str) -> bool:
        """Whether an example was removed."""
        return example_id in self.ids or content_hash in self.hashes

    def mask(self, batch: pa.RecordBatch) -> pa.Array:
        """One boolean per row of a batch: whether its example was removed."""
        by_id = pc.is_in(batch.column("example_id"), pa.array(sorted(self.ids), pa.string()))
        by_hash = pc.is_in(batch.column("content_hash"), pa.array(sorted(self.hashes), pa.string()))
        return pc.or_(by_id, by_hash)


def read_removals(store: Store, spec: IndexSpec) -> Removals:
    """The removals of an index with rows of a spec; empty if the index does not exist.

    Raises:
        DamagedIndexError: a row differs from its checksum, or there are fewer than a generation has applied.
    """
    entries = store.rows.removed()
    applied = max((generation.removals for generation in store.generations()), default=0)
    if entries.num_rows < applied:
        raise damaged(store.uri, f"the table removed has {entries.num_rows} rows, but {applied} were applied")
    if spec.tokenisation.id is not None:
        return Removals(ids=frozenset(entries.column("example_id").to_pylist()), count=entries.num_rows)
    return Removals(hashes=frozenset(entries.column("content_hash").to_pylist()), count=entries.num_rows)


def read_ids(path: str) -> list[str]:
    """Read the ids in a file, one per line. Raises UserError if it cannot be read or has none."""
    try:
        # an id may contain the rarer line separators of Unicode, at which splitlines would cut it
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"the ids file {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"the ids file {path} is not UTF-8 text; write one id per line") from None
    ids = [line for line in lines if line]
    if not ids:
        raise UserError(f"the ids file {path} is empty; write one id per line")
    return ids


def rows_with_ids(store: Store, version: int, ids: Iterable[str]) -> pa.Table:
    """`example_id` and `content_hash` of the rows with these ids in a version of `factors`."""
    store.rows.check_descriptions(version)
    requested = pa.array(sorted(set(ids)), pa.string())
    batches = store.rows.metadata(version, _COLUMNS)
    return _table(batch.filter(pc.is_in(batch.column("example_id"), requested)) for batch in batches)


def rows_where(store: Store, version: int, condition: str) -> pa.Table:
    """`example_id` and `content_hash` of the rows that meet an SQL condition in a version of `factors`.

    Raises:
        UserError: the condition is not valid.
    """
    sql = condition_sql(store, version, condition)
    store.rows.check_descriptions(version, text=reads_text(sql))
    return _table(store.rows.metadata(version, _COLUMNS, condition=sql))


def same_content(store: Store, version: int, rows: pa.Table) -> pa.Table:
    """All rows with the same content as one of `rows`, including these."""
    hashes = rows.column("content_hash").combine_chunks()
    batches = store.rows.metadata(version, _COLUMNS)
    return _table(batch.filter(pc.is_in(batch.column("content_hash"), hashes)) for batch in batches)


def _table(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in _COLUMNS])
    return pa.Table.from_batches((batch.select(_COLUMNS) for batch in batches), schema)


def clean_fragments(store: Store, generation: Generation, removals: Removals) -> Inventory | None:
    """The inventory of a generation, if all current removals were applied to it; None otherwise."""
    return store.rows.inventory(generation.factors_version) if generation.removals == removals.count else None


def apply_removals(store: Store, removals: Removals, clean: Inventory | None = None) -> tuple[Inventory, int]:
    """Remove the rows of removed examples from the newest version of `factors` by rewriting their fragments.

    Args:
        store: the index; the caller holds its lease.
        removals: the removed examples.
        clean: fragments that are known to contain none of them.

    Returns:
        The inventory of the newest version, and the number of rows that were removed.
    """
    inventory = store.rows.inventory(known=clean)
    unchecked = inventory if clean is None else inventory.outside(clean)
    if not removals.count or not unchecked.fragments:
        return inventory, 0
    columns = [*_COLUMNS, "shard"]
    store.rows.check_descriptions(inventory.version, unchecked.fragments)
    affected: set[int] = set()
    rows: list[tuple[str, str]] = []
    for batch in store.rows.metadata(inventory.version, columns, unchecked.fragments):
        matching = batch.filter(removals.mask(batch))
        affected.update(matching.column("fragment").to_pylist())
        rows += zip(matching.column("shard").to_pylist(), matching.column("example_id").to_pylist(), strict=True)
    if not affected:
        return inventory, 0
    store.rows.note_skipped([(shard, example_id, REMOVED) for shard, example_id in rows])
    store.rows.rewrite(sorted(affected), removals.mask)
    return store.rows.inventory(known=inventory), len(rows)
