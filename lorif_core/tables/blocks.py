"""Blocks of rows that a scan yields. A block has a fixed cost, so small shards are joined into large blocks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch

from lorif_core.corpus.file_listing import SHARD_ROWS
from lorif_core.gradients.codes import CodeLayout
from lorif_core.tables.checksums import CODE_COLUMNS, CODE_GROUP, columns_of, require_undamaged
from lorif_core.tables.datasets import Tables
from lorif_core.tables.schema import code_matrix, scale_matrix

_BLOCK_BYTES = 2**24  # the kernel allocates fresh pages for the codes of larger blocks (benchmarks.query)
_LEAST_BUFFER = 2**20
_BLOCKS_IN_MEMORY = 4  # yielded, being joined, and read ahead
_TABLE = "factors"


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of a scan: ids, codes (B, W or bytes) as they are stored, and float32 scales (B, S).

    `extra` contains the additional columns that the scan requested.
    """

    example_ids: list[str]
    codes: torch.Tensor
    scales: torch.Tensor
    extra: tuple[pa.Array, ...] = ()


def block_from_batch(batch: pa.RecordBatch, extra: Sequence[str] = ()) -> Block:
    """Convert a batch of `factors` that has ids, codes, scales and the `extra` columns."""
    return Block(
        batch.column("example_id").to_pylist(),
        code_matrix(batch.column("codes")),
        scale_matrix(batch),
        tuple(batch.column(name) for name in extra),
    )


def block_rows(layout: CodeLayout, memory_gb: float) -> int:
    """Rows that are encoded and written together: as stored and as float32 they take at most 1/8 of the memory."""
    return _rows_in(memory_gb * 2**30 / 8, layout.bytes_per_example + 4 * (layout.width + layout.scales))


def scan_rows(layout: CodeLayout, memory_gb: float) -> int:
    """Rows of a scanned block: the blocks read ahead, joined and yielded take at most 1/8 of the memory.

    Consumers that decode codes process a part of the block at a time.
    """
    block_bytes = min(memory_gb * 2**30 / 8 / _BLOCKS_IN_MEMORY, _BLOCK_BYTES)
    return _rows_in(block_bytes, layout.bytes_per_example + 4 * layout.scales)


def _rows_in(size: float, bytes_per_row: int) -> int:
    return max(16, min(4096, int(size / bytes_per_row)))


def scan_codes(
    tables: Tables,
    version: int,
    rows: int,
    fragments: Sequence[int] | None = None,
    condition: str | None = None,
    extra: Sequence[str] = (),
    *,
    check: bool = True,
) -> Iterator[Block]:
    """Stream codes of a version of `factors` in blocks of at most `rows` rows, and read ahead.

    Args:
        tables: tables of the index.
        version: version of `factors`.
        rows: maximum rows of a block; the scan reads as many rows ahead.
        fragments: fragments to read; None for all.
        condition: SQL filter on the rows.
        extra: descriptive columns to add to the blocks.
        check: whether to compare the rows with their checksums.

    Raises:
        DamagedIndexError: a row differs from its checksum.
    """
    dataset = tables.require(_TABLE, version)
    selected = None if fragments is None else [dataset.get_fragment(number) for number in fragments]
    if selected == []:
        return
    code_columns = [name for name in dataset.schema.names if name in CODE_COLUMNS]
    if check:
        code_columns = columns_of([CODE_GROUP], dataset.schema)
    fragments_ahead = max(1, rows // SHARD_ROWS)
    codes = dataset.schema.field("codes").type
    block_bytes = rows * codes.list_size * codes.value_type.bit_width // 8
    batches = tables.scan(
        _TABLE,
        version,
        columns=list(dict.fromkeys(["example_id", *code_columns, *extra])),
        fragments=selected,
        filter=condition,
        batch_size=-(-SHARD_ROWS // -(-SHARD_ROWS // rows)),  # divides a shard evenly: no small last batch
        batch_readahead=fragments_ahead + 1,
        fragment_readahead=fragments_ahead,
        io_buffer_size=max(block_bytes, _LEAST_BUFFER),  # else Lance reads whole large fragments ahead
    )
    for batch in join_batches(batches, rows):
        if check:
            require_undamaged(batch, [CODE_GROUP], tables.uri)
        yield block_from_batch(batch, extra)


def join_batches(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Join small batches into non-empty ones of up to `rows` rows; batches with half of that are not copied."""
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        sizes = [item.num_rows for item in (*pending, batch)]
        if pending and (sum(sizes) > rows or 2 * max(sizes) >= rows):
            ready, pending = _concatenate(pending), []
            yield ready
        if batch.num_rows:
            pending.append(batch)
    if pending:
        yield _concatenate(pending)


def _concatenate(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)
