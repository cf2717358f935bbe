"""The distribution of the scores of all searched rows."""

from dataclasses import dataclass
from typing import Literal

ScoreSource = Literal["exact", "prefilter", "sketch"]


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
