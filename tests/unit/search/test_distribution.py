"""Invariant: every searched row is in the bin of its score, for any range, order and division of the rows."""

import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.distribution import BINS, Distribution, ScoreCounts, percentile
from lorif_core.search.scoring import FoldedQueries, score_rows
from lorif_core.search.top_k import TopK
from lorif_core.search.top_rows import Search, prepare_queries
from lorif_core.spec import CodeSpec, LayerSpec
from tests.small_index import build_small, save_model

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


def recounted(distribution: Distribution, scores: np.ndarray) -> None:
    edges = np.array(distribution.edges)
    expected = [int(((scores >= low) & (scores < high)).sum()) for low, high in pairwise(edges)]
    assert list(distribution.counts) == expected and distribution.rows == len(scores)
    assert 1 <= len(expected) <= BINS and expected[0] and expected[-1]
    np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0])


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(NUMBERS, max_size=20), min_size=1, max_size=6).filter(any))
def test_blocks_and_workers_count_like_one_pass_over_all_rows(blocks: list[list[float]]) -> None:
    arrays = [np.array(block, np.float32) for block in blocks]
    whole, halves = ScoreCounts(), [ScoreCounts(), ScoreCounts()]
    for number, block in enumerate(arrays):
        whole.add(block)
        halves[number % 2].add(block)
    merged = TopK(3)
    for half in halves:
        merged.merge(pickle.loads(pickle.dumps(TopK(3, counts=half))))  # noqa: S301 - as Ray sends it
    assert whole.distribution is not None and merged.distribution == whole.distribution
    recounted(whole.distribution, np.concatenate(arrays).astype(np.float64))


def test_a_narrow_range_fills_many_bins_and_outliers_stay_in_the_picture() -> None:
    scores = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    counts = ScoreCounts()
    counts.add(scores)
    distribution = counts.distribution
    assert distribution is not None and len(distribution.counts) >= BINS // 2
    counts.add(np.array([100.0], np.float32))
    assert counts.distribution is not None and counts.distribution.rows == 10_001
    assert ScoreCounts().distribution is None


def test_the_percentile_is_the_share_of_rows_that_rank_below() -> None:
    distribution = Distribution((0.0, 1.0), (200,), "exact")
    assert percentile(1, distribution, is_proponent=True) == 99.5
    assert percentile(1, distribution, is_proponent=False) == 0.0
    assert percentile(200, distribution, is_proponent=True) == 0.0
    assert percentile(1, None, is_proponent=True) is None


@pytest.mark.parametrize("queries", [1, 5])
def test_a_prefilter_counts_all_rows_and_the_candidates_by_their_exact_scores(queries: int) -> None:
    torch.manual_seed(0)
    layout = CodeLayout([LayerSpec("a", 64, 64, 64, 64)], CodeSpec("cut", 8, "sign"))
    codes = torch.randint(0, 256, (2000, layout.stored_width), dtype=torch.uint8)
    scales = torch.rand(2000, layout.scales)
    folded = FoldedQueries((torch.randn(queries, 64 * 64),))
    prepared = prepare_queries(layout, folded, [(codes, scales)])
    search = Search(layout, prepared, 5)
    ids = [f"x{number}" for number in range(2000)]
    for start in range(0, 2000, 600):
        rows = slice(start, start + 600)
        search.update(codes[rows], scales[rows], ids[rows])
    exact_QN = score_rows(codes, scales, layout, folded).numpy()
    for top, exact_N in zip(search.best, exact_QN, strict=True):
        distribution = top.distribution
        assert distribution is not None and distribution.rows == 2000
        assert distribution.scores == ("exact" if prepared.prefilter is None else "prefilter")
        assert distribution.edges[0] <= exact_N.min() and exact_N.max() <= distribution.edges[-1]
        above = np.searchsorted(distribution.edges, exact_N[ids.index(top.proponents[0].example_id)]) - 1
        assert above >= len(distribution.counts) - 2


def test_an_index_says_which_scores_it_counted(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(f'{{"text": "the cat sees {number} dogs"}}\n' for number in range(300)))
    corpus = {"uri": str(path), "max_length": 48}
    code = {"kind": "cut", "rank": 2, "dtype": "sign"}
    index = build_small(tmp_path / "index", save_model(tmp_path / "model"), corpus, code=code)
    _, scores = index.scores(["the cat"])
    for two_stage, source in ((False, "exact"), (True, "sketch")):
        (top,) = index.top_k(["the cat"], 5, two_stage=two_stage)
        assert top.distribution is not None
        assert (top.distribution.rows, top.distribution.scores) == (300, source)
        if not two_stage:
            recounted(top.distribution, scores[0])
    (some,) = index.top_k(["the cat"], 5, where="row < 100")
    assert some.distribution is not None and some.distribution.rows == 100
