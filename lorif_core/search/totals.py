"""Sums of scores by a descriptive column: how much each file or source helped. Memory is O(values x queries)."""

from collections.abc import Sequence

import pyarrow as pa

from lorif_core.errors import UserError
from lorif_core.search.column_sums import TOKENS, Sums
from lorif_core.search.generation_reader import GenerationReader
from lorif_core.search.options import SearchOptions
from lorif_core.search.queries import QueryInput, parse_queries
from lorif_core.search.query_encoder import ModelInput


def totals(
    index: GenerationReader, queries: Sequence[QueryInput], by: str, model: ModelInput, options: SearchOptions
) -> pa.Table:
    """Sums of scores over the rows that share a value, ordered by query, then from the largest total.

    Columns: `query_id`; the value, under the column's name; `rows`, and `tokens` of these rows; `total` =
    `positive` + `negative`, the sums of scores above and below zero, float64; `proponents` and `opponents`, the
    numbers of those scores; `share_of_rows`, `share_of_tokens`, `share_of_positive` and `share_of_negative`, each
    divided by the sum over all values, from 0 to 1.

    Args:
        index: the generation to search.
        queries: queries of any kind.
        by: a descriptive column of `factors`.
        model: as in `Index.scores`.
        options: which rows, and their normalisation.

    Raises:
        UserError: the column does not exist, or it has too many values for so many queries.
    """
    columns = index.store.rows.descriptive_columns(index.generation.factors_version)
    if by not in columns:
        raise UserError(f"the index has no column {by!r} to sum scores by; it has {', '.join(columns)}")
    index.store.rows.check_descriptions(index.generation.factors_version, text=by == "text")
    parsed = parse_queries(queries)
    sums = Sums(by, len(parsed))
    folded = index.fold(index.encode(parsed, model), options)
    for part, part_queries in zip(index.parts, folded, strict=True):
        for block, scores_QB in part.scored_blocks(part_queries, options=options, extra=(by, TOKENS)):
            sums.add(block.extra[0], block.extra[1], scores_QB)
    return sums.table([query.query_id for query in parsed])
