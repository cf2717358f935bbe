"""Recall and reciprocal rank, and the ranks of planted sources among a method's scores.

Shapes: Q queries, N examples.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def recall_at(retrieved: Sequence[Iterable[Any]], relevant: Sequence[Collection[Any]]) -> np.ndarray:
    """(Q,) float64 share of each query's relevant items that are among the retrieved ones, in any order.

    If `retrieved` has the first k of a method and `relevant` the planted sources, this is recall at k. If
    `relevant` has the first k of an exact scan, this is the recall of an approximate scan.

    Raises:
        ValueError: a query has no relevant item, or the lengths differ.
    """
    pairs = [(set(hits), set(targets)) for hits, targets in zip(retrieved, relevant, strict=True)]
    if not all(targets for _, targets in pairs):
        raise ValueError("every query needs at least one relevant item")
    return np.array([len(hits & targets) / len(targets) for hits, targets in pairs])


def reciprocal_rank(retrieved: Sequence[Iterable[Any]], relevant: Sequence[Collection[Any]]) -> np.ndarray:
    """(Q,) float64 inverse rank, from 1, of the first relevant item among the retrieved; 0 if there is none."""
    ranks = [
        next((rank for rank, item in enumerate(hits, start=1) if item in targets), np.inf)
        for hits, targets in zip(retrieved, relevant, strict=True)
    ]
    return 1 / np.array(ranks)


@dataclass(frozen=True, slots=True)
class Source:
    """A planted example: the row of its query and its column in the scores, and the kind of edit."""

    query: int
    column: int
    kind: str


def ranking(scores_N: np.ndarray, source: int, hidden: Collection[int] = ()) -> np.ndarray:
    """Columns without the hidden ones, highest score first. The source is last among equal scores."""
    columns = np.setdiff1d(np.arange(len(scores_N)), [*hidden])
    return columns[np.lexsort((columns == source, -scores_N[columns]))]


def source_recall(
    scores_QN: np.ndarray, sources: Sequence[Source], cutoffs: Sequence[int]
) -> Mapping[tuple[str, str], np.ndarray]:
    """Values by (kind, measure) for each query that has a source of this kind, in the order of the rows.

    Measures are `recall@k` for each cutoff, and `mrr`, the reciprocal rank. The ranking for a source leaves out
    the query's other sources, because they would lower each other's rank. A query's value is the mean over its
    sources of the kind.
    """
    own: dict[int, set[int]] = {}
    for source in sources:
        own.setdefault(source.query, set()).add(source.column)
    rankings = [
        ranking(scores_QN[source.query], source.column, own[source.query] - {source.column}) for source in sources
    ]
    relevant = [{source.column} for source in sources]
    values = {f"recall@{k}": recall_at([columns[:k] for columns in rankings], relevant) for k in cutoffs}
    values["mrr"] = reciprocal_rank(rankings, relevant)
    kinds = list(dict.fromkeys(source.kind for source in sources))
    return {
        (kind, measure): _mean_by_query(by_source, sources, kind)
        for kind in kinds
        for measure, by_source in values.items()
    }


def _mean_by_query(by_source: np.ndarray, sources: Sequence[Source], kind: str) -> np.ndarray:
    rows = np.array([source.query for source in sources if source.kind == kind])
    values = by_source[[source.kind == kind for source in sources]]
    return np.array([values[rows == row].mean() for row in np.unique(rows)])
