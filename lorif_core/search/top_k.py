"""Streaming top-k of both ends, deterministic: equal scores are ordered by example id."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lorif_core.errors import UserError
from lorif_core.search.distribution import Distribution, ScoreCounts


@dataclass(frozen=True, slots=True)
class Scored:
    """One training example and its score."""

    score: float
    example_id: str


@dataclass(slots=True)
class TopK:
    """The k highest and the k lowest scores so far; memory is O(k) plus the ties of one block.

    `counts` has the distribution of all scores; None if they are not counted.
    """

    k: int
    proponents: list[Scored] = field(default_factory=list)
    opponents: list[Scored] = field(default_factory=list)
    counts: ScoreCounts | None = field(default=None, compare=False)

    def may_enter(self, scores: np.ndarray, margins: np.ndarray) -> np.ndarray:
        """(B,) whether a row may be among the k highest or lowest, if its score is wrong by at most its margin."""
        highest, lowest, floor, ceiling = scores + margins, scores - margins, -np.inf, np.inf
        if len(scores) >= self.k:  # k rows of the block itself are at least that high, and k that low
            floor = np.partition(lowest, -self.k)[-self.k]
            ceiling = np.partition(highest, self.k - 1)[self.k - 1]
        if len(self.proponents) == self.k:
            floor = max(floor, self.proponents[-1].score)
            ceiling = min(ceiling, self.opponents[-1].score)
        return (highest >= floor) | (lowest <= ceiling)

    def update(self, scores: np.ndarray, ids: Sequence[str]) -> None:
        """Add a block: scores (B,) and the ids of its rows."""
        self.proponents = self._best(self.proponents + _candidates(scores, ids, self.k, 1.0), 1.0)
        self.opponents = self._best(self.opponents + _candidates(scores, ids, self.k, -1.0), -1.0)

    def merge(self, other: "TopK") -> None:
        """Add the top-k of another scan."""
        self.proponents = self._best(self.proponents + other.proponents, 1.0)
        self.opponents = self._best(self.opponents + other.opponents, -1.0)
        if other.counts is not None:
            self.counts = self.counts or ScoreCounts()
            self.counts.merge(other.counts)

    @property
    def distribution(self) -> Distribution | None:
        """The distribution of the scores of all searched rows; None if they were not counted."""
        return None if self.counts is None else self.counts.distribution

    def first(self, k: int) -> "TopK":
        """Only the first k of each end."""
        return TopK(k, self.proponents[:k], self.opponents[:k], self.counts)

    def __reduce__(self) -> tuple[Any, ...]:
        """As plain lists: workers send thousands of these, and pickled `Scored` objects take ten times as long."""
        sides = (self.proponents, self.opponents)
        plain = ([(hit.score, hit.example_id) for hit in side] for side in sides)
        return _top_k_of, (self.k, *plain, self.counts)

    def _best(self, hits: Iterable[Scored], sign: float) -> list[Scored]:
        return sorted(hits, key=lambda hit: (-sign * hit.score, hit.example_id))[: self.k]


def check_k(k: int) -> None:
    """Raise UserError if k is not positive."""
    if k < 1:
        raise UserError(f"k is {k}; it must be at least 1")


def largest_score(top: TopK) -> float:
    """The largest absolute score of both ends; 0 without rows."""
    return max((abs(hit.score) for hit in (*top.proponents, *top.opponents)), default=0.0)


def _top_k_of(
    k: int,
    proponents: Iterable[tuple[float, str]],
    opponents: Iterable[tuple[float, str]],
    counts: ScoreCounts | None,
) -> TopK:
    return TopK(k, [Scored(*hit) for hit in proponents], [Scored(*hit) for hit in opponents], counts)


def _candidates(scores: np.ndarray, ids: Sequence[str], k: int, sign: float) -> list[Scored]:
    """Rows that may be in the top k, with all ties of the k-th, or the order of blocks would decide."""
    signed = sign * scores
    floor = -np.inf if len(signed) <= k else np.partition(signed, len(signed) - k)[len(signed) - k]
    return [Scored(float(scores[row]), ids[row]) for row in np.flatnonzero(signed >= floor).tolist()]
