"""Search options: which rows a query is scored against, and what scores are divided by."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lorif_core.errors import UserError
from lorif_core.tables.filters import check_where
from lorif_core.tables.store import Store

Normalisation = Literal["none", "cosine", "self"]
NORMALISATIONS: tuple[str, ...] = get_args(Normalisation)


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """The rows to score and the normalisation of their scores.

    Attributes:
        where: SQL condition on the descriptive columns, as the user wrote it; None for all rows.
        normalise: `none` s(q, x); `cosine` s(q, x) / sqrt(s(q, q) s(x, x)); `self` s(q, x) / sqrt(s(x, x)), the
            l-relative influence of RelatIF (arXiv 2003.11630). The sign is always that of s(q, x).
        condition: the SQL of `where` that Lance evaluates, from `check_where`.
    """

    where: str | None = None
    normalise: Normalisation = "none"
    condition: str | None = None

    def __post_init__(self) -> None:
        if (self.where is None) != (self.condition is None):
            raise ValueError("where needs its condition; use make_options")

    def query_power(self, has_one_checkpoint: bool) -> float:
        """The power of s(q, q) that the scores of a query are divided by.

        With several checkpoints `none` divides by s(q, q) and `self` by its root, so that scores are comparable.
        """
        if self.normalise == "cosine":
            return 0.5
        return 0.0 if has_one_checkpoint else {"none": 1.0, "self": 0.5}[self.normalise]

    def __str__(self) -> str:
        """A suffix for titles; empty for scores of all rows that are not normalised."""
        normalised = "" if self.normalise == "none" else f", normalised ({self.normalise})"
        return normalised + ("" if self.where is None else f", where {self.where}")


DEFAULT_OPTIONS = SearchOptions()


def make_options(store: Store, version: int, where: str | None = None, normalise: str = "none") -> SearchOptions:
    """Options that are checked against a version of the factors.

    Raises:
        UserError: `where` is not a valid condition or matches no row, or the normalisation is unknown.
    """
    if normalise not in NORMALISATIONS:
        raise UserError(f"normalise is {normalise!r}; it must be one of {', '.join(NORMALISATIONS)}")
    condition = None if where is None else check_where(store, version, where)
    return SearchOptions(where, normalise, condition)  # type: ignore[arg-type]


def inverse_root(self_influence: np.ndarray) -> np.ndarray:
    """1 / sqrt of self-influences, float32; 0 where the self-influence is not positive."""
    positive = self_influence > 0
    return np.where(positive, 1 / np.sqrt(np.where(positive, self_influence, 1.0)), 0.0).astype(np.float32)
