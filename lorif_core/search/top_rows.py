"""The strongest rows of a scan: a prefilter scores all rows, and the candidates for the first k get exact scores.

The error of prefilter scores is estimated once, from rows that are scored both ways, relative to the norm of their
scales. The margin of a row is 5 standard deviations of that error, so that a row that the prefilter excludes is
rarely among the first k (`benchmarks.quality.prefilter`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.distribution import ScoreCounts
from lorif_core.search.heaps import Heaps
from lorif_core.search.prefilter import PrefilterQueries, prefilter_kind, prefilter_queries, prefilter_scorer
from lorif_core.search.scoring import FoldedQueries, score_rows
from lorif_core.search.top_k import TopK

_MARGIN = 5.0  # standard deviations
MARGIN_ROWS = 256  # rows that margins are estimated from
_MIN_ROWS = 2 * MARGIN_ROWS


@dataclass(frozen=True, slots=True)
class PreparedQueries:
    """Folded queries, prepared for a search of their strongest rows.

    Attributes:
        folded: queries for exact scores.
        prefilter: queries for the prefilter; None if every row is scored exactly.
        margins: (Q,) float32, the largest assumed error of prefilter scores of rows whose scales have norm 1. The
            relative error of a prefilter that rounds its scores is added to it.
    """

    folded: FoldedQueries
    prefilter: PrefilterQueries | None = None
    margins: np.ndarray | None = None


def is_prefilter_worthwhile(layout: CodeLayout, rows: int, queries: int) -> bool:
    """Whether a prefilter of so many rows saves more time than the estimate of its error takes."""
    return rows > _MIN_ROWS and prefilter_kind(layout, queries) is not None


def prepare_queries(
    layout: CodeLayout, folded: FoldedQueries, sample: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> PreparedQueries:
    """Queries with the margins of their prefilter, from the first rows of a sample of blocks (codes, scales)."""
    prefilter = prefilter_queries(folded, layout)
    if prefilter is None:
        return PreparedQueries(folded)
    codes, scales_BS = margin_rows(sample)
    norms_B = _scale_norms(scales_BS)
    approximate_QB = prefilter_scorer(layout, prefilter)(codes, scales_BS)
    difference_QB = (score_rows(codes, scales_BS, layout, folded) - approximate_QB).numpy()
    errors_QB = np.divide(difference_QB, norms_B, out=np.zeros(difference_QB.shape, np.float32), where=norms_B > 0)
    return PreparedQueries(folded, prefilter, _MARGIN * errors_QB.std(axis=1))


def margin_rows(blocks: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of the first `MARGIN_ROWS` rows of blocks (codes, scales); reads no further blocks."""
    codes, scales, left = [], [], MARGIN_ROWS
    for block_codes, block_scales in blocks:
        codes.append(block_codes[:left])
        scales.append(block_scales[:left])
        left -= len(codes[-1])
        if left <= 0:
            break
    return torch.cat(codes), torch.cat(scales)


class Search:
    """Both ends of the ranking of every query, and the distribution of its scores, block after block.

    Rows that a prefilter excludes are counted by their approximate scores.

    Args:
        layout: layout of the codes.
        queries: the prepared queries.
        k: rows of each end.
    """

    def __init__(self, layout: CodeLayout, queries: PreparedQueries, k: int) -> None:
        self._layout, self._queries = layout, queries
        self._scorer = None if queries.prefilter is None else prefilter_scorer(layout, queries.prefilter)
        self._relative_error = 0.0 if queries.prefilter is None else queries.prefilter.relative_error
        # unpacking a dense row takes as long as scoring it for 100 queries; a single query unpacks no factors
        count = queries.folded.count
        self._worth_sharing = 1 + count / 128 if layout.code.kind == "dense" else count / 2
        self._heaps = Heaps(queries.folded.count, k)
        self.best = self._heaps.top
        self._counts = [ScoreCounts("exact" if self._scorer is None else "prefilter") for _ in self.best]
        for top, counts in zip(self.best, self._counts, strict=True):
            top.counts = counts

    def update(
        self,
        codes: torch.Tensor,
        scales_BS: torch.Tensor,
        ids: Sequence[str],
        multiplier_B: np.ndarray | None = None,
    ) -> np.ndarray:
        """Add a block of rows as they are stored; their scores are multiplied by `multiplier_B` > 0.

        Returns:
            (Q, B) their scores, approximate for rows that the prefilter excludes.
        """
        if self._scorer is None or self._queries.margins is None:
            exact_QB = score_rows(codes, scales_BS, self._layout, self._queries.folded).numpy()
            exact_QB = _multiplied(exact_QB, multiplier_B)
            self._heaps.update(exact_QB, ids)
            self._count(exact_QB)
            return exact_QB
        approximate_QB = _multiplied(self._scorer(codes, scales_BS).numpy(), multiplier_B)
        norms_B = _multiplied(_scale_norms(scales_BS), multiplier_B)
        by_query = zip(self.best, approximate_QB, self._queries.margins, strict=True)
        may_enter_QB = np.stack(
            [
                top.may_enter(approximate_B, self._margins(approximate_B, margin * norms_B))
                for top, approximate_B, margin in by_query
            ]
        )
        rows = np.flatnonzero(may_enter_QB.any(axis=0))
        scores_QB, folded = approximate_QB, self._queries.folded
        if may_enter_QB.sum() > len(rows) * self._worth_sharing:
            exact_QR = self._add_exact(folded, self.best, codes, scales_BS, ids, multiplier_B, rows)
            scores_QB[:, rows] = exact_QR
        else:
            for query, top in enumerate(self.best):
                rows, single = np.flatnonzero(may_enter_QB[query]), folded.single(query)
                scores_QB[query, rows] = self._add_exact(single, [top], codes, scales_BS, ids, multiplier_B, rows)
        self._count(scores_QB)
        return scores_QB

    def _count(self, scores_QB: np.ndarray) -> None:
        for counts, scores_B in zip(self._counts, scores_QB, strict=True):
            counts.add(scores_B)

    def _margins(self, approximate_B: np.ndarray, estimated_B: np.ndarray) -> np.ndarray:
        """(B,) margins of prefilter scores: the estimated error, plus the relative error if there is one."""
        if not self._relative_error:
            return estimated_B
        return estimated_B + self._relative_error * np.abs(approximate_B)

    def _add_exact(
        self,
        folded: FoldedQueries,
        best: Sequence[TopK],
        codes: torch.Tensor,
        scales_BS: torch.Tensor,
        ids: Sequence[str],
        multiplier_B: np.ndarray | None,
        rows: np.ndarray,
    ) -> np.ndarray:
        """Score some rows of a block exactly, add them to the best rows of some queries; returns (Q, rows)."""
        if not len(rows):
            return np.zeros((len(best), 0), np.float32)
        numbers = torch.from_numpy(rows)
        exact_QB = score_rows(codes[numbers], scales_BS[numbers], self._layout, folded).numpy()
        exact_QB = _multiplied(exact_QB, None if multiplier_B is None else multiplier_B[rows])
        row_ids = [ids[row] for row in rows.tolist()]
        for top, scores in zip(best, exact_QB, strict=True):
            top.update(scores, row_ids)
        return exact_QB


def _scale_norms(scales_BS: torch.Tensor) -> np.ndarray:
    return scales_BS.norm(dim=1).numpy()


def _multiplied(scores: np.ndarray, multiplier_B: np.ndarray | None) -> np.ndarray:
    return scores if multiplier_B is None else scores * multiplier_B
