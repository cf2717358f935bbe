"""Invariant: totals and selections do not depend on the division of rows into blocks; ids break ties."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.search.column_sums import Sums
from lorif_core.search.selection import best_fraction

SHARES = {
    "share_of_rows": "rows", "share_of_tokens": "tokens", "share_of_positive": "positive",
    "share_of_negative": "negative",
}  # fmt: skip
SCORES = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 3.0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), SCORES, SCORES), min_size=1, max_size=30),
    st.integers(1, 9),
    st.integers(1, 4),
)
def test_totals_of_blocks_equal_totals_of_all_rows(
    rows: list[tuple[str | None, float, float]], block: int, workers: int
) -> None:
    """Also of blocks that several workers add up apart."""
    parts = [Sums("uri", 2) for _ in range(workers)]
    expected: dict[tuple[str, str | None], list[float]] = defaultdict(list)
    for start in range(0, len(rows), block):
        values, *scores = zip(*rows[start : start + block], strict=True)
        tokens = pa.array(range(start, start + len(values)), pa.int32())
        part = parts[start // block % workers]
        part.add(pa.array(values, pa.string()), tokens, np.array(scores, np.float32))
    for value, *scores in rows:
        for query, score in zip("pq", scores, strict=True):
            expected[query, value].append(score)
    for other in parts[1:]:
        parts[0].merge(other)
    table = parts[0].table(["p", "q"]).to_pylist()
    assert len(table) == len(expected)
    for row in table:
        scores = np.array(expected[row["query_id"], row["uri"]])
        above, below = scores[scores > 0], scores[scores < 0]
        assert (row["rows"], row["proponents"], row["opponents"]) == (len(scores), len(above), len(below))
        assert (row["total"], row["positive"], row["negative"]) == (scores.sum(), above.sum(), below.sum())
        assert row["tokens"] == sum(number for number, (value, *_) in enumerate(rows) if value == row["uri"])
    for query in {row["query_id"] for row in table}:
        of_query = [row for row in table if row["query_id"] == query]
        for share, column in SHARES.items():
            whole = sum(row[column] for row in of_query)
            assert [row[share] for row in of_query] == [
                pytest.approx(row[column] / whole if whole else 0.0) for row in of_query
            ]
    order = [(row["query_id"], -row["total"], str(row["uri"])) for row in table]
    assert order == sorted(order)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(SCORES, max_size=12), min_size=1, max_size=3).filter(any),
    st.floats(0.01, 1.0),
    st.randoms(use_true_random=False),
)
def test_the_best_fraction_equals_that_of_a_full_sort(
    parts: list[list[float]], fraction: float, random: object
) -> None:
    names = [f"x{number:02d}" for number in range(sum(map(len, parts)))]
    random.shuffle(names)  # type: ignore[attr-defined]
    selected = best_fraction(
        [np.array(part, np.float32) for part in parts], fraction, lambda positions: [names[i] for i in positions]
    )
    assert [len(mask) for mask in selected] == [len(part) for part in parts]
    scores = [score for part in parts for score in part]
    best = sorted(zip(scores, names, strict=True), key=lambda row: (-row[0], row[1]))
    count = max(1, round(fraction * len(scores)))
    selected_names = {
        name for name, is_selected in zip(names, np.concatenate(selected), strict=True) if is_selected
    }
    assert selected_names == {name for _, name in best[:count]}
