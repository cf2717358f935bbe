"""What the searches for the strongest rows miss: their first k against those of an exact scan of all rows."""

from collections.abc import Sequence
from typing import Any

from lorif_core.evaluation.recall import recall_at
from lorif_core.search.index import Index
from lorif_core.search.prefilter import quick_kind
from lorif_core.search.scoring import FoldedQueries
from lorif_core.search.top_k import TopK
from lorif_core.search.top_rows import Sought

_TOP_K = (10, 100)
_SIDES = ("proponents", "opponents")


def search_recall(index: Index, folded: Sequence[FoldedQueries]) -> list[dict[str, Any]]:
    """Of each search that the index's codes allow, and each k below its rows, the mean recall over the queries.

    `search` is `quick look` (the default one, a query alone), `quick look, batch` (all together, if that is
    another look) or `two-stage`; `proponents` and `opponents` are the shares of the exact first k that it finds;
    `bytes_read` is the share of the codes' bytes that it reads for one query.
    """
    layouts, count = [part.layout for part in index.parts], folded[0].count
    cutoffs = [k for k in _TOP_K if k < index.generation.rows]
    exact = index.top_k_sought([Sought(queries) for queries in folded], max(cutoffs, default=1))
    rows: list[dict[str, Any]] = []
    kinds = {together: [quick_kind(layout, together) for layout in layouts] for together in (1, count)}
    for search, together in (("quick look", 1), ("quick look, batch", count)):
        if any(kinds[together]) and (together == 1 or kinds[count] != kinds[1]):
            for k in cutoffs:
                found = _found(_searched(index, folded, k, together), exact, k)
                rows.append({"search": search, **found, "bytes_read": 1.0})
    if not any(layout.code.kind == "dense" for layout in layouts):
        size = sum(part.part.rows * part.layout.bytes_per_example for part in index.parts)
        for k in cutoffs:
            found = _found(index.top_k_folded(folded, k, two_stage=True), exact, k)
            read = sum(part.two_stage().bytes_read(k) for part in index.parts) / size
            rows.append({"search": "two-stage", **found, "bytes_read": round(read, 4)})
    return rows


def _searched(index: Index, folded: Sequence[FoldedQueries], k: int, together: int) -> list[TopK]:
    """What the default search finds of queries, so many of them at once."""
    best: list[TopK] = []
    for start in range(0, folded[0].count, together):
        best += index.top_k_folded([queries.some(start, start + together) for queries in folded], k)
    return best


def _found(tops: Sequence[TopK], exact: Sequence[TopK], k: int) -> dict[str, Any]:
    recalls: dict[str, Any] = {"top_k": k}
    for side in _SIDES:
        found, wanted = (
            [[hit.example_id for hit in getattr(top, side)[:k]] for top in of] for of in (tops, exact)
        )
        recalls[side] = round(float(recall_at(found, wanted).mean()), 4)
    return recalls
