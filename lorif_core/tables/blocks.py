"""Blocks of rows that a scan hands out: few and large, while shards are small, as every block costs its calls."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch

from lorif_core.corpus.shards import SHARD_ROWS
from lorif_core.gradients.codes import CodeLayout
from lorif_core.tables.datasets import Tables
from lorif_core.tables.schema import CODE_COLUMNS, code_matrix, scale_matrix

_BLOCK_BYTES = 2**24  # codes of larger blocks come in pages that the kernel hands out anew (benchmarks.query)
_BLOCKS_AT_ONCE = 4  # handed out, being joined, and read ahead
_TABLE = "factors"


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of a scan: ids, codes (B, W or bytes) as they are stored, and float32 scales (B, S).

    `extra` are further columns, where the scan was asked for them.
    """

    example_ids: list[str]
    codes: torch.Tensor
    scales: torch.Tensor
    extra: tuple[pa.Array, ...] = ()


def block_of(batch: pa.RecordBatch, extra: Sequence[str] = ()) -> Block:
    """Rows of `factors` that were read with their ids and codes, and further columns."""
    return Block(
        batch.column("example_id").to_pylist(),
        code_matrix(batch.column("codes")),
        scale_matrix(batch),
        tuple(batch.column(name) for name in extra),
    )


def block_rows(layout: CodeLayout, memory_gb: float) -> int:
    """Rows that are encoded and written together: stored and as float32 at most an eighth of the memory."""
    return _rows_in(memory_gb * 2**30 / 8, layout.bytes_per_example + 4 * (layout.width + layout.scales))


def scan_rows(layout: CodeLayout, memory_gb: float) -> int:
    """Rows of a scanned block: those read ahead, joined and handed out take at most an eighth of the memory.

    What is made of them is made of some of them at a time.
    """
    at_most = min(memory_gb * 2**30 / 8 / _BLOCKS_AT_ONCE, _BLOCK_BYTES)
    return _rows_in(at_most, layout.bytes_per_example + 4 * layout.scales)


def _rows_in(size: float, a_row: int) -> int:
    return max(16, min(4096, int(size / a_row)))


def scan_codes(
    tables: Tables,
    version: int,
    rows: int,
    fragments: Sequence[int] | None = None,
    condition: str | None = None,
    extra: Sequence[str] = (),
) -> Iterator[Block]:
    """Stream codes of a version of `factors` in blocks of up to so many rows, while the next ones are read.

    Args:
        tables: of the index.
        version: of `factors`.
        rows: of a block at most; as many are read ahead.
        fragments: only of these; None for all.
        condition: SQL that rows must meet.
        extra: descriptive columns that blocks carry too.
    """
    dataset = tables.require(_TABLE, version)
    chosen = None if fragments is None else [dataset.get_fragment(number) for number in fragments]
    if chosen == []:
        return
    stored = [name for name in dataset.schema.names if name in CODE_COLUMNS]
    ahead = max(1, rows // SHARD_ROWS)
    batches = tables.scan(
        _TABLE,
        version,
        columns=list(dict.fromkeys(["example_id", *stored, *extra])),
        fragments=chosen,
        filter=condition,
        batch_size=-(-SHARD_ROWS // -(-SHARD_ROWS // rows)),  # of a fragment's, no small rest
        batch_readahead=ahead + 1,
        fragment_readahead=ahead,
    )
    for batch in joined(batches, rows):
        yield block_of(batch, extra)


def joined(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of up to so many, none empty; those that have half as many are not copied."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        sizes = [one.num_rows for one in (*waiting, batch)]
        if waiting and (sum(sizes) > rows or 2 * max(sizes) >= rows):
            ready, waiting = _one_of(waiting), []
            yield ready
        if batch.num_rows:
            waiting.append(batch)
    if waiting:
        yield _one_of(waiting)


def _one_of(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)
