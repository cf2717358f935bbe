"""Sums of scores by file for the first queries of a batch, made in the scan that finds their strongest rows.

Rows that a prefilter excludes enter with their approximate scores, as they do in the distribution of all scores.

Shapes: Q queries, B rows of a block.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from lorif_core.search.column_sums import TOKENS, Sums
from lorif_core.tables.blocks import Block

MOST_FILES = 1000
"""Beyond this there are no sums: a comparison of so many files tells nothing, and workers exchange them."""
_FILE = "uri"


class SourceSums:
    """Sums over the rows of each file.

    Args:
        queries: how many of the first queries have sums.
    """

    def __init__(self, queries: int) -> None:
        self.queries = queries
        self._sums: Sums | None = Sums(_FILE, queries)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the blocks of `add` must have as their `extra`."""
        return (_FILE, TOKENS) if self.queries else ()

    def add(self, block: Block, scores_QB: np.ndarray) -> None:
        """Add a block with the scores of its rows."""
        if self._sums is None or not self.queries:
            return
        files, tokens = block.extra
        self._sums.add(files, tokens, scores_QB[: self.queries])
        self._bound()

    def merge(self, other: "SourceSums") -> None:
        """Add the sums of other rows, for the same queries."""
        if self._sums is None or other._sums is None:
            self._sums = None
            return
        self._sums.merge(other._sums)
        self._bound()

    def tables(self, query_ids: Sequence[str]) -> list[pa.Table] | None:
        """The rows of `totals` for each query; None unless there are two to `MOST_FILES` files."""
        if self._sums is None or len(self._sums.numbers) < 2:
            return None
        return [self._sums.table_of(number, query_id) for number, query_id in enumerate(query_ids)]

    def _bound(self) -> None:
        if self._sums is not None and len(self._sums.numbers) > MOST_FILES:
            self._sums = None
