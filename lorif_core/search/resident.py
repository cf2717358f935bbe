"""The codes and fold operators of a part in memory, for a process that searches one generation often.

Blocks are those of a scan in the same order, so that results are the same. Lance still evaluates conditions and
reads additional columns, which are few bytes a row.
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
from lorif_core.tables.datasets import Tables, table_errors

ROW_ADDRESS = "_rowaddr"
_BYTES_PER_ADDRESS = 8
_BYTES_PER_ID = 64  # of a Python string without its characters, and of its reference in a list
LayerFold = LayerCurvature | LayerMetric
Layer = TypeVar("Layer", LayerCurvature, LayerMetric, LayerCurvature | LayerMetric)


class ResidentCodes:
    """The blocks of a scan, with the addresses of their rows, uint64.

    Args:
        tables: tables of the index.
        version: version of `factors`.
        fragments: fragments of the part; None for all.
        blocks: blocks of the scan, with `ROW_ADDRESS` as their only extra column.
    """

    def __init__(
        self, tables: Tables, version: int, fragments: Sequence[int] | None, blocks: Sequence[Block]
    ) -> None:
        self._tables, self._version, self._fragments = tables, version, fragments
        self._blocks = [Block(block.example_ids, block.codes, block.scales) for block in blocks]
        self._addresses = [block.extra[0].to_numpy() for block in blocks]

    def blocks(self, where: str | None = None, extra: Sequence[str] = ()) -> Iterator[Block]:
        """The same blocks as `PartReader.blocks` without resident codes."""
        if where is None and not extra:
            yield from self._blocks
            return
        columns = dict.fromkeys([ROW_ADDRESS, *extra])
        matching, start = matching_rows(self._tables, self._version, self._fragments, where, columns), 0
        matching_addresses = matching.column(ROW_ADDRESS).to_numpy()
        for block, addresses in zip(self._blocks, self._addresses, strict=True):
            rows = np.flatnonzero(np.isin(addresses, matching_addresses, assume_unique=True))
            if len(rows):
                values = tuple(matching.column(name).slice(start, len(rows)).combine_chunks() for name in extra)
                yield _select_rows(block, rows, values)
                start += len(rows)


@dataclass(frozen=True, slots=True)
class Resident:
    """The data of a part that is in memory; None for data that did not fit.

    Attributes:
        codes: codes of the rows.
        folds: fold operators of the layers.
        translations: for a part that follows another one, operators that bring queries folded for the other part
            into the whitening of this part.
        bytes: bytes of all of these.
    """

    codes: ResidentCodes | None = None
    folds: tuple[LayerFold, ...] | None = None
    translations: tuple[LayerMetric, ...] | None = None
    bytes: int = 0


def matching_rows(
    tables: Tables, version: int, fragments: Sequence[int] | None, where: str | None, columns: Iterable[str]
) -> pa.Table:
    """Columns of the rows of a part that match a condition, in the order of a scan."""
    dataset = tables.require("factors", version)
    selected = fragments and [dataset.get_fragment(number) for number in fragments]
    with table_errors(tables.uri):
        return dataset.scanner(columns=list(columns), filter=where, fragments=selected).to_table()


def blocks_within(blocks: Iterator[Block], limit: int) -> tuple[list[Block] | None, int]:
    """All blocks, and their bytes with ids and addresses; None and 0 if they exceed the limit."""
    retained, size = [], 0
    for block in blocks:
        rows = len(block.example_ids)
        size += block.codes.nbytes + block.scales.nbytes + sum(map(len, block.example_ids))
        size += (_BYTES_PER_ID + _BYTES_PER_ADDRESS) * rows
        if size > limit:
            return None, 0
        retained.append(block)
    return retained, size


def layers_within(layers: Iterator[Layer], limit: int) -> tuple[tuple[Layer, ...] | None, int]:
    """All layers and their bytes; None and 0 if they exceed the limit."""
    retained: list[Layer] = []
    size = 0
    for layer in layers:
        size += layer.basis.nbytes if isinstance(layer, LayerCurvature) else layer.left.nbytes + layer.right.nbytes
        if size > limit:
            return None, 0
        retained.append(layer)
    return tuple(retained), size


def _select_rows(block: Block, rows: np.ndarray, extra: tuple[pa.Array, ...]) -> Block:
    if len(rows) == len(block.example_ids):
        return Block(block.example_ids, block.codes, block.scales, extra)
    numbers = torch.from_numpy(rows)
    ids = [block.example_ids[row] for row in rows.tolist()]
    return Block(ids, block.codes[numbers], block.scales[numbers], extra)
