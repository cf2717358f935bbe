"""Invariant: streamed scores equal a dense dot product with what is stored, and top-k equals a full sort."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.factors import CodeLayout
from lorif_core.scoring import FoldedQueries, score_rows
from lorif_core.spec import CodeSpec, LayerSpec
from lorif_core.topk import TopK

LAYERS = (LayerSpec("a", 6, 8, 6, 8), LayerSpec("b", 9, 4, 9, 4))


@pytest.mark.parametrize("queries", [1, 3, 40])
@pytest.mark.parametrize("code", [CodeSpec("rank", 1), CodeSpec("rank", 3), CodeSpec("dense")], ids=str)
def test_scores_are_the_dot_product_with_what_is_stored(code: CodeSpec, queries: int) -> None:
    layout = CodeLayout(LAYERS, code)
    rng = torch.Generator().manual_seed(0)
    codes, scales = torch.randn(700, layout.width, generator=rng), torch.rand(700, layout.scales, generator=rng)
    weights = [torch.randn(queries, layer.dim, generator=rng) for layer in LAYERS]
    expected = sum(
        weight.double() @ layout.decode(codes.double(), scales.double(), index).T
        for index, weight in enumerate(weights)
    )
    found = score_rows(codes, scales, layout, FoldedQueries(tuple(weights)))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), min_size=1, max_size=40),
    st.integers(1, 8),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_top_k_is_a_full_sort_whatever_the_blocks(values: list[float], k: int, block: int, random: object) -> None:
    """Ties are drawn on purpose: the order of blocks must not choose among them."""
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
