"""Readers of parquet and Arrow files (IPC files, and the streams that Hugging Face datasets writes)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from lorif_core.errors import UserError
from lorif_core.storage.filesystem import SourceFile

PARQUET_MAGIC = b"PAR1"
ARROW_FILE_MAGIC = b"ARROW1"
ARROW_STREAM_MAGIC = b"\xff\xff\xff\xff"
_ROWS_PER_BATCH = 512
_READ_BYTES = 2**20  # column chunks are streamed instead of read whole


def is_parquet(name: str) -> bool:
    """Whether the name is that of a parquet file; the other files here are Arrow files."""
    return name.lower().endswith(".parquet")


def column_kinds(file: SourceFile) -> dict[str, str]:
    """Kind of each column: text, integer, integers, messages (lists of structs), or the name of another type.

    Raises:
        UserError: two columns have one name, so that a name does not say which one is meant.
    """
    if is_parquet(file.name):
        with _parquet(file) as table:
            schema = table.schema_arrow
    else:
        with _arrow(file) as (schema, _):
            pass
    _check_names(file, schema)
    return {field.name: _kind(field.type) for field in schema}


def _check_names(file: SourceFile, schema: pa.Schema) -> None:
    """Raise UserError for two columns of one name."""
    repeated = [name for name, count in Counter(schema.names).items() if count > 1]
    if repeated:
        raise UserError(f"{file.uri} has several columns named {repeated[0]!r}; rename or drop all but one")


def group_sizes(file: SourceFile) -> list[int]:
    """Rows of each row group of a parquet file; an Arrow file is one group and is read to count its rows."""
    if is_parquet(file.name):
        with _parquet(file) as table:
            return [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    with _arrow(file) as (_, batches):
        return [sum(batch.num_rows for batch in batches)]


def read_records(
    file: SourceFile,
    columns: Sequence[str],
    start: int = 0,
    rows: int | None = None,
    optional: Sequence[str] = (),
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number in the file, record) of `rows` rows from `start`; None reads to the end.

    A record has `columns`, and those of `optional` that the file has.

    Raises:
        UserError: two columns of the file have one name.
    """
    stop = None if rows is None else start + rows
    for position, batch in _batches(file, columns, start, stop, optional):
        first = max(start - position, 0)
        count = batch.num_rows - first if stop is None else min(batch.num_rows, stop - position) - first
        if count > 0:
            yield from enumerate(batch.slice(first, count).to_pylist(), start=position + first)
        if stop is not None and position + batch.num_rows >= stop:
            return


def _batches(
    file: SourceFile, columns: Sequence[str], start: int, stop: int | None, optional: Sequence[str]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches that cover rows [start, stop), each with the number of its first row."""
    if is_parquet(file.name):
        with _parquet(file) as table:
            groups, position = _overlapping_groups(table, start, stop)
            wanted = _wanted(file, table.schema_arrow, columns, optional)
            # only these columns: the others would be fetched and decoded without use
            for batch in table.iter_batches(_ROWS_PER_BATCH, row_groups=groups, columns=wanted):
                yield position, batch
                position += batch.num_rows
        return
    with _arrow(file) as (schema, batches):
        position, wanted = 0, _wanted(file, schema, columns, optional)
        for batch in batches:
            yield position, batch.select(wanted)
            position += batch.num_rows


def _wanted(file: SourceFile, schema: pa.Schema, columns: Sequence[str], optional: Sequence[str]) -> list[str]:
    """Names of the columns to read."""
    _check_names(file, schema)
    return list(dict.fromkeys([*columns, *(column for column in optional if column in schema.names)]))


def _overlapping_groups(table: pq.ParquetFile, start: int, stop: int | None) -> tuple[list[int], int]:
    """Row groups with rows in [start, stop), and the number of the first row of the first group."""
    groups: list[int] = []
    first_row = position = 0
    for group in range(table.num_row_groups):
        end = position + table.metadata.row_group(group).num_rows
        if end > start and (stop is None or position < stop):
            first_row = first_row if groups else position
            groups.append(group)
        position = end
    return groups, first_row


@contextmanager
def _parquet(file: SourceFile) -> Iterator[pq.ParquetFile]:
    with (
        file.open() as raw,
        pq.ParquetFile(raw, buffer_size=_READ_BYTES, page_checksum_verification=True) as table,
    ):
        yield table


@contextmanager
def _arrow(file: SourceFile) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    with file.open() as raw:
        is_stream = raw.read(len(ARROW_STREAM_MAGIC)) == ARROW_STREAM_MAGIC
        raw.seek(0)
        if is_stream:
            stream = pa.ipc.open_stream(raw)
            yield stream.schema, iter(stream)
        else:
            reader = pa.ipc.open_file(raw)
            yield reader.schema, (reader.get_batch(index) for index in range(reader.num_record_batches))


def _kind(column: pa.DataType) -> str:
    value = column.value_type if pt.is_dictionary(column) else column
    if pt.is_string(value) or pt.is_large_string(value) or pt.is_string_view(value):
        return "text"
    if pt.is_integer(value):
        return "integer"
    is_list = pt.is_list(value) or pt.is_large_list(value) or pt.is_fixed_size_list(value)
    if is_list and pt.is_struct(value.value_type):
        return "messages"
    return "integers" if is_list and pt.is_integer(value.value_type) else str(column)
