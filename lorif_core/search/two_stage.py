"""Two-stage search, for codes that do not fit into memory and are asked again and again: it may miss rows.

Of every row some columns stay in memory, a sixteenth of its bytes. All rows are ranked by them, and of the first
of each end (`candidates`) the whole codes are read and scored. Hits have exact scores; how many of an exact scan's
first k are among them is measured by `lorif evaluate recall`.

What is kept belongs to one version of the table: a row that was removed is in none that is published later.

Shapes: Q queries, N rows of a part, F fragments that hold them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch

from lorif_core.errors import UserError
from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.options import Terms
from lorif_core.search.prefilter import quick_queries, quick_scorer
from lorif_core.search.resident import ROW_ADDRESS, found_rows
from lorif_core.search.scoring import FoldedQueries, score_rows
from lorif_core.search.term_sketch import Columns, with_most_energy
from lorif_core.search.top_k import TopK
from lorif_core.search.top_rows import Search, Sought, is_worth_a_look, learning_rows, sought
from lorif_core.tables.blocks import Block, block_of
from lorif_core.tables.datasets import Tables, store_told
from lorif_core.tables.schema import CODE_COLUMNS

_COLUMNS_SHARE = 1 / 16  # of a row's bytes
_CANDIDATES_SHARE = 1 / 32  # of the rows, an end: with the columns an eighth of all bytes
_CANDIDATES_LEAST = 64
_ROWS_TOGETHER = 16384  # for which the quick look makes its tables once
_MEMORY_PARTS = 64  # of which one holds candidates as they are stored: look-ups take several times as much
_ROWS_LEAST = 16
_FRAGMENT_SHIFT = np.uint64(32)  # of a row's address; below it the row within the fragment
_BYTES_PER_ADDRESS = 8

Rows = tuple[torch.Tensor, torch.Tensor]  # codes and scales


def check_two_stage(layout: CodeLayout, terms: Terms) -> None:
    """Raises UserError if such codes, or such scores, cannot be looked for in two stages."""
    if layout.code.kind == "dense":
        raise UserError(
            "the codes of this index are dense and have no columns for a two-stage search to begin with; search "
            "all of them (if they are signs, their bits are counted, which is quick)"
        )
    if terms.normalise != "none":
        raise UserError(
            f"a two-stage search ranks plain scores only, and these are to be normalised ({terms.normalise}); "
            f"leave that away, or search all codes"
        )


def candidates(rows: int, k: int) -> int:
    """Rows of an end whose whole codes are read: k and a thirty-second of the rows, at least 64."""
    return min(rows, max(_CANDIDATES_LEAST, k + int(_CANDIDATES_SHARE * rows)))


@dataclass(frozen=True, slots=True)
class Place:
    """The rows of a part on storage: their layout, the version of `factors`, its fragments (None for all)."""

    layout: CodeLayout
    tables: Tables
    version: int
    fragments: Sequence[int] | None

    def addresses(self, where: str) -> np.ndarray:
        """Those of the rows that meet a condition, uint64."""
        found = found_rows(self.tables, self.version, self.fragments, where, [ROW_ADDRESS])
        return found.column(ROW_ADDRESS).to_numpy()

    def rows_before(self) -> dict[int, int]:
        """How many rows of the table lie before each of its fragments."""
        with store_told(self.tables.uri):
            fragments = self.tables.require("factors", self.version).get_fragments()
            before = accumulate((fragment.count_rows() for fragment in fragments), initial=0)
            return {fragment.fragment_id: rows for fragment, rows in zip(fragments, before, strict=False)}

    def blocks(self, positions: np.ndarray, memory_gb: float) -> Iterator[Block]:
        """Whole rows, by their ascending positions in the table."""
        dataset = self.tables.require("factors", self.version)
        columns = ["example_id", *(name for name in dataset.schema.names if name in CODE_COLUMNS)]
        size = max(_ROWS_LEAST, int(memory_gb * 2**30 / _MEMORY_PARTS / self.layout.bytes_per_example))
        for start in range(0, len(positions), size):
            with store_told(self.tables.uri):
                table = dataset.take(positions[start : start + size].tolist(), columns=columns)
            for batch in table.combine_chunks().to_batches():
                yield block_of(batch)


class TwoStage:
    """Columns of all rows of a part, and the search that begins with them.

    Args:
        place: of the rows.
        columns: chosen of them.
        kept: of the columns, block after block in the order of a scan.
        addresses: of the rows, uint64 (N,), in that order.
        sample: some whole rows, to learn from what a quick look is off by.
    """

    def __init__(
        self, place: Place, columns: Columns, kept: Sequence[Rows], addresses: np.ndarray, sample: Rows
    ) -> None:
        self._place, self._columns, self._kept = place, columns, kept
        self._addresses, self._sample = addresses, sample
        fragments = (addresses >> _FRAGMENT_SHIFT).astype(np.int64)
        before, self._starts_F = place.rows_before(), np.flatnonzero(np.diff(fragments, prepend=-1))
        first = [before[fragment] for fragment in fragments[self._starts_F].tolist()]
        self._shifts_F = np.array(first, np.int64) - self._starts_F

    @property
    def bytes(self) -> int:
        """Kept in memory."""
        tensors = chain.from_iterable((*self._kept, self._sample))
        return int(self._addresses.nbytes) + sum(tensor.nbytes for tensor in tensors)

    def bytes_read(self, k: int) -> int:
        """Of columns and candidates, for one question about all rows."""
        rows, whole = len(self._addresses), self._place.layout.bytes_per_example
        return rows * self._columns.layout.bytes_per_example + min(rows, 2 * candidates(rows, k)) * whole

    def top_k(self, folded: FoldedQueries, k: int, where: str | None, memory_gb: float) -> list[TopK]:
        """Both ends of the ranking of every query among the rows that meet a condition; scores are exact."""
        meant, coarse_QN = self._meant(where), self._coarse(folded)
        return [
            self._best(folded.only(query), _ends(coarse_N, meant, k), k, memory_gb)
            for query, coarse_N in enumerate(coarse_QN)
        ]

    def _meant(self, where: str | None) -> np.ndarray:
        """Numbers of the rows that meet a condition, in the order of a scan."""
        if where is None:
            return np.arange(len(self._addresses))
        return np.flatnonzero(np.isin(self._addresses, self._place.addresses(where), assume_unique=True))

    def _coarse(self, folded: FoldedQueries) -> np.ndarray:
        """(Q, N) float32 scores by the columns alone; four bytes a row and query while it answers."""
        layout, asked = self._columns.layout, self._columns.of_queries(folded)
        quick = quick_queries(asked, layout)
        if quick is None:
            found = [score_rows(codes, scales, layout, asked) for codes, scales in self._kept]
        else:
            found = list(map(quick_scorer(layout, quick), *zip(*self._kept, strict=True)))
        return torch.cat(found, dim=1).numpy()

    def _best(self, query: FoldedQueries, rows: np.ndarray, k: int, memory_gb: float) -> TopK:
        """The strongest of some rows, as every search finds them."""
        layout = self._place.layout
        ready = sought(layout, query, [self._sample]) if is_worth_a_look(layout, len(rows), 1) else Sought(query)
        search = Search(layout, ready, k)
        positions = rows + self._shifts_F[np.searchsorted(self._starts_F, rows, side="right") - 1]
        for block in self._place.blocks(np.sort(positions), memory_gb):
            search.update(block.codes, block.scales, block.example_ids)
        return search.best[0]


def read_two_stage(place: Place, rows: int, blocks: Iterator[Block], limit: int | None) -> TwoStage:
    """Choose columns by the first rows and keep those of all, block by block.

    Args:
        place: of the rows.
        rows: how many.
        blocks: all of them, with `ROW_ADDRESS` as their only further column.
        limit: bytes that they may take.

    Raises:
        UserError: codes are dense, there are no rows, or they would take more than that.
    """
    check_two_stage(place.layout, Terms())
    if not rows:
        raise UserError("this index has no rows to search in two stages")
    first: list[Block] = []

    def begun() -> Iterator[Rows]:
        for block in blocks:
            first.append(block)
            yield block.codes, block.scales

    sample = learning_rows(begun())
    columns = with_most_energy(place.layout, *sample, _COLUMNS_SHARE * place.layout.bytes_per_example)
    a_row = sum(part.nbytes for part in columns.of_rows(*(part[:1] for part in sample))) + _BYTES_PER_ADDRESS
    if limit is not None and a_row * rows > limit:
        raise UserError(
            f"the columns of {rows:,} rows for a two-stage search take {a_row * rows / 2**20:,.1f} MiB, and there "
            f"are {limit / 2**20:,.1f} MiB for them; give more (lorif serve: --memory-gb), or search all codes"
        )
    kept: list[Rows] = []
    waiting, addresses = [], []
    for block in chain(first, blocks):
        waiting.append(columns.of_rows(block.codes, block.scales))
        addresses.append(block.extra[0].to_numpy())
        if sum(len(codes) for codes, _ in waiting) >= _ROWS_TOGETHER:
            kept.append(_joined(waiting))
            waiting = []
    kept += [_joined(waiting)] if waiting else []
    return TwoStage(place, columns, kept, np.concatenate(addresses), sample)


def _joined(rows: Sequence[Rows]) -> Rows:
    codes, scales = zip(*rows, strict=True)
    return torch.cat(codes), torch.cat(scales)


def _ends(coarse_N: np.ndarray, meant: np.ndarray, k: int) -> np.ndarray:
    """Of the rows that are meant the candidates of both ends."""
    count = candidates(len(meant), k)
    if 2 * count >= len(meant):
        return meant
    order = np.argpartition(coarse_N[meant], [count - 1, len(meant) - count])
    return meant[np.concatenate([order[:count], order[-count:]])]
