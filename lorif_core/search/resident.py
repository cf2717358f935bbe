"""Codes of a part kept in memory, and what its queries are folded with: for whoever asks one generation often.

Blocks are those of a scan, in its order, so that answers are the same. Rows that meet a condition, and columns
that are asked for beside the codes, are still Lance's to find: they are few bytes a row.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch

from lorif_core.curvature.metric import LayerMetric
from lorif_core.curvature.woodbury import LayerCurvature
from lorif_core.tables.blocks import Block
from lorif_core.tables.datasets import Tables, store_told

ROW_ADDRESS = "_rowaddr"
_BYTES_PER_ADDRESS = 8
_BYTES_PER_ID = 64  # of a Python string beside its characters, and its place in a list
Fold = LayerCurvature | LayerMetric
Layer = TypeVar("Layer", LayerCurvature, LayerMetric, LayerCurvature | LayerMetric)


class ResidentCodes:
    """The blocks of a scan, with the addresses of their rows, uint64.

    Args:
        tables: of the index.
        version: of `factors`.
        fragments: those of the part; None for all.
        blocks: with `ROW_ADDRESS` as their only further column.
    """

    def __init__(
        self, tables: Tables, version: int, fragments: Sequence[int] | None, blocks: Sequence[Block]
    ) -> None:
        self._tables, self._version, self._fragments = tables, version, fragments
        self._blocks = [Block(block.example_ids, block.codes, block.scales) for block in blocks]
        self._addresses = [block.extra[0].to_numpy() for block in blocks]

    def blocks(self, where: str | None = None, extra: Sequence[str] = ()) -> Iterator[Block]:
        """What `PartReader.blocks` streams."""
        if where is None and not extra:
            yield from self._blocks
            return
        columns = dict.fromkeys([ROW_ADDRESS, *extra])
        found, start = found_rows(self._tables, self._version, self._fragments, where, columns), 0
        wanted = found.column(ROW_ADDRESS).to_numpy()
        for block, addresses in zip(self._blocks, self._addresses, strict=True):
            rows = np.flatnonzero(np.isin(addresses, wanted, assume_unique=True))
            if len(rows):
                asked = tuple(found.column(name).slice(start, len(rows)).combine_chunks() for name in extra)
                yield _rows_of(block, rows, asked)
                start += len(rows)


@dataclass(frozen=True, slots=True)
class Resident:
    """What is kept of a part; None for what did not fit.

    Attributes:
        codes: of its rows.
        folds: what its queries are folded with.
        translations: of a part that follows another, what takes the other's folded queries into its whitening.
        bytes: that they take.
    """

    codes: ResidentCodes | None = None
    folds: tuple[Fold, ...] | None = None
    translations: tuple[LayerMetric, ...] | None = None
    bytes: int = 0


def found_rows(
    tables: Tables, version: int, fragments: Sequence[int] | None, where: str | None, columns: Iterable[str]
) -> pa.Table:
    """Columns of the rows of a part that meet a condition, in the order of a scan."""
    dataset = tables.require("factors", version)
    chosen = fragments and [dataset.get_fragment(number) for number in fragments]
    with store_told(tables.uri):
        return dataset.scanner(columns=list(columns), filter=where, fragments=chosen).to_table()


def blocks_within(blocks: Iterator[Block], limit: int) -> tuple[list[Block] | None, int]:
    """All blocks, and the bytes they take with their ids and addresses; None and 0 if that is above the limit."""
    kept, size = [], 0
    for block in blocks:
        rows = len(block.example_ids)
        size += block.codes.nbytes + block.scales.nbytes + sum(map(len, block.example_ids))
        size += (_BYTES_PER_ID + _BYTES_PER_ADDRESS) * rows
        if size > limit:
            return None, 0
        kept.append(block)
    return kept, size


def layers_within(layers: Iterator[Layer], limit: int) -> tuple[tuple[Layer, ...] | None, int]:
    """All layers and their bytes; None and 0 if that is above the limit."""
    kept: list[Layer] = []
    size = 0
    for layer in layers:
        size += layer.basis.nbytes if isinstance(layer, LayerCurvature) else layer.left.nbytes + layer.right.nbytes
        if size > limit:
            return None, 0
        kept.append(layer)
    return tuple(kept), size


def _rows_of(block: Block, rows: np.ndarray, columns: tuple[pa.Array, ...]) -> Block:
    if len(rows) == len(block.example_ids):
        return Block(block.example_ids, block.codes, block.scales, columns)
    chosen = torch.from_numpy(rows)
    ids = [block.example_ids[row] for row in rows.tolist()]
    return Block(ids, block.codes[chosen], block.scales[chosen], columns)
