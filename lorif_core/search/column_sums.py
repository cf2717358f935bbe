"""Sums of scores over the rows that share a value of a column.

Shapes: Q queries, B rows of a block.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lorif_core.errors import UserError

TOKENS = "tokens"
_MAX_SUMS = 20_000_000


class Sums:
    """The rows of each value and their tokens, (2, capacity), and sums and counts of scores, (4, Q, capacity)."""

    def __init__(self, by: str, queries: int) -> None:
        self.by, self.queries = by, queries
        self.numbers: dict[Any, int] = {}
        self.rows = np.zeros((2, 0), np.int64)
        self.sums = torch.zeros(4, queries, 0, dtype=torch.float64)

    def add(self, column: pa.Array, tokens: pa.Array, scores_QB: np.ndarray) -> None:
        """Add a block: the values, the numbers of tokens and the scores of its rows."""
        encoded = pc.dictionary_encode(column, null_encoding="encode")
        numbers = [self.numbers.setdefault(value, len(self.numbers)) for value in encoded.dictionary.to_pylist()]
        self._grow()
        number_B = np.array(numbers, np.int64)[encoded.indices.to_numpy()]
        np.add.at(self.rows[0], number_B, 1)
        np.add.at(self.rows[1], number_B, tokens.to_numpy())
        scores = torch.from_numpy(scores_QB).double()
        above, below = scores > 0, scores < 0
        addends = (scores.clamp_min(0), scores.clamp_max(0), above, below)
        for sums, addend in zip(self.sums, addends, strict=True):
            sums.index_add_(1, torch.from_numpy(number_B), addend.double())

    def merge(self, other: "Sums") -> None:
        """Add the sums of other rows, for the same queries."""
        if not other.numbers:
            return
        numbers = [self.numbers.setdefault(value, len(self.numbers)) for value in other.numbers]
        self._grow()
        self.rows[:, numbers] += other.rows[:, : len(numbers)]
        self.sums[:, :, numbers] += other.sums[:, :, : len(numbers)]

    def _grow(self) -> None:
        capacity = self.rows.shape[1]
        if len(self.numbers) <= capacity:
            return
        if len(self.numbers) * self.queries > _MAX_SUMS:
            raise UserError(
                f"{self.by!r} has at least {len(self.numbers):,} values, too many to sum the scores of "
                f"{self.queries} queries by; choose a coarser column or fewer queries at a time"
            )
        more = max(len(self.numbers), 2 * capacity) - capacity
        self.rows = np.concatenate([self.rows, np.zeros((2, more), np.int64)], axis=1)
        self.sums = torch.cat([self.sums, torch.zeros(*self.sums.shape[:2], more, dtype=torch.float64)], dim=2)

    def table(self, query_ids: Sequence[str]) -> pa.Table:
        """The sums as a table; see `totals`."""
        return pa.concat_tables([self.table_of(number, query_id) for number, query_id in enumerate(query_ids)])

    def table_of(self, number: int, query_id: str) -> pa.Table:
        """The rows of one query in the table, by its number."""
        count, values = len(self.numbers), list(self.numbers)
        rows, tokens = self.rows[:, :count]
        positive, negative, proponents, opponents = self.sums[:, number, :count].numpy()
        total = positive + negative
        order = sorted(range(count), key=lambda i: (-total[i], str(values[i])))
        return pa.table(
            {
                "query_id": [query_id] * count,
                self.by: [values[i] for i in order],
                "rows": rows[order],
                **({} if self.by == TOKENS else {TOKENS: tokens[order]}),
                "total": total[order],
                "positive": positive[order],
                "negative": negative[order],
                "proponents": proponents[order].astype(np.int64),
                "opponents": opponents[order].astype(np.int64),
                "share_of_rows": _shares(rows)[order],
                "share_of_tokens": _shares(tokens)[order],
                "share_of_positive": _shares(positive)[order],
                "share_of_negative": _shares(negative)[order],
            }
        )


def _shares(values: np.ndarray) -> np.ndarray:
    """Values of one sign divided by their sum; zeros if that is zero."""
    total = values.sum()
    return values / total if total else np.zeros(len(values))
