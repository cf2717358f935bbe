"""Invariants of recall: metrics equal a brute-force count, a tie is no success, sources of one query do not lower
each other's rank, and paired intervals are intervals of the differences.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorif_core.evaluation.bootstrap import mean_intervals
from lorif_core.evaluation.recall import Source, ranking, recall_at, reciprocal_rank, source_recall


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12))
def test_metrics_equal_a_brute_force_count(seed: int, k: int, targets: int) -> None:
    rng = np.random.default_rng(seed)
    retrieved = [rng.permutation(20)[:k].tolist() for _ in range(5)]
    relevant = [rng.permutation(20)[:targets].tolist() for _ in range(5)]
    for query in range(5):
        hits = [place for place, item in enumerate(retrieved[query]) if item in relevant[query]]
        assert recall_at(retrieved, relevant)[query] == pytest.approx(len(hits) / targets)
        assert reciprocal_rank(retrieved, relevant)[query] == pytest.approx(1 / (hits[0] + 1) if hits else 0.0)


def test_recall_compares_ids_in_any_order() -> None:
    assert recall_at([["a", "b", "c"], ["x"]], [["c", "a"], ["y"]]).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="at least one relevant item"):
        recall_at([["a"]], [[]])
    with pytest.raises(ValueError, match="shorter"):
        recall_at([["a"], ["b"]], [["a"]])


@given(st.integers(0, 2**32))
def test_ranks_of_sources_equal_a_brute_force_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, (4, 30)).astype(np.float32)  # many ties
    columns = rng.permutation(30)
    sources = [Source(q, int(columns[4 * kind + q]), f"kind {kind}") for q in range(4) for kind in range(3)]
    recall = source_recall(scores, sources, (1, 5))
    assert len(recall) == 9
    for kind in ("kind 0", "kind 1", "kind 2"):
        for query, source in enumerate(source for source in sources if source.kind == kind):
            others = {other.column for other in sources if other.query == query} - {source.column}
            rivals = [column for column in range(30) if column not in others | {source.column}]
            rank = 1 + sum(scores[query, column] >= scores[query, source.column] for column in rivals)
            assert recall[kind, "mrr"][query] == pytest.approx(1 / rank)
            for k in (1, 5):
                assert recall[kind, f"recall@{k}"][query] == (rank <= k)


def test_sources_of_a_kind_are_averaged_and_queries_without_one_are_left_out() -> None:
    scores = np.array([[5, 4, 3, 2, 1], [1, 2, 3, 4, 5], [0, 0, 0, 0, 9]], np.float32)
    sources = [Source(0, 0, "copy"), Source(0, 3, "copy"), Source(2, 4, "pair")]
    recall = source_recall(scores, sources, (1,))
    assert recall["copy", "recall@1"].tolist() == [0.5]  # with the first source hidden, the second ranks third
    assert recall["copy", "mrr"].tolist() == [(1 + 1 / 3) / 2]
    assert recall["pair", "recall@1"].tolist() == [1.0]


def test_examples_that_are_not_in_the_index_rank_last() -> None:
    scores = np.array([-1.0, -np.inf, -2.0])
    assert ranking(scores, 1).tolist() == [0, 2, 1]


def test_intervals_contain_the_mean_and_paired_ones_the_mean_difference() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(50)
    methods = {"a": base + 0.01, "b": base, "c": rng.random(50)}
    intervals, paired = mean_intervals(methods, [("a", "b"), ("a", "c")])
    for name, values in methods.items():
        interval = intervals[name]
        assert interval.value == pytest.approx(values.mean())
        assert interval.low < interval.value < interval.high
        half = 1.96 * values.std() / np.sqrt(50)
        assert interval.high - interval.low == pytest.approx(2 * half, rel=0.1)
    constant, varying = paired["a", "b"], paired["a", "c"]
    assert (constant.low, constant.high) == pytest.approx((0.01, 0.01)), (
        "all methods must share the resampled queries"
    )
    assert varying.low < varying.value < varying.high
