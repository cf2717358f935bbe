"""What a question asks for beside its queries: which rows, and what scores are divided by."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lorif_core.errors import UserError
from lorif_core.tables.filters import check_condition
from lorif_core.tables.store import Store

Normalisation = Literal["none", "cosine", "self"]
NORMALISATIONS: tuple[str, ...] = get_args(Normalisation)


@dataclass(frozen=True, slots=True)
class Terms:
    """Which rows are asked, and their normalisation.

    Attributes:
        where: SQL condition on the descriptive columns; None for all rows.
        normalise: `none` s(q, x); `cosine` s(q, x) / sqrt(s(q, q) s(x, x)); `self` s(q, x) / sqrt(s(x, x)), the
            l-relative influence of RelatIF (arXiv 2003.11630). The sign is that of s(q, x) in all.
    """

    where: str | None = None
    normalise: Normalisation = "none"

    def query_power(self, is_alone: bool) -> float:
        """The power of s(q, q) that a query is divided by.

        Beside other checkpoints `none` and `self` divide by s(q, q) and its root, so that scores compare.
        """
        if self.normalise == "cosine":
            return 0.5
        return 0.0 if is_alone else {"none": 1.0, "self": 0.5}[self.normalise]

    def __str__(self) -> str:
        """What a title adds; empty for plain scores of all rows."""
        normalised = "" if self.normalise == "none" else f", normalised ({self.normalise})"
        return normalised + ("" if self.where is None else f", where {self.where}")


PLAIN = Terms()


def make_terms(store: Store, version: int, where: str | None = None, normalise: str = "none") -> Terms:
    """Terms that are checked against a version of the factors.

    Raises:
        UserError: `where` is no condition, or no row meets it; or there is no such normalisation.
    """
    if normalise not in NORMALISATIONS:
        raise UserError(f"normalise is {normalise!r}; it must be one of {', '.join(NORMALISATIONS)}")
    if where is not None:
        check_condition(store, version, where)
    return Terms(where, normalise)  # type: ignore[arg-type]


def inverse_root(own: np.ndarray) -> np.ndarray:
    """1 / sqrt of self-influences, float32; 0 where there is none."""
    return np.where(own > 0, 1 / np.sqrt(np.where(own > 0, own, 1.0)), 0.0).astype(np.float32)
