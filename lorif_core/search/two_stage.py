"""Two-stage search, for codes that do not fit into memory and are searched often. It may miss rows.

A sketch of every row, a sixteenth of its bytes, stays in memory. All rows are ranked by their sketches. The full
codes of the first rows of each end (`candidate_count`) are then read and scored, so the scores of hits are exact.
`lorif evaluate recall` measures how many of the first k rows of an exact search it finds.

A sketch belongs to one version of the table: versions published after a removal do not have the removed rows.

Shapes: Q queries, N rows of a part, F fragments of the part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch

from lorif_core.errors import UserError
from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.distribution import ScoreCounts
from lorif_core.search.options import DEFAULT_OPTIONS, SearchOptions
from lorif_core.search.prefilter import prefilter_queries, prefilter_scorer
from lorif_core.search.resident import ROW_ADDRESS, matching_rows
from lorif_core.search.scoring import FoldedQueries, score_rows
from lorif_core.search.term_sketch import TermSketch, with_most_energy
from lorif_core.search.top_k import TopK
from lorif_core.search.top_rows import (
    PreparedQueries,
    Search,
    is_prefilter_worthwhile,
    margin_rows,
    prepare_queries,
)
from lorif_core.tables.blocks import Block, block_from_batch
from lorif_core.tables.checksums import CODE_GROUP, columns_of, require_undamaged
from lorif_core.tables.datasets import Tables, table_errors

_SKETCH_SHARE = 1 / 16  # of a row's bytes
_CANDIDATES_SHARE = 1 / 32  # of the rows, for each end; with the sketches this is an eighth of all bytes
_MIN_CANDIDATES = 64
_SKETCH_BLOCK_ROWS = 16384  # the prefilter builds its tables once per block
_MEMORY_PARTS = 64  # stored candidates take one of these parts; look-ups need several times as much
_MIN_BLOCK_ROWS = 16
_FRAGMENT_SHIFT = np.uint64(32)  # a row address is the fragment, then 32 bits for the row within it
_BYTES_PER_ADDRESS = 8

Rows = tuple[torch.Tensor, torch.Tensor]  # codes and scales


def check_two_stage(layout: CodeLayout, options: SearchOptions) -> None:
    """Raise UserError if a two-stage search does not support these codes or this normalisation."""
    if layout.code.kind == "dense":
        raise UserError(
            "the codes of this index are dense, and a two-stage search needs factors; search all codes instead "
            "(a search of dense signs counts bits, which is fast)"
        )
    if options.normalise != "none":
        raise UserError(
            f"a two-stage search cannot rank normalised scores ({options.normalise}); do not normalise, or search "
            f"all codes"
        )


def candidate_count(rows: int, k: int) -> int:
    """Rows of an end whose full codes are read: k plus a thirty-second of the rows, at least 64."""
    return min(rows, max(_MIN_CANDIDATES, k + int(_CANDIDATES_SHARE * rows)))


@dataclass(frozen=True, slots=True)
class StoredRows:
    """The rows of a part on storage: their layout, the version of `factors`, and its fragments (None for all)."""

    layout: CodeLayout
    tables: Tables
    version: int
    fragments: Sequence[int] | None

    def addresses(self, where: str) -> np.ndarray:
        """Addresses of the rows that match a condition, uint64."""
        rows = matching_rows(self.tables, self.version, self.fragments, where, [ROW_ADDRESS])
        return rows.column(ROW_ADDRESS).to_numpy()

    def rows_before(self) -> dict[int, int]:
        """The number of rows of the table before each of its fragments."""
        with table_errors(self.tables.uri):
            fragments = self.tables.require("factors", self.version).get_fragments()
            before = accumulate((fragment.count_rows() for fragment in fragments), initial=0)
            return {fragment.fragment_id: rows for fragment, rows in zip(fragments, before, strict=False)}

    def blocks(self, positions: np.ndarray, memory_gb: float) -> Iterator[Block]:
        """Full rows, by their ascending positions in the table."""
        dataset = self.tables.require("factors", self.version)
        columns = columns_of([CODE_GROUP], dataset.schema)
        size = max(_MIN_BLOCK_ROWS, int(memory_gb * 2**30 / _MEMORY_PARTS / self.layout.bytes_per_example))
        for start in range(0, len(positions), size):
            with table_errors(self.tables.uri):
                table = dataset.take(positions[start : start + size].tolist(), columns=columns)
            for batch in table.combine_chunks().to_batches():
                require_undamaged(batch, [CODE_GROUP], self.tables.uri)
                yield block_from_batch(batch)


class TwoStage:
    """The sketches of all rows of a part, and the search that starts with them.

    Args:
        stored: the full rows on storage.
        sketch: the terms of a sketch.
        sketches: codes and scales of the sketches, block after block in the order of a scan.
        addresses: addresses of the rows in the same order, uint64 (N,).
        sample: some full rows, which show the error of the prefilter.
    """

    def __init__(
        self,
        stored: StoredRows,
        sketch: TermSketch,
        sketches: Sequence[Rows],
        addresses: np.ndarray,
        sample: Rows,
    ) -> None:
        self._stored, self._sketch, self._sketches = stored, sketch, sketches
        self._addresses, self._sample = addresses, sample
        fragments = (addresses >> _FRAGMENT_SHIFT).astype(np.int64)
        before, self._starts_F = stored.rows_before(), np.flatnonzero(np.diff(fragments, prepend=-1))
        first = [before[fragment] for fragment in fragments[self._starts_F].tolist()]
        self._shifts_F = np.array(first, np.int64) - self._starts_F

    @property
    def bytes(self) -> int:
        """Bytes in memory."""
        tensors = chain.from_iterable((*self._sketches, self._sample))
        return int(self._addresses.nbytes) + sum(tensor.nbytes for tensor in tensors)

    def bytes_read(self, k: int) -> int:
        """Bytes of sketches and candidates that one query reads if it searches all rows."""
        rows, full_bytes = len(self._addresses), self._stored.layout.bytes_per_example
        sketch_bytes = rows * self._sketch.layout.bytes_per_example
        return sketch_bytes + min(rows, 2 * candidate_count(rows, k)) * full_bytes

    def top_k(self, folded: FoldedQueries, k: int, where: str | None, memory_gb: float) -> list[TopK]:
        """Both ends of the ranking of every query among the rows that match a condition; scores are exact."""
        matching, sketch_QN = self._matching(where), self._sketch_scores(folded)
        tops = []
        for query, sketch_N in enumerate(sketch_QN):
            rows = _candidate_rows(sketch_N, matching, k)
            top = self._best(folded.single(query), rows, k, memory_gb)
            others = ScoreCounts("sketch")
            others.add(sketch_N[np.setdiff1d(matching, rows, assume_unique=True)])
            top.merge(TopK(k, counts=others))
            tops.append(top)
        return tops

    def _matching(self, where: str | None) -> np.ndarray:
        """Numbers, in the order of a scan, of the rows that match a condition."""
        if where is None:
            return np.arange(len(self._addresses))
        return np.flatnonzero(np.isin(self._addresses, self._stored.addresses(where), assume_unique=True))

    def _sketch_scores(self, folded: FoldedQueries) -> np.ndarray:
        """(Q, N) float32 scores of the sketches."""
        layout, queries = self._sketch.layout, self._sketch.of_queries(folded)
        prefilter = prefilter_queries(queries, layout)
        if prefilter is None:
            scores = [score_rows(codes, scales, layout, queries) for codes, scales in self._sketches]
        else:
            scores = list(map(prefilter_scorer(layout, prefilter), *zip(*self._sketches, strict=True)))
        return torch.cat(scores, dim=1).numpy()

    def _best(self, query: FoldedQueries, rows: np.ndarray, k: int, memory_gb: float) -> TopK:
        """The strongest of some rows, by the same search as a scan of all codes."""
        layout = self._stored.layout
        if is_prefilter_worthwhile(layout, len(rows), 1):
            search = Search(layout, prepare_queries(layout, query, [self._sample]), k)
        else:
            search = Search(layout, PreparedQueries(query), k)
        positions = rows + self._shifts_F[np.searchsorted(self._starts_F, rows, side="right") - 1]
        for block in self._stored.blocks(np.sort(positions), memory_gb):
            search.update(block.codes, block.scales, block.example_ids)
        return search.best[0]


def read_two_stage(stored: StoredRows, rows: int, blocks: Iterator[Block], limit: int | None) -> TwoStage:
    """Choose the terms of the sketch by the first rows, then read the sketches of all rows, block by block.

    Args:
        stored: the full rows on storage.
        rows: their number.
        blocks: all rows, with `ROW_ADDRESS` as their only extra column.
        limit: bytes that the sketches may take; None for no limit.

    Raises:
        UserError: codes are dense, there are no rows, or the sketches exceed the limit.
    """
    check_two_stage(stored.layout, DEFAULT_OPTIONS)
    if not rows:
        raise UserError("this index has no rows, so a two-stage search has nothing to search")
    first: list[Block] = []

    def first_rows() -> Iterator[Rows]:
        for block in blocks:
            first.append(block)
            yield block.codes, block.scales

    sample = margin_rows(first_rows())
    sketch = with_most_energy(stored.layout, *sample, _SKETCH_SHARE * stored.layout.bytes_per_example)
    one_row = sketch.of_rows(*(tensor[:1] for tensor in sample))
    size = rows * (sum(tensor.nbytes for tensor in one_row) + _BYTES_PER_ADDRESS)
    if limit is not None and size > limit:
        raise UserError(
            f"the sketches of {rows:,} rows for a two-stage search take {size / 2**20:,.1f} MiB, but only "
            f"{limit / 2**20:,.1f} MiB are available; give more (lorif serve: --memory-gb), or search all codes"
        )
    sketches: list[Rows] = []
    pending, addresses = [], []
    for block in chain(first, blocks):
        pending.append(sketch.of_rows(block.codes, block.scales))
        addresses.append(block.extra[0].to_numpy())
        if sum(len(codes) for codes, _ in pending) >= _SKETCH_BLOCK_ROWS:
            sketches.append(_joined(pending))
            pending = []
    sketches += [_joined(pending)] if pending else []
    return TwoStage(stored, sketch, sketches, np.concatenate(addresses), sample)


def _joined(rows: Sequence[Rows]) -> Rows:
    codes, scales = zip(*rows, strict=True)
    return torch.cat(codes), torch.cat(scales)


def _candidate_rows(sketch_N: np.ndarray, matching: np.ndarray, k: int) -> np.ndarray:
    """The candidates of both ends among the matching rows, by the scores of their sketches."""
    count = candidate_count(len(matching), k)
    if 2 * count >= len(matching):
        return matching
    order = np.argpartition(sketch_N[matching], [count - 1, len(matching) - count])
    return matching[np.concatenate([order[:count], order[-count:]])]
