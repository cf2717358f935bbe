"""Takedown: which examples go, remembering them, and taking their rows out wherever they turn up again.

The table `removed` names them for good: indexing leaves them out, and what comes into the newest version by
another way (a receipt of an earlier run, an earlier generation) loses their rows before it is published. An
example is known by its id where the corpus has ids; without them an id is a place in a file, and it is known by
its content.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from lorif_core.errors import UserError
from lorif_core.spec import IndexSpec
from lorif_core.tables.filters import condition_told
from lorif_core.tables.generation import Generation
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.store import Store

REMOVED = "removed on request"

_COLUMNS = ["example_id", "content_hash"]


@dataclass(frozen=True, slots=True)
class Removals:
    """Examples that were removed: ids, or content hashes where the corpus has no ids; and how many entries."""

    ids: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()
    count: int = 0

    def has(self, example_id: str, content_hash: str) -> bool:
        """Whether an example is one of them."""
        return example_id in self.ids or content_hash in self.hashes

    def mask(self, batch: pa.RecordBatch) -> pa.Array:
        """Which rows of a batch are of one of them."""
        by_id = pc.is_in(batch.column("example_id"), pa.array(sorted(self.ids), pa.string()))
        by_hash = pc.is_in(batch.column("content_hash"), pa.array(sorted(self.hashes), pa.string()))
        return pc.or_(by_id, by_hash)


def removals_of(store: Store, spec: IndexSpec) -> Removals:
    """What was removed from an index whose rows have a spec; nothing where there is no index."""
    entries = store.rows.removed()
    if spec.tokenisation.id is not None:
        return Removals(ids=frozenset(entries.column("example_id").to_pylist()), count=entries.num_rows)
    return Removals(hashes=frozenset(entries.column("content_hash").to_pylist()), count=entries.num_rows)


def read_ids(path: str) -> list[str]:
    """Ids of a file, one a line. Raises UserError if there are none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"the ids file {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"the ids file {path} is not UTF-8 text; write one id a line") from None
    ids = [line for line in lines if line]
    if not ids:
        raise UserError(f"the ids file {path} is empty; write one id a line")
    return ids


def rows_with_ids(store: Store, version: int, ids: Iterable[str]) -> pa.Table:
    """`example_id` and `content_hash` of the rows with some ids in a version of the factors."""
    wanted = pa.array(sorted(set(ids)), pa.string())
    found = store.rows.metadata(version, _COLUMNS)
    return _table(batch.filter(pc.is_in(batch.column("example_id"), wanted)) for batch in found)


def rows_where(store: Store, version: int, condition: str) -> pa.Table:
    """`example_id` and `content_hash` of the rows that meet a condition on the columns, in SQL.

    Raises:
        UserError: it is no condition.
    """
    with condition_told(condition):
        return _table(store.rows.metadata(version, _COLUMNS, condition=condition))


def same_content(store: Store, version: int, rows: pa.Table) -> pa.Table:
    """Some rows, and all others of the same content."""
    wanted = rows.column("content_hash").combine_chunks()
    found = store.rows.metadata(version, _COLUMNS)
    return _table(batch.filter(pc.is_in(batch.column("content_hash"), wanted)) for batch in found)


def _table(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    chosen = (batch.select(_COLUMNS) for batch in batches)
    return pa.Table.from_batches(
        chosen, pa.schema([pa.field(name, pa.string(), nullable=False) for name in _COLUMNS])
    )


def trusted_by(store: Store, generation: Generation, removals: Removals) -> Inventory | None:
    """The fragments of a generation, if it was published without what was removed."""
    return store.rows.inventory(generation.factors_version) if generation.removals == removals.count else None


def honour(store: Store, removals: Removals, trusted: Inventory | None = None) -> tuple[Inventory, int]:
    """Take the rows of removed examples out of the newest version of the factors, fragments written anew.

    Args:
        store: the index; the caller holds its lease.
        removals: what was removed.
        trusted: fragments that are known to hold none of them.

    Returns:
        The inventory of the newest version, and how many rows left it.
    """
    inventory = store.rows.inventory(known=trusted)
    looked_at = inventory if trusted is None else inventory.beyond(trusted)
    if not removals.count or not looked_at.fragments:
        return inventory, 0
    columns = [*_COLUMNS, "shard"]
    touched: set[int] = set()
    gone: list[tuple[str, str]] = []
    for batch in store.rows.metadata(inventory.version, columns, looked_at.fragments):
        found = batch.filter(removals.mask(batch))
        touched.update(found.column("fragment").to_pylist())
        gone += zip(found.column("shard").to_pylist(), found.column("example_id").to_pylist(), strict=True)
    if not touched:
        return inventory, 0
    store.rows.note_skipped([(shard, example_id, REMOVED) for shard, example_id in gone])
    store.rows.rewrite(sorted(touched), removals.mask)
    return store.rows.inventory(known=inventory), len(gone)
