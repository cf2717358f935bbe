"""Rows of the factors by shard, and how they leave the table: as whole fragments, or by fragments written anew.

Rows are never only marked as deleted: a fragment that loses rows is written again without them, in one commit, so
that what is gone from the newest version is gone from storage as soon as older versions are.
"""

import logging
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lorif_core.tables.datasets import Tables
from lorif_core.tables.inventory import Holding, Inventory, ShardKey, whole_fragments

log = logging.getLogger(__name__)

_TABLE = "factors"
Leaves = Callable[[pa.RecordBatch], pa.Array]
"""Which rows of a batch of all columns leave, as booleans."""


def read_inventory(tables: Tables, version: int | None = None, known: Inventory | None = None) -> Inventory:
    """The inventory of a version of the factors; only fragments that `known` has not are read."""
    dataset = tables.require(_TABLE, version)
    fragments = {fragment.fragment_id: fragment for fragment in dataset.get_fragments()}
    names = {number: _content_name(fragment) for number, fragment in fragments.items()}
    read: dict[str, list[Holding]] = {}
    for holding in known.holdings if known is not None else ():
        read.setdefault(holding.file, []).append(holding)
    # a fragment that was committed twice is there under two numbers
    fresh = {name: fragments[number] for number, name in names.items() if name not in read}
    for holding in _scan_holdings(tables, int(dataset.version), list(fresh.values()), names):
        read.setdefault(holding.file, []).append(holding)
    holdings = (
        Holding(held.spec, held.shard, number, held.file, held.rows, held.tokens)
        for number, name in names.items()
        for held in read.get(name, [])
    )
    return Inventory(int(dataset.version), tuple(holdings))


def settle(
    tables: Tables, wanted: Set[ShardKey], must: Set[ShardKey] = frozenset(), base: int | None = None
) -> Inventory:
    """Leave in the newest version only the shards that are wanted, each once; published versions keep their rows.

    Args:
        tables: of the index.
        wanted: shards that may stay.
        must: those of them that cannot be indexed again. If one is missing, because a run died that had taken it
            out, the newest version begins anew from `base`.
        base: a published version that has them.

    Returns:
        The inventory of the newest version.
    """
    inventory = read_inventory(tables)
    if base is not None and not must <= inventory.keys:
        log.warning("rows that an unfinished run had taken out are put back; what it had added is indexed again")
        tables.restore(_TABLE, base)
        inventory = read_inventory(tables, known=inventory)
    surplus = inventory.surplus(wanted)
    if not surplus:
        return inventory
    doubled = sum(holding.key in wanted for holding in surplus)
    if doubled:
        log.warning("%d fragments were committed twice and are taken out", doubled)
    whole = whole_fragments(inventory, surplus)
    if whole:
        tables.remove_fragments(_TABLE, whole)
    mixed = {holding.fragment: set[ShardKey]() for holding in surplus if holding.fragment not in whole}
    for holding in surplus:
        if holding.fragment in mixed:
            mixed[holding.fragment].add(holding.key)
    for fragment, keys in mixed.items():
        rewrite_fragments(tables, [fragment], partial(_is_of, keys=keys))
    return read_inventory(tables, known=inventory)


def rewrite_fragments(tables: Tables, fragments: Sequence[int], leaves: Leaves) -> None:
    """Replace fragments of the newest version by ones without the rows that leave, in one commit."""
    dataset = tables.require(_TABLE)
    schema = dataset.schema
    written: list[str] = []
    for number in fragments:
        batches = tables.scan(_TABLE, int(dataset.version), fragments=[dataset.get_fragment(number)])
        written += _write(tables, _staying(batches, leaves), schema)
    tables.replace_fragments(_TABLE, set(fragments), written)


def _staying(batches: Iterator[pa.RecordBatch], leaves: Leaves) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        kept = batch.filter(pc.invert(leaves(batch)))
        if kept.num_rows:
            yield kept


def _write(tables: Tables, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> list[str]:
    first = next(batches, None)
    if first is None:
        return []

    def all_batches() -> Iterator[pa.RecordBatch]:
        yield first
        yield from batches

    return tables.write(_TABLE, all_batches(), schema)


def _is_of(batch: pa.RecordBatch, keys: Set[ShardKey]) -> pa.Array:
    pairs = zip(batch.column("spec").to_pylist(), batch.column("shard").to_pylist(), strict=True)
    return pa.array([pair in keys for pair in pairs])


def _content_name(fragment: Any) -> str:
    """What names a fragment's rows in every version: its data file, and those of its rows that are deleted."""
    described = fragment.metadata.to_json()
    deleted = described["deletion_file"]
    name = "+".join(file["path"] for file in described["files"])
    return name if deleted is None else f"{name}-{deleted['id']}-{deleted['num_deleted_rows']}"


def fragment_numbers(batch: pa.RecordBatch) -> pa.Array:
    """The fragment of every row of a batch that was scanned with row addresses."""
    return pc.shift_right(batch.column("_rowaddr"), pa.scalar(32, pa.uint64()))


def _scan_holdings(tables: Tables, version: int, fragments: Sequence[Any], names: dict[int, str]) -> list[Holding]:
    if not fragments:
        return []
    counts: dict[tuple[int, str, str], tuple[int, int]] = {}
    columns = ["spec", "shard", "tokens"]
    for batch in tables.scan(_TABLE, version, columns=columns, fragments=fragments, with_row_address=True):
        table = pa.table({"fragment": fragment_numbers(batch), **{name: batch.column(name) for name in columns}})
        grouped = table.group_by(["fragment", "spec", "shard"]).aggregate([("tokens", "count"), ("tokens", "sum")])
        for row in grouped.to_pylist():
            key = (row["fragment"], row["spec"], row["shard"])
            rows, tokens = counts.get(key, (0, 0))
            counts[key] = (rows + row["tokens_count"], tokens + row["tokens_sum"])
    return [
        Holding(spec, shard, fragment, names[fragment], rows, tokens)
        for (fragment, spec, shard), (rows, tokens) in counts.items()
    ]
