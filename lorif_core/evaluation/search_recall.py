"""Recall of the searches for the strongest rows: their first k compared with those of an exact scan."""

from collections.abc import Sequence
from typing import Any

from lorif_core.evaluation.recall import recall_at
from lorif_core.search.index import Index
from lorif_core.search.prefilter import prefilter_kind
from lorif_core.search.scoring import FoldedQueries
from lorif_core.search.top_k import TopK
from lorif_core.search.top_rows import PreparedQueries

_TOP_K = (10, 100)
_SIDES = ("proponents", "opponents")


def search_recall(index: Index, folded: Sequence[FoldedQueries]) -> list[dict[str, Any]]:
    """Mean recall over queries for each search that the codes support, and each k below the number of rows.

    Columns: `search` is `prefilter` (the default search, one query at a time), `prefilter, batch` (all queries
    together, if this uses another prefilter) or `two-stage`. `proponents` and `opponents` are the shares of the
    exact first k that the search finds. `bytes_read` is the share of the codes' bytes that it reads for one query.
    """
    layouts, count = [part.layout for part in index.parts], folded[0].count
    cutoffs = [k for k in _TOP_K if k < index.generation.rows]
    exact = index.top_k_prepared([PreparedQueries(queries) for queries in folded], max(cutoffs, default=1))
    rows: list[dict[str, Any]] = []
    kinds = {batch_size: [prefilter_kind(layout, batch_size) for layout in layouts] for batch_size in (1, count)}
    for search, batch_size in (("prefilter", 1), ("prefilter, batch", count)):
        if any(kinds[batch_size]) and (batch_size == 1 or kinds[count] != kinds[1]):
            for k in cutoffs:
                recalls = _recalls(_default_search(index, folded, k, batch_size), exact, k)
                rows.append({"search": search, **recalls, "bytes_read": 1.0})
    if not any(layout.code.kind == "dense" for layout in layouts):
        size = sum(part.part.rows * part.layout.bytes_per_example for part in index.parts)
        for k in cutoffs:
            recalls = _recalls(index.top_k_folded(folded, k, two_stage=True), exact, k)
            read = sum(part.two_stage().bytes_read(k) for part in index.parts) / size
            rows.append({"search": "two-stage", **recalls, "bytes_read": round(read, 4)})
    return rows


def _default_search(index: Index, folded: Sequence[FoldedQueries], k: int, batch_size: int) -> list[TopK]:
    """Results of the default search for all queries, `batch_size` of them at a time."""
    best: list[TopK] = []
    for start in range(0, folded[0].count, batch_size):
        best += index.top_k_folded([queries.subset(start, start + batch_size) for queries in folded], k)
    return best


def _recalls(tops: Sequence[TopK], exact: Sequence[TopK], k: int) -> dict[str, Any]:
    recalls: dict[str, Any] = {"top_k": k}
    for side in _SIDES:
        retrieved, relevant = (
            [[hit.example_id for hit in getattr(top, side)[:k]] for top in results] for results in (tops, exact)
        )
        recalls[side] = round(float(recall_at(retrieved, relevant).mean()), 4)
    return recalls
