"""Invariant: streamed scores equal dense dot products with the decoded rows, and top-k equals a full sort."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.curvature.randomized_svd import fit_layers
from lorif_core.curvature.scan import ScanRequest, ScanResult, scan_blocks
from lorif_core.curvature.woodbury import CurvatureSpec, Damping
from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.scoring import FoldedQueries, fold_queries, relative_to_own, score_rows
from lorif_core.search.top_k import TopK
from lorif_core.spec import CodeSpec, LayerSpec

LAYERS = (LayerSpec("a", 6, 8, 6, 8), LayerSpec("b", 9, 4, 9, 4))


@pytest.mark.parametrize("queries", [1, 3, 40])
@pytest.mark.parametrize("code", [CodeSpec("rank", 1), CodeSpec("rank", 3), CodeSpec("dense")], ids=str)
def test_scores_equal_dot_products_with_the_decoded_rows(code: CodeSpec, queries: int) -> None:
    layout = CodeLayout(LAYERS, code)
    rng = torch.Generator().manual_seed(0)
    codes, scales = torch.randn(700, layout.width, generator=rng), torch.rand(700, layout.scales, generator=rng)
    weights = [torch.randn(queries, layer.dim, generator=rng) for layer in LAYERS]
    expected = sum(
        weight.double() @ layout.decode(codes.double(), scales.double(), index).T
        for index, weight in enumerate(weights)
    )
    scores = score_rows(codes, scales, layout, FoldedQueries(tuple(weights)))
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-4)


def relative_scores(
    codes: torch.Tensor, scales: torch.Tensor, queries: list[torch.Tensor], damping: Damping, kind: str
) -> torch.Tensor:
    """Scores (Q, 30) of the first 30 dense rows, with a curvature fitted on all rows."""
    layout = CodeLayout(LAYERS, CodeSpec("dense", dtype="float32"))
    spec = CurvatureSpec(kind, rank=8, damping=damping)

    def scan(request: ScanRequest) -> ScanResult:
        return scan_blocks([(codes, scales)], layout, request)

    fitted = fit_layers([0, 1], [layer.dim for layer in LAYERS], len(codes), spec, scan)
    folded = relative_to_own(fold_queries(queries, [fitted[0], fitted[1]]), queries)
    return score_rows(codes[:30], scales[:30], layout, folded)


@pytest.mark.parametrize(("damping", "kind"), [("retained", "woodbury"), ("trace", "exact"), ("paper", "none")])
def test_relative_scores_have_no_unit(damping: Damping, kind: str) -> None:
    """Gradients in another unit, or three times as many rows behind H, do not change relative scores."""
    rng = torch.Generator().manual_seed(0)
    width = sum(layer.dim for layer in LAYERS)
    codes, scales = torch.randn(30, width, generator=rng), torch.rand(30, 2, generator=rng)
    queries = [torch.randn(2, layer.dim, generator=rng) for layer in LAYERS]
    expected = relative_scores(codes, scales, queries, damping, kind)
    larger = relative_scores(codes, 50 * scales, [50 * query for query in queries], damping, kind)
    thrice = relative_scores(codes.repeat(3, 1), scales.repeat(3, 1), queries, damping, kind)
    torch.testing.assert_close(larger, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(thrice, expected, rtol=1e-3, atol=1e-5)


def test_a_row_equal_to_the_query_has_the_relative_score_one() -> None:
    queries = [torch.randn(3, layer.dim, generator=torch.Generator().manual_seed(5)) for layer in LAYERS]
    layout = CodeLayout(LAYERS, CodeSpec("dense", dtype="float32"))
    folded = relative_to_own(FoldedQueries(tuple(4 * query for query in queries)), queries)
    scores = score_rows(torch.cat(queries, dim=1), torch.ones(3, 2), layout, folded)
    torch.testing.assert_close(scores.diagonal(), torch.ones(3))
    zero = relative_to_own(FoldedQueries((torch.zeros(1, 48),)), [torch.zeros(1, 48)])
    assert torch.equal(zero.weights[0], torch.zeros(1, 48)), "a query with a zero gradient must have zero scores"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), min_size=1, max_size=40),
    st.integers(1, 8),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_top_k_equals_a_full_sort_for_any_blocks(values: list[float], k: int, block: int, random: object) -> None:
    """Scores have many ties: the order of blocks must not decide between them."""
    rows = [(value, f"x{number:02d}") for number, value in enumerate(values)]
    shuffled = list(rows)
    random.shuffle(shuffled)
    halves = [TopK(k), TopK(k)]
    for number, start in enumerate(range(0, len(shuffled), block)):
        part = shuffled[start : start + block]
        halves[number % 2].update(np.array([value for value, _ in part], np.float32), [name for _, name in part])
    halves[0].merge(halves[1])
    best = sorted(rows, key=lambda row: (-row[0], row[1]))[:k]
    worst = sorted(rows, key=lambda row: (row[0], row[1]))[:k]
    assert [(hit.score, hit.example_id) for hit in halves[0].proponents] == best
    assert [(hit.score, hit.example_id) for hit in halves[0].opponents] == worst
