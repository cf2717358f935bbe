"""Streaming top-k of both ends for many queries at once.

Shapes: Q queries, B rows of a block.
"""

from collections.abc import Sequence

import numpy as np

from lorif_core.search.top_k import TopK


class Heaps:
    """The k highest and the k lowest scores of every query; memory is O(Q k) plus one block.

    One comparison of the whole block with the k-th scores so far excludes rows that cannot enter. Rows that tie
    with the k-th score pass, because the example id decides between them: the result does not depend on the order
    of blocks.

    Args:
        queries: Q.
        k: rows of each end.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.top = [TopK(k) for _ in range(queries)]
        self._floor_Q1 = np.full((queries, 1), -np.inf, np.float32)
        self._ceiling_Q1 = np.full((queries, 1), np.inf, np.float32)

    def update(self, scores_QB: np.ndarray, ids: Sequence[str]) -> None:
        """Add a block: float32 scores and the ids of its rows."""
        may_enter = scores_QB >= self._floor_Q1
        may_enter |= scores_QB <= self._ceiling_Q1
        for query in np.flatnonzero(may_enter.any(axis=1)).tolist():
            rows, top = np.flatnonzero(may_enter[query]), self.top[query]
            top.update(scores_QB[query, rows], [ids[row] for row in rows.tolist()])
            if len(top.proponents) == top.k:
                self._floor_Q1[query] = top.proponents[-1].score
                self._ceiling_Q1[query] = top.opponents[-1].score
