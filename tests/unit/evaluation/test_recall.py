"""Invariants of recall: the metrics are those of a brute-force count, ties find nothing, sources of one query do
not push each other down, and paired intervals are those of the differences.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorif_core.evaluation.bootstrap import mean_intervals
from lorif_core.evaluation.recall import Source, ranking, recall_at, recall_of_sources, reciprocal_rank


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12))
def test_metrics_are_a_brute_force_count(seed: int, k: int, goals: int) -> None:
    rng = np.random.default_rng(seed)
    found = [rng.permutation(20)[:k].tolist() for _ in range(5)]
    wanted = [rng.permutation(20)[:goals].tolist() for _ in range(5)]
    for query in range(5):
        hits = [place for place, item in enumerate(found[query]) if item in wanted[query]]
        assert recall_at(found, wanted)[query] == pytest.approx(len(hits) / goals)
        assert reciprocal_rank(found, wanted)[query] == pytest.approx(1 / (hits[0] + 1) if hits else 0.0)


def test_two_stages_are_compared_by_ids_whatever_their_order() -> None:
    assert recall_at([["a", "b", "c"], ["x"]], [["c", "a"], ["y"]]).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="want something"):
        recall_at([["a"]], [[]])
    with pytest.raises(ValueError, match="shorter"):
        recall_at([["a"], ["b"]], [["a"]])


@given(st.integers(0, 2**32))
def test_places_of_sources_are_a_brute_force_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, (4, 30)).astype(np.float32)  # many ties
    columns = rng.permutation(30)
    sources = [Source(q, int(columns[4 * kind + q]), f"kind {kind}") for q in range(4) for kind in range(3)]
    found = recall_of_sources(scores, sources, (1, 5))
    assert len(found) == 9
    for kind in ("kind 0", "kind 1", "kind 2"):
        for query, source in enumerate(source for source in sources if source.kind == kind):
            others = {other.column for other in sources if other.query == query} - {source.column}
            rivals = [column for column in range(30) if column not in others | {source.column}]
            place = 1 + sum(scores[query, column] >= scores[query, source.column] for column in rivals)
            assert found[kind, "mrr"][query] == pytest.approx(1 / place)
            for k in (1, 5):
                assert found[kind, f"recall@{k}"][query] == (place <= k)


def test_several_sources_of_a_kind_are_averaged_and_queries_without_one_left_out() -> None:
    scores = np.array([[5, 4, 3, 2, 1], [1, 2, 3, 4, 5], [0, 0, 0, 0, 9]], np.float32)
    sources = [Source(0, 0, "copy"), Source(0, 3, "copy"), Source(2, 4, "pair")]
    found = recall_of_sources(scores, sources, (1,))
    assert found["copy", "recall@1"].tolist() == [0.5]  # the second is third, the first being hidden
    assert found["copy", "mrr"].tolist() == [(1 + 1 / 3) / 2]
    assert found["pair", "recall@1"].tolist() == [1.0]


def test_what_was_left_out_of_an_index_is_never_found() -> None:
    scores = np.array([-1.0, -np.inf, -2.0])
    assert ranking(scores, 1).tolist() == [0, 2, 1]


def test_intervals_cover_the_mean_and_paired_ones_are_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(50)
    methods = {"a": base + 0.01, "b": base, "c": rng.random(50)}
    found, paired = mean_intervals(methods, [("a", "b"), ("a", "c")])
    for name, values in methods.items():
        assert found[name].value == pytest.approx(values.mean())
        assert found[name].low < found[name].value < found[name].high
        half = 1.96 * values.std() / np.sqrt(50)
        assert found[name].high - found[name].low == pytest.approx(2 * half, rel=0.1)
    constant, free = paired["a", "b"], paired["a", "c"]
    assert (constant.low, constant.high) == pytest.approx((0.01, 0.01)), "the same queries are drawn for both"
    assert free.low < free.value < free.high
