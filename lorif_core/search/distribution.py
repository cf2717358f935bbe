"""The distribution of the scores of all searched rows, counted in the scan that finds the strongest of them.

The range of the scores is not known before. So bins are as wide as a power of two, and begin at multiples of their
width. When a score lies outside of them, pairs of bins are joined and the width doubles. Counts stay exact, and do
not depend on the order of the rows or on who counted which.

Shapes: Q queries, B rows of a block, C bins.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

ScoreSource = Literal["exact", "prefilter", "sketch"]
_SOURCES = get_args(ScoreSource)

BINS = 40
"""The most bins of a distribution."""
_COUNTED = 256  # bins while rows are counted, half of them below zero
_SMALLEST = -1000  # exponent of the width for scores that are all zero


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram of the scores of all searched rows, every row in one bin.

    Attributes:
        edges: of the bins, ascending, one more than `counts`.
        counts: rows of each bin, from its lower edge (included) to its upper edge.
        scores: `exact`; `prefilter`, if rows that cannot be among the shown ones have approximate scores; or
            `sketch`, if only the candidates of a two-stage search have exact ones.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    scores: ScoreSource

    @property
    def rows(self) -> int:
        """The number of searched rows."""
        return sum(self.counts)


class ScoreCounts:
    """Counts of the scores of one query; memory does not grow with the rows.

    Args:
        source: what scores are counted.
        exponent: bins are 2^exponent wide; None before the first row.
        counts: rows of each bin, int64 (C,).
    """

    def __init__(
        self, source: ScoreSource = "exact", exponent: int | None = None, counts: np.ndarray | None = None
    ) -> None:
        self._source, self._exponent = source, exponent
        self._counts = np.zeros(_COUNTED, np.int64) if counts is None else counts

    def add(self, scores_B: np.ndarray) -> None:
        """Count a block of scores; those that are not finite count as zero."""
        if not len(scores_B):
            return
        scores_B = scores_B.astype(np.float64)  # in float32 the smallest scores would become zero
        low, high = float(scores_B.min()), float(scores_B.max())
        if not np.isfinite(low) or not np.isfinite(high):
            scores_B = np.nan_to_num(scores_B, nan=0.0, posinf=0.0, neginf=0.0)
            low, high = float(scores_B.min()), float(scores_B.max())
        exponent = max(_exponent_of(low, high), _SMALLEST if self._exponent is None else self._exponent)
        self._widen(exponent)
        bins_B = np.floor(np.ldexp(scores_B, -exponent)).astype(np.int64) + _COUNTED // 2
        self._counts = self._counts + np.bincount(bins_B, minlength=_COUNTED)

    def merge(self, other: "ScoreCounts") -> None:
        """Add the counts of other rows."""
        self._source = max(self._source, other._source, key=_SOURCES.index)
        if other._exponent is None:
            return
        exponent = other._exponent if self._exponent is None else max(self._exponent, other._exponent)
        self._widen(exponent)
        joined = ScoreCounts(other._source, other._exponent, other._counts)
        joined._widen(exponent)
        self._counts = self._counts + joined._counts

    def _widen(self, exponent: int) -> None:
        """Join bins until they have a width of 2^exponent."""
        if self._exponent is not None and exponent > self._exponent:
            used = np.flatnonzero(self._counts)
            joined = ((used - _COUNTED // 2) >> min(exponent - self._exponent, 63)) + _COUNTED // 2
            self._counts = np.bincount(joined, self._counts[used], _COUNTED).astype(np.int64)
        self._exponent = exponent

    @property
    def distribution(self) -> Distribution | None:
        """The counts in at most `BINS` bins of equal width; None if no row was counted."""
        used = np.flatnonzero(self._counts)
        if self._exponent is None or not len(used):
            return None
        first, last = int(used[0]) - _COUNTED // 2, int(used[-1]) - _COUNTED // 2
        width = 1
        while last // width - first // width >= BINS:
            width += 1
        start, bins = first // width, last // width - first // width + 1
        counts = np.bincount((used - _COUNTED // 2) // width - start, self._counts[used], bins).astype(np.int64)
        edges = np.ldexp(np.arange(start, start + bins + 1, dtype=np.float64) * width, self._exponent)
        return Distribution(tuple(edges.tolist()), tuple(counts.tolist()), self._source)

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the bins that are empty."""
        used = np.flatnonzero(self._counts)
        return _counts_of, (self._source, self._exponent, used.astype(np.uint8), self._counts[used])


def _counts_of(source: ScoreSource, exponent: int | None, used: np.ndarray, values: np.ndarray) -> ScoreCounts:
    counts = np.zeros(_COUNTED, np.int64)
    counts[used] = values
    return ScoreCounts(source, exponent, counts)


def _exponent_of(low: float, high: float) -> int:
    """The smallest exponent whose bins contain both scores, so that they fill at least a quarter of the bins."""
    half, largest = _COUNTED // 2, max(-low, high)
    if largest <= 0:
        return _SMALLEST
    _, exponent = np.frexp(largest)
    needed = int(exponent) - int(np.log2(half))
    return max(needed, _SMALLEST)


def percentile(rank: int, distribution: Distribution | None, *, is_proponent: bool) -> float | None:
    """Percent of the searched rows that rank below a row, from its rank (from 1) among proponents or opponents.

    None if the rows were not counted.
    """
    if distribution is None:
        return None
    rows = distribution.rows
    return 100 * max(0, min(rows - rank if is_proponent else rank - 1, rows)) / rows
