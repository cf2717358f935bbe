"""The strongest rows of a scan: all rows are scored quickly, and exactly those that may be among the first k.

How far quick scores are off is learned from the first rows, which are scored both ways: the margin is so many
standard deviations of their difference that a row outside it is seldom among the first k (`quality.quick`).
"""

from collections.abc import Sequence

import numpy as np
import torch

from lorif_core.factors import CodeLayout
from lorif_core.heaps import Heaps
from lorif_core.narrow import is_faster, narrowed, quick_scores
from lorif_core.scoring import FoldedQueries, score_rows

_MARGIN = 5.0  # standard deviations
_LEARNED_FROM = 256  # rows at least


class Search:
    """Both ends of the ranking of every query, block after block.

    Args:
        layout: of the codes.
        folded: the queries.
        k: how many of each end are kept.
        exact: score every row exactly.
    """

    def __init__(self, layout: CodeLayout, folded: FoldedQueries, k: int, *, exact: bool = False) -> None:
        self._layout, self._folded = layout, folded
        self._narrow = None if exact or not is_faster(layout) else narrowed(folded, layout)
        self._margins: np.ndarray | None = None
        self._heaps = Heaps(folded.count, k)
        self.best = self._heaps.top

    def update(
        self, codes: torch.Tensor, scales_BS: torch.Tensor, ids: Sequence[str], times_B: np.ndarray | None = None
    ) -> None:
        """Take in a block of rows as they are stored; their scores are multiplied by `times`."""
        if self._narrow is None or self._margins is None:
            self._take_all(codes, scales_BS, ids, times_B)
            return
        quick_QB = _multiplied(quick_scores(codes, scales_BS, self._layout, self._narrow).numpy(), times_B)
        for query, kept in enumerate(self.best):
            rows = np.flatnonzero(kept.may_take(quick_QB[query], float(self._margins[query])))
            if not len(rows):
                continue
            one = FoldedQueries(tuple(weight_QD[query : query + 1] for weight_QD in self._folded.weights))
            chosen = torch.from_numpy(rows)
            exact_1B = score_rows(codes[chosen], scales_BS[chosen], self._layout, one).numpy()
            scores = _multiplied(exact_1B, None if times_B is None else times_B[rows])
            kept.update(scores[0], [ids[row] for row in rows.tolist()])

    def _take_all(
        self, codes: torch.Tensor, scales_BS: torch.Tensor, ids: Sequence[str], times_B: np.ndarray | None
    ) -> None:
        exact_QB = score_rows(codes, scales_BS, self._layout, self._folded).numpy()
        exact_QB = _multiplied(exact_QB, times_B)
        self._heaps.update(exact_QB, ids)
        if self._narrow is not None and len(ids) >= _LEARNED_FROM:
            quick = quick_scores(codes, scales_BS, self._layout, self._narrow).numpy()
            self._margins = _MARGIN * (exact_QB - _multiplied(quick, times_B)).std(axis=1)


def _multiplied(scores_QB: np.ndarray, times_B: np.ndarray | None) -> np.ndarray:
    return scores_QB if times_B is None else scores_QB * times_B
