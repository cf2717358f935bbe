"""The strongest rows of a scan: all rows are scored quickly, and exactly those that may be among the first k.

How far quick scores are off is learned once, from some rows that are scored both ways, next to the size of their
scales: the margin of a row is so many standard deviations that one outside it is seldom among the first k
(`quality.quick`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.heaps import Heaps
from lorif_core.search.prefilter import QuickQueries, quick_kind, quick_queries, quick_scorer
from lorif_core.search.scoring import FoldedQueries, score_rows
from lorif_core.search.top_k import TopK

_MARGIN = 5.0  # standard deviations
LEARNED_FROM = 256  # rows
_WORTH_ROWS = 2 * LEARNED_FROM


@dataclass(frozen=True, slots=True)
class Sought:
    """Folded queries, and how their strongest rows are looked for.

    Attributes:
        folded: for exact scores.
        quick: for the quick look; None where every row is scored exactly.
        margins: (Q,) float32, how far quick scores are off at most, of rows with scales of norm 1; to which comes
            the share of a score by which it may be off, if it is rounded itself.
    """

    folded: FoldedQueries
    quick: QuickQueries | None = None
    margins: np.ndarray | None = None


def is_worth_a_look(layout: CodeLayout, rows: int, queries: int) -> bool:
    """Whether a quick look at so many rows spares more than it costs to learn how far it is off."""
    return rows > _WORTH_ROWS and quick_kind(layout, queries) is not None


def sought(
    layout: CodeLayout, folded: FoldedQueries, sample: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> Sought:
    """Queries with the margins that blocks of codes and scales show; of the sample the first rows are read."""
    quick = quick_queries(folded, layout)
    if quick is None:
        return Sought(folded)
    codes, scales_BS = learning_rows(sample)
    sizes_B = _sizes(scales_BS)
    difference_QB = score_rows(codes, scales_BS, layout, folded) - quick_scorer(layout, quick)(codes, scales_BS)
    off_QB = np.divide(
        difference_QB.numpy(), sizes_B, out=np.zeros(difference_QB.shape, np.float32), where=sizes_B > 0
    )
    return Sought(folded, quick, _MARGIN * off_QB.std(axis=1))


def learning_rows(blocks: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of the first rows of blocks of codes and scales that margins are learned from; no more are read."""
    codes, scales, left = [], [], LEARNED_FROM
    for some_codes, some_scales in blocks:
        codes.append(some_codes[:left])
        scales.append(some_scales[:left])
        left -= len(codes[-1])
        if left <= 0:
            break
    return torch.cat(codes), torch.cat(scales)


class Search:
    """Both ends of the ranking of every query, block after block.

    Args:
        layout: of the codes.
        queries: as `sought` made them.
        k: how many of each end are kept.
    """

    def __init__(self, layout: CodeLayout, queries: Sought, k: int) -> None:
        self._layout, self._sought = layout, queries
        self._quick = None if queries.quick is None else quick_scorer(layout, queries.quick)
        self._rounding = 0.0 if queries.quick is None else queries.quick.relative_error
        # a dense row takes as long to unpack as to score for a hundred queries; factors are not unpacked for one
        count = queries.folded.count
        self._worth_sharing = 1 + count / 128 if layout.code.kind == "dense" else count / 2
        self._heaps = Heaps(queries.folded.count, k)
        self.best = self._heaps.top

    def update(
        self, codes: torch.Tensor, scales_BS: torch.Tensor, ids: Sequence[str], times_B: np.ndarray | None = None
    ) -> None:
        """Take in a block of rows as they are stored; their scores are multiplied by `times` > 0."""
        if self._quick is None or self._sought.margins is None:
            exact_QB = score_rows(codes, scales_BS, self._layout, self._sought.folded).numpy()
            self._heaps.update(_multiplied(exact_QB, times_B), ids)
            return
        quick_QB = _multiplied(self._quick(codes, scales_BS).numpy(), times_B)
        sizes_B = _multiplied(_sizes(scales_BS), times_B)
        limits = zip(self.best, quick_QB, self._sought.margins, strict=True)
        chosen_QB = np.stack(
            [kept.may_take(quick_B, self._off(quick_B, margin * sizes_B)) for kept, quick_B, margin in limits]
        )
        rows = np.flatnonzero(chosen_QB.any(axis=0))
        if chosen_QB.sum() > len(rows) * self._worth_sharing:
            self._take(self._sought.folded, self.best, codes, scales_BS, ids, times_B, rows)
            return
        for query, kept in enumerate(self.best):
            own = np.flatnonzero(chosen_QB[query])
            self._take(self._sought.folded.only(query), [kept], codes, scales_BS, ids, times_B, own)

    def _off(self, quick_B: np.ndarray, learned_B: np.ndarray) -> np.ndarray:
        """By how much quick scores may be off."""
        return learned_B + self._rounding * np.abs(quick_B) if self._rounding else learned_B

    def _take(
        self,
        folded: FoldedQueries,
        best: Sequence[TopK],
        codes: torch.Tensor,
        scales_BS: torch.Tensor,
        ids: Sequence[str],
        times_B: np.ndarray | None,
        rows: np.ndarray,
    ) -> None:
        """Score some rows of a block exactly."""
        if not len(rows):
            return
        chosen = torch.from_numpy(rows)
        exact_QB = score_rows(codes[chosen], scales_BS[chosen], self._layout, folded).numpy()
        exact_QB = _multiplied(exact_QB, None if times_B is None else times_B[rows])
        names = [ids[row] for row in rows.tolist()]
        for kept, scores in zip(best, exact_QB, strict=True):
            kept.update(scores, names)


def _sizes(scales_BS: torch.Tensor) -> np.ndarray:
    return scales_BS.norm(dim=1).numpy()


def _multiplied(scores: np.ndarray, times_B: np.ndarray | None) -> np.ndarray:
    return scores if times_B is None else scores * times_B
