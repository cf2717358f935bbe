"""Builds the section that a page shows for one answered query from the results of a search."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from lorif_core.corpus.turns import turns_from_json
from lorif_core.report.answer_sections import Hit, QuerySection, Source, SourceTotal, TokenShare
from lorif_core.report.overlap import Overlap
from lorif_core.search.distribution import Distribution, percentile
from lorif_core.search.explanation import Explanation
from lorif_core.search.likelihood import NOT_SPOKEN, SpokenAnswer
from lorif_core.search.queries import Query
from lorif_core.search.shares import LayerShare
from lorif_core.search.top_k import Scored, TopK, largest_score
from lorif_core.tables.checksums import TURNS

_BUILT_IN_COLUMNS = frozenset(
    ("example_id", "shard", "uri", "row", "tokens", "loss", "content_hash", "checkpoint", "spec", "text", TURNS)
)
_MAX_VALUE_CHARS = 120


def answer_section(
    query: Query,
    loss: float,
    top: TopK,
    details: dict[str, dict[str, Any]],
    explanation: Explanation | None = None,
    totals: Sequence[SourceTotal] | None = None,
    spoken: SpokenAnswer = NOT_SPOKEN,
    distribution: Distribution | None = None,
) -> QuerySection:
    """Build the section of one query.

    Args:
        query: the query.
        loss: its token-summed loss.
        top: the hits to show, of both ends of the ranking.
        details: descriptive columns of the rows, by example id (`Store.rows.details`).
        explanation: contributions of the tokens to these scores, or the reason why there are none; None if no
            explanation was requested.
        totals: by file, over all rows (`source_totals`).
        spoken: the losses of the query's tokens.
        distribution: of the scores of all searched rows; None if it was not counted.
    """
    prompt, completion = query.display_text
    overlap = Overlap(_own_texts(query))
    return QuerySection(
        query_id=query.query_id,
        prompt=prompt,
        completion=completion,
        loss=loss,
        proponents=_hits(top, "proponents", details, explanation, overlap, distribution),
        opponents=_hits(top, "opponents", details, explanation, overlap, distribution),
        tokens=_tokens(explanation, top.proponents),
        unexplained=None if explanation is None else explanation.reason,
        totals=None if totals is None else tuple(totals),
        turns=query.turns,
        unshaded=None if explanation is None else explanation.unshaded,
        layers=() if explanation is None else summed_layers(explanation, top.proponents),
        answer_tokens=spoken.tokens,
        likelihood=spoken.likelihood,
        distribution=distribution,
        compound="group" if query.group is not None else "contrast" if query.contrast is not None else None,
    )


def summed_layers(explanation: Explanation, scored: Sequence[Scored]) -> tuple[LayerShare, ...]:
    """The shares of the layers in the summed scores of those examples that are explained."""
    of_hits = [explanation.layers[hit.example_id] for hit in scored if hit.example_id in explanation.layers]
    return tuple(replace(same[0], share=sum(share.share for share in same)) for same in zip(*of_hits, strict=True))


def source_totals(table: pa.Table) -> tuple[SourceTotal, ...]:
    """Convert the table that `Index.totals` returns for one query, grouped by `uri`."""
    columns = {
        "uri": "uri", "rows": "rows", "positive": "positive", "negative": "negative",
        "corpus_share": "share_of_tokens", "influence_share": "share_of_positive",
    }  # fmt: skip
    rows = table.select(list(columns.values())).rename_columns(list(columns)).to_pylist()
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
    top: TopK,
    side: Literal["proponents", "opponents"],
    details: dict[str, dict[str, Any]],
    explanation: Explanation | None,
    overlap: Overlap,
    distribution: Distribution | None,
) -> tuple[Hit, ...]:
    scored, strongest = getattr(top, side), largest_score(top)
    explained = explanation or Explanation((), {})
    hits = []
    for rank, hit in enumerate(scored, start=1):
        row, tokens = details[hit.example_id], explained.by_example.get(hit.example_id)
        text = row.get("text")
        hits.append(
            Hit(
                rank, hit.example_id, hit.score, text, Source(row["uri"], row["row"]),
                overlap=() if text is None else overlap.spans(text),
                tokens=None if tokens is None else tuple(tokens.tolist()),
                columns=_columns(row),
                turns=turns_from_json(row.get(TURNS)),
                training_tokens=explained.training_tokens.get(hit.example_id),
                layers=explained.layers.get(hit.example_id, ()),
                percentile=percentile(rank, distribution, is_proponent=side == "proponents"),
                relative=hit.score / strongest if strongest else 0.0,
            )
        )  # fmt: skip
    return tuple(hits)


def _own_texts(query: Query) -> Iterator[str]:
    """Texts of the query itself; a query given as tokens has none."""
    for _, member in query.members:
        if member.messages is not None:
            yield from (said for _, said in member.turns)
        elif member.tokens is None:
            yield "".join(part for part in member.display_text if part is not None)


def _columns(row: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Columns that users added to the index, as text; null values are left out."""
    return tuple(
        (name, str(value)[:_MAX_VALUE_CHARS])
        for name, value in row.items()
        if name not in _BUILT_IN_COLUMNS and value is not None
    )
