"""Both ends of the rankings of many queries at once, while blocks of scores stream by.

Shapes: Q queries, B rows of a block.
"""

from collections.abc import Sequence

import numpy as np

from lorif_core.search.top_k import TopK


class Heaps:
    """The k highest and the k lowest of every query; memory is O(Q k) and one block, however many rows stream by.

    Rows that cannot enter are told by one comparison of the whole block with the k-th scores so far. Ties with
    those pass, as the example id decides among them: so the order of blocks decides nothing.

    Args:
        queries: Q.
        k: of each end.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.top = [TopK(k) for _ in range(queries)]
        self._floor_Q1 = np.full((queries, 1), -np.inf, np.float32)
        self._ceiling_Q1 = np.full((queries, 1), np.inf, np.float32)

    def update(self, scores_QB: np.ndarray, ids: Sequence[str]) -> None:
        """Take in a block: float32 scores with the ids of its rows."""
        may_enter = scores_QB >= self._floor_Q1
        may_enter |= scores_QB <= self._ceiling_Q1
        for query in np.flatnonzero(may_enter.any(axis=1)).tolist():
            rows, kept = np.flatnonzero(may_enter[query]), self.top[query]
            kept.update(scores_QB[query, rows], [ids[row] for row in rows.tolist()])
            if len(kept.proponents) == kept.k:
                self._floor_Q1[query] = kept.proponents[-1].score
                self._ceiling_Q1[query] = kept.opponents[-1].score
