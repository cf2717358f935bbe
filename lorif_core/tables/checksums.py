"""Checksums of rows: a bit that storage has changed becomes an error, not another score.

A row of `factors` has checksums of its id and code, of its description, and of its text if it is stored, because
readers rarely need all of it. A row of another table has one. They are chains of XXH3 over the columns of the row,
so they stay valid if a row moves to another file. In `factors` they are the lower 32 bits of it, which miss one
damaged row in four billion; tables of an older lorif have all 64, or no checksums at all.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, repeat
from typing import Any

import numpy as np
import pyarrow as pa
from xxhash import xxh3_64_intdigest

from lorif_core.errors import DamagedIndexError

CHECKSUM = "checksum"
CHECKSUMS = "checksums"
CHECKSUM_FIELD = pa.field(CHECKSUM, pa.uint64())

CODE_COLUMNS = ("codes", "scales", "magnitude")
NOT_DESCRIPTIVE = (*CODE_COLUMNS, CHECKSUMS)
DESCRIPTION = ("example_id", "shard", "uri", "row", "tokens", "loss", "content_hash", "checkpoint", "spec")
TEXT, TURNS = "text", "chat_turns"
LAST_COMPONENT = 1
"""Seed of the checksum of a layer's last component, so that a layer without its end does not look complete."""

_GROUPS = (("example_id", *CODE_COLUMNS), DESCRIPTION, (TEXT, TURNS))  # in the order of `checksums`
CODE_GROUP, DESCRIPTION_GROUP, TEXT_GROUP = range(3)
_WORD = pa.uint32()
_NULL = b"\xff"  # differs from every text in UTF-8
_LISTED = 5


def row_hashes(columns: Iterable[pa.Array], seeds: Iterable[int] | None = None) -> np.ndarray:
    """The chain of XXH3 over the columns of each row, uint64 (rows,); it starts from `seeds`, or else from 0."""
    hashes: Iterable[int] = repeat(0) if seeds is None else seeds
    for column in columns:
        hashes = map(xxh3_64_intdigest, _values(column), hashes)
    return np.fromiter(hashes, np.uint64)


def _values(column: pa.Array) -> Iterable[Any]:
    """The bytes of every value of a column."""
    kind = column.type
    if pa.types.is_string(kind):
        return (_NULL if value is None else value for value in column.cast(pa.binary()).to_pylist())
    if pa.types.is_list(kind):
        values = column.values.to_numpy(zero_copy_only=True)
        edges = column.offsets.to_pylist()
        return (values[start:stop] for start, stop in pairwise(edges))
    if pa.types.is_fixed_size_list(kind):
        column = column.flatten()
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.int64())
    flat = column.to_numpy(zero_copy_only=True)
    return _bytes_of_rows(flat, kind.list_size if pa.types.is_fixed_size_list(kind) else 1)


def _bytes_of_rows(flat: np.ndarray, width: int) -> Iterator[np.ndarray]:
    return iter(flat.reshape(-1, width).view(np.uint8))


def checksums_field(*, text: bool) -> pa.Field:
    """The field `checksums` of a new table `factors`, with or without a column of texts."""
    return pa.field(CHECKSUMS, pa.list_(_WORD, len(_GROUPS) if text else TEXT_GROUP))


def factors_checksums(columns: dict[str, pa.Array], kind: pa.FixedSizeListType) -> pa.Array:
    """The column `checksums`, of the type that the table has for it, of rows of `factors` from their columns."""
    rows = len(columns["example_id"])
    hashes = [
        row_hashes(columns[name] for name in group if name in columns) if group[0] in columns else np.zeros(rows)
        for group in _GROUPS[: kind.list_size]
    ]
    flat = np.stack([column.astype(np.uint64) for column in hashes], axis=1).reshape(-1)
    words = flat.astype(kind.value_type.to_pandas_dtype())
    return pa.FixedSizeListArray.from_arrays(pa.array(words), kind.list_size)


def columns_of(groups: Sequence[int], schema: pa.Schema) -> list[str]:
    """Names of the columns that a check of these groups of checksums reads."""
    names = dict.fromkeys(name for group in groups for name in _GROUPS[group])
    return [name for name in (*names, CHECKSUMS) if name in schema.names]


