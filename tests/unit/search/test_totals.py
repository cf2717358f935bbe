"""Invariant: totals and selections do not depend on how the rows come in blocks, and ties go by id."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.search.selection import best_share
from lorif_core.search.totals import Sums

SCORES = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 3.0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), SCORES, SCORES), min_size=1, max_size=30),
    st.integers(1, 9),
)
def test_totals_are_those_of_all_rows_at_once(rows: list[tuple[str | None, float, float]], block: int) -> None:
    sums = Sums("uri", 2)
    expected: dict[tuple[str, str | None], list[float]] = defaultdict(list)
    for start in range(0, len(rows), block):
        values, *scores = zip(*rows[start : start + block], strict=True)
        sums.add(pa.array(values, pa.string()), np.array(scores, np.float32))
    for value, *scores in rows:
        for query, score in zip("pq", scores, strict=True):
            expected[query, value].append(score)
    found = sums.table(["p", "q"]).to_pylist()
    assert len(found) == len(expected)
    for row in found:
        scores = np.array(expected[row["query_id"], row["uri"]])
        above, below = scores[scores > 0], scores[scores < 0]
        assert (row["rows"], row["proponents"], row["opponents"]) == (len(scores), len(above), len(below))
        assert (row["total"], row["positive"], row["negative"]) == (scores.sum(), above.sum(), below.sum())
    order = [(row["query_id"], -row["total"], str(row["uri"])) for row in found]
    assert order == sorted(order)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(SCORES, max_size=12), min_size=1, max_size=3).filter(any),
    st.floats(0.01, 1.0),
    st.randoms(use_true_random=False),
)
def test_the_best_share_is_that_of_a_full_sort(parts: list[list[float]], fraction: float, random: object) -> None:
    names = [f"x{number:02d}" for number in range(sum(map(len, parts)))]
    random.shuffle(names)  # type: ignore[attr-defined]
    taken = best_share(
        [np.array(part, np.float32) for part in parts], fraction, lambda places: [names[i] for i in places]
    )
    assert [len(chosen) for chosen in taken] == [len(part) for part in parts]
    whole = [score for part in parts for score in part]
    best = sorted(zip(whole, names, strict=True), key=lambda row: (-row[0], row[1]))
    count = max(1, round(fraction * len(whole)))
    found = {name for name, chosen in zip(names, np.concatenate(taken), strict=True) if chosen}
    assert found == {name for _, name in best[:count]}
