"""An answered query as a page shows it, made of what a search has found."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lorif_core.report.answer_sections import Hit, QuerySection, Source, SourceTotal, TokenShare
from lorif_core.report.overlap import Overlap
from lorif_core.search.explanation import Explanation
from lorif_core.search.queries import Query
from lorif_core.search.top_k import Scored, TopK

_OWN_COLUMNS = frozenset(
    ("example_id", "shard", "uri", "row", "tokens", "loss", "content_hash", "checkpoint", "spec", "text")
)
_LONGEST_VALUE = 120


def answer_section(
    query: Query,
    loss: float,
    top: TopK,
    details: dict[str, dict[str, Any]],
    explanation: Explanation | None = None,
    totals: Sequence[SourceTotal] | None = None,
) -> QuerySection:
    """The section of one query.

    Args:
        query: what was asked.
        loss: its token-summed loss.
        top: both ends of the ranking, as many as are to be shown.
        details: descriptive columns of the rows, by example id (`Store.details`).
        explanation: what the tokens add to these scores, or why that isn't told, if it was asked.
        totals: by file, over all rows (`source_totals`).
    """
    prompt, completion = query.shown
    overlap = Overlap(_texts(query))
    return QuerySection(
        query_id=query.query_id,
        prompt=prompt,
        completion=completion,
        loss=loss,
        proponents=_hits(top.proponents, details, explanation, overlap),
        opponents=_hits(top.opponents, details, explanation, overlap),
        tokens=_tokens(explanation, top.proponents),
        unexplained=None if explanation is None else explanation.reason,
        totals=None if totals is None else tuple(totals),
    )


def source_totals(table: pa.Table) -> tuple[SourceTotal, ...]:
    """Totals of one query, of the table that `Index.totals` gives by `uri`."""
    rows = table.select(["uri", "rows", "positive", "negative"]).to_pylist()
    return tuple(SourceTotal(**row) for row in rows)


def _tokens(explanation: Explanation | None, proponents: Sequence[Scored]) -> tuple[TokenShare, ...] | None:
    if explanation is None or explanation.reason is not None:
        return None
    by_example = explanation.by_example
    sums = np.zeros(len(explanation.tokens))
    for hit in proponents:
        if hit.example_id in by_example:
            sums += by_example[hit.example_id]
    return tuple(TokenShare(*token) for token in zip(explanation.tokens, sums.tolist(), strict=True))


def _hits(
    scored: Sequence[Scored],
    details: dict[str, dict[str, Any]],
    explanation: Explanation | None,
    overlap: Overlap,
) -> tuple[Hit, ...]:
    by_example = {} if explanation is None else explanation.by_example
    hits = []
    for rank, hit in enumerate(scored, start=1):
        row, tokens = details[hit.example_id], by_example.get(hit.example_id)
        text = row.get("text")
        hits.append(
            Hit(
                rank, hit.example_id, hit.score, text, Source(row["uri"], row["row"]),
                overlap=() if text is None else overlap.spans(text),
                tokens=None if tokens is None else tuple(tokens.tolist()),
                columns=_columns(row),
            )
        )  # fmt: skip
    return tuple(hits)


def _texts(query: Query) -> Iterator[str]:
    """What the query says, without what we say of it."""
    for _, member in query.members:
        if member.tokens is None:
            yield "".join(part for part in member.shown if part is not None)


def _columns(row: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Columns of the index beside its own, as text; null ones are left out."""
    further = [(name, str(value)) for name, value in row.items() if name not in _OWN_COLUMNS and value is not None]
    return tuple((name, value[:_LONGEST_VALUE]) for name, value in further)
