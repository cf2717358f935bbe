"""Sums of scores by what the rows come from: which file, which source helped. Streams; memory is values x queries.

Shapes: Q queries, B rows of a block, V values of the column.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lorif_core.errors import UserError
from lorif_core.search.generation_reader import GenerationReader
from lorif_core.search.options import Terms
from lorif_core.search.queries import QueryInput, parsed_queries
from lorif_core.search.query_encoder import ModelInput

_MOST_SUMS = 20_000_000


def totals(
    index: GenerationReader, queries: Sequence[QueryInput], by: str, model: ModelInput, terms: Terms
) -> pa.Table:
    """Sums of scores over the rows that share a value, by query and then from the largest total.

    Columns: `query_id`; the value, under the column's name; `rows`; `total` = `positive` + `negative`, the sums
    of scores above and below zero, float64; `proponents` and `opponents`, how many they are.

    Args:
        index: the generation to ask.
        queries: of any kind.
        by: a descriptive column of `factors`.
        model: as in `Index.scores`.
        terms: which rows, and their normalisation.

    Raises:
        UserError: there is no such column, or it has too many values for so many queries.
    """
    columns = index.store.rows.descriptive_columns(index.generation.factors_version)
    if by not in columns:
        raise UserError(f"the index has no column {by!r} to add scores up by; it has {', '.join(columns)}")
    parsed = parsed_queries(queries)
    sums = Sums(by, len(parsed))
    for part, folded in zip(index.parts, index.fold(index.encode(parsed, model), terms), strict=True):
        for block, scores_QB in part.scored(folded, terms=terms, extra=(by,)):
            sums.add(block.extra[0], scores_QB)
    return sums.table([query.query_id for query in parsed])


class Sums:
    """Rows of each value, (room for V,), and sums and counts of scores (4, Q, room for V) float64."""

    def __init__(self, by: str, queries: int) -> None:
        self.by, self.queries = by, queries
        self.numbers: dict[Any, int] = {}
        self.rows = np.zeros(0, np.int64)
        self.sums = torch.zeros(4, queries, 0, dtype=torch.float64)

    def add(self, column: pa.Array, scores_QB: np.ndarray) -> None:
        """Take in a block: values and scores of its rows."""
        encoded = pc.dictionary_encode(column, null_encoding="encode")
        known = [self.numbers.setdefault(value, len(self.numbers)) for value in encoded.dictionary.to_pylist()]
        self._grow()
        into = np.array(known, np.int64)[encoded.indices.to_numpy()]
        np.add.at(self.rows, into, 1)
        scores = torch.from_numpy(scores_QB).double()
        above, below = scores > 0, scores < 0
        for kept, values in zip(self.sums, (scores.clamp_min(0), scores.clamp_max(0), above, below), strict=True):
            kept.index_add_(1, torch.from_numpy(into), values.double())

    def _grow(self) -> None:
        room = len(self.rows)
        if len(self.numbers) <= room:
            return
        if len(self.numbers) * self.queries > _MOST_SUMS:
            raise UserError(
                f"{self.by!r} has {len(self.numbers):,} values or more, too many to add up {self.queries} queries "
                f"by; take a coarser column or fewer queries at a time"
            )
        more = max(len(self.numbers), 2 * room) - room
        self.rows = np.concatenate([self.rows, np.zeros(more, np.int64)])
        self.sums = torch.cat([self.sums, torch.zeros(*self.sums.shape[:2], more, dtype=torch.float64)], dim=2)

    def table(self, query_ids: Sequence[str]) -> pa.Table:
        """See `totals`."""
        count = len(self.numbers)
        values = list(self.numbers)
        found = []
        for number, query_id in enumerate(query_ids):
            positive, negative, proponents, opponents = self.sums[:, number, :count].numpy()
            total = positive + negative
            order = sorted(range(count), key=lambda i: (-total[i], str(values[i])))
            found.append(
                pa.table(
                    {
                        "query_id": [query_id] * count,
                        self.by: [values[i] for i in order],
                        "rows": self.rows[order],
                        "total": total[order],
                        "positive": positive[order],
                        "negative": negative[order],
                        "proponents": proponents[order].astype(np.int64),
                        "opponents": opponents[order].astype(np.int64),
                    }
                )
            )
        return pa.concat_tables(found)
