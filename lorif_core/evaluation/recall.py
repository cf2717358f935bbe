"""Recall of what should be found: the metrics, and the places of planted sources in a method's rankings.

Shapes: Q queries, N examples.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def recall_at(found: Sequence[Iterable[Any]], wanted: Sequence[Collection[Any]]) -> np.ndarray:
    """(Q,) float64 share of the wanted items of each query that are among the found ones; their order is ignored.

    With `found` the k best of a method and `wanted` the planted sources it is their recall at k; with `wanted` the
    k best of an exact scan it is the recall of an approximate one.

    Raises:
        ValueError: of some query nothing is wanted, or the lengths differ.
    """
    pairs = [(set(hits), set(goals)) for hits, goals in zip(found, wanted, strict=True)]
    if not all(goals for _, goals in pairs):
        raise ValueError("every query must want something")
    return np.array([len(hits & goals) / len(goals) for hits, goals in pairs])


def reciprocal_rank(found: Sequence[Iterable[Any]], wanted: Sequence[Collection[Any]]) -> np.ndarray:
    """(Q,) float64: 1 / place of the first wanted item among the found ones, best first, from 1; 0 if none is."""
    places = [
        next((place for place, item in enumerate(hits, start=1) if item in goals), np.inf)
        for hits, goals in zip(found, wanted, strict=True)
    ]
    return 1 / np.array(places)


@dataclass(frozen=True, slots=True)
class Source:
    """A planted example: the row of its query, its column, and how it was made."""

    query: int
    column: int
    kind: str


def ranking(scores_N: np.ndarray, source: int, hidden: Collection[int] = ()) -> np.ndarray:
    """Columns, best first, without the hidden ones. The source comes last among equals: a tie finds nothing."""
    columns = np.setdiff1d(np.arange(len(scores_N)), [*hidden])
    return columns[np.lexsort((columns == source, -scores_N[columns]))]


def recall_of_sources(
    scores_QN: np.ndarray, sources: Sequence[Source], cutoffs: Sequence[int]
) -> Mapping[tuple[str, str], np.ndarray]:
    """Per (kind, measure) a value for each query that has a source of the kind, in the order of the rows.

    Measures are `recall@k` for each cutoff, and `mrr`, the reciprocal rank. A source is looked for in the ranking
    without the query's other sources, which would only push each other down; a query's value is the mean over its
    sources of a kind.
    """
    own: dict[int, set[int]] = {}
    for source in sources:
        own.setdefault(source.query, set()).add(source.column)
    found = [
        ranking(scores_QN[source.query], source.column, own[source.query] - {source.column}) for source in sources
    ]
    wanted = [{source.column} for source in sources]
    values = {f"recall@{k}": recall_at([columns[:k] for columns in found], wanted) for k in cutoffs}
    values["mrr"] = reciprocal_rank(found, wanted)
    kinds = list(dict.fromkeys(source.kind for source in sources))
    return {
        (kind, measure): _mean_by_query(each, sources, kind) for kind in kinds for measure, each in values.items()
    }


def _mean_by_query(values: np.ndarray, sources: Sequence[Source], kind: str) -> np.ndarray:
    rows = np.array([source.query for source in sources if source.kind == kind])
    chosen = values[[source.kind == kind for source in sources]]
    return np.array([chosen[rows == row].mean() for row in np.unique(rows)])