def damaged_rows(batch: pa.RecordBatch, groups: Sequence[int]) -> list[int]:
    """Rows of a batch of `factors` whose checksums do not match; rows without checksums are ignored.

    Args:
        batch: columns as `columns_of` names them; without `checksums` nothing is checked.
        groups: the checksums to check: of the code, the description or the text.
    """
    if CHECKSUMS not in batch.schema.names or batch.column(CHECKSUMS).null_count == batch.num_rows:
        return []
    numbers = np.arange(batch.num_rows)
    if batch.column(CHECKSUMS).null_count:
        present = batch.column(CHECKSUMS).is_valid()
        batch, numbers = batch.filter(present), numbers[present.to_numpy(zero_copy_only=False)]
    stored = batch.column(CHECKSUMS).flatten().to_numpy().reshape(batch.num_rows, -1)
    differs = np.zeros(batch.num_rows, bool)
    for group in groups:
        names = [name for name in _GROUPS[group] if name in batch.schema.names]
        if names or group < stored.shape[1]:
            expected = row_hashes(map(batch.column, names)) if names else np.zeros(batch.num_rows, np.uint64)
            differs |= expected.astype(stored.dtype) != stored[:, group]
    return numbers[differs].tolist()


def require_undamaged(batch: pa.RecordBatch, groups: Sequence[int], uri: str) -> None:
    """Raise DamagedIndexError if the checksum of a row of `factors` does not match."""
    rows = damaged_rows(batch, groups)
    if rows:
        listed = example_names(batch, rows)
        raise damaged(uri, f"{len(rows)} rows of the table factors differ from their checksums ({listed})")


def checked_descriptions(table: pa.Table, uri: str) -> pa.Table:
    """All descriptive columns of some rows of `factors` without `checksums`, after they are checked.

    Raises:
        DamagedIndexError: a row differs from its checksum.
    """
    for batch in table.to_batches():
        require_undamaged(batch, [DESCRIPTION_GROUP, TEXT_GROUP], uri)
    return table.drop_columns([CHECKSUMS]) if CHECKSUMS in table.column_names else table


def example_names(batch: pa.RecordBatch, rows: Sequence[int]) -> str:
    """The ids of some rows for a message; damaged bytes are replaced."""
    ids = batch.column("example_id").cast(pa.binary()).take(pa.array(rows[:_LISTED])).to_pylist()
    listed = ", ".join(repr(value.decode(errors="replace")) for value in ids)
    return f"example {listed}" if len(rows) <= _LISTED else f"example {listed} and {len(rows) - _LISTED} more"


def with_checksum(batch: pa.RecordBatch, seeds: Iterable[int] | None = None) -> pa.RecordBatch:
    """Rows of a small table with their column `checksum`, of all other columns; `seeds` as `row_hashes`."""
    if CHECKSUM in batch.schema.names:
        batch = batch.drop_columns([CHECKSUM])
    hashes = pa.array(row_hashes(batch.columns, seeds))
    return pa.RecordBatch.from_arrays([*batch.columns, hashes], schema=batch.schema.append(CHECKSUM_FIELD))


def differing_rows(table: pa.Table, seeds: Iterable[int] | None = None) -> list[int]:
    """Rows of a small table, given with all columns, whose checksum does not match; a null always does."""
    if CHECKSUM not in table.column_names or not table.num_rows:
        return []
    (batch,) = table.combine_chunks().to_batches()
    stored = batch.column(CHECKSUM).to_pylist()
    hashes = row_hashes(batch.drop_columns([CHECKSUM]).columns, seeds).tolist()
    return [row for row, (a, b) in enumerate(zip(stored, hashes, strict=True)) if a is not None and a != b]


def require_columns(table: pa.Table, schema: pa.Schema, name: str, uri: str) -> None:
    """Raise DamagedIndexError unless a small table has the columns of its schema; `checksum` may be absent."""
    missing = {*schema.names} - {*table.column_names, CHECKSUM}
    if missing:
        raise damaged(uri, f"the table {name} lacks the column {min(missing)}")


def without_checksum(table: pa.Table, schema: pa.Schema, name: str, uri: str) -> pa.Table:
    """The rows of the small table `name` without their column `checksum`, after it is checked.

    Raises:
        DamagedIndexError: a checksum does not match, or a column of the schema is missing.
    """
    require_columns(table, schema, name, uri)
    if rows := differing_rows(table):
        raise damaged(uri, f"{len(rows)} rows of the table {name} differ from their checksums")
    return table.drop_columns([CHECKSUM]) if CHECKSUM in table.column_names else table


def damaged(uri: str, what: str) -> DamagedIndexError:
    """The error for a damaged index: what is wrong, and what to do."""
    return DamagedIndexError(
        f"the index {uri} is damaged: {what}; lorif verify {uri} names all damage and how to repair it"
    )
