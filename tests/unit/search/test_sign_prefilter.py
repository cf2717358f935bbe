"""Invariant: counted bits, the product of whole numbers and float64 give the same quick scores of dense signs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.scoring import FoldedQueries, score_rows
from lorif_core.search.sign_prefilter import CoarseScorer, coarsened
from lorif_core.spec import CodeSpec, LayerSpec

SIZES = st.lists(st.tuples(st.integers(1, 17), st.integers(1, 23)), min_size=1, max_size=4)


def made(
    sizes: list[tuple[int, int]], rows: int, queries: int, seed: int
) -> tuple[CodeLayout, list[torch.Tensor]]:
    """A layout, then codes, scales and weights that are random; of the last layer nobody asks anything."""
    layout = CodeLayout(
        [LayerSpec(str(n), 0, 0, *size) for n, size in enumerate(sizes)], CodeSpec("dense", 1, "sign")
    )
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, layout.stored_width), dtype=torch.uint8, generator=draw)
    scales = torch.rand(rows, layout.scales, generator=draw)
    weights = [torch.randn(queries, slot.layer.dim, generator=draw) ** 3 for slot in layout.slots]
    weights[-1] *= 0
    return layout, [codes, scales, *weights]


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, rows=st.integers(1, 70), queries=st.integers(1, 5), seed=st.integers(0, 9))
def test_bits_counted_and_multiplied_agree_with_float64(
    sizes: list[tuple[int, int]], rows: int, queries: int, seed: int
) -> None:
    """Of any number of rows and any place of a layer within a row, whole words or not."""
    layout, (codes, scales, *weights) = made(sizes, rows, queries, seed)
    coarse = coarsened(FoldedQueries(tuple(weights)))
    counted = CoarseScorer(layout, coarse)
    assert counted.counts_bits
    found = counted.scores(codes, scales)
    torch.testing.assert_close(
        found, CoarseScorer(layout, coarse, count=False).scores(codes, scales), rtol=0, atol=0
    )
    expected = torch.zeros(queries, rows, dtype=torch.float64)
    for number, slot in enumerate(layout.slots):
        query = coarse.levels[number].double() * coarse.steps[number].double()[:, None]
        expected += query @ (layout.levels(codes, slot).double() * scales[:, number, None].double()).T
    torch.testing.assert_close(
        found.double(), expected, rtol=1e-4, atol=1e-4 * max(1.0, float(expected.abs().max()))
    )


def test_rows_are_counted_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, (codes, scales, *weights) = made([(30, 17), (8, 9)], 300, 3, 0)
    coarse = coarsened(FoldedQueries(tuple(weights)))
    expected = CoarseScorer(layout, coarse).scores(codes, scales)
    monkeypatch.setattr("lorif_core.search.sign_prefilter._SUMS", 1)
    for count in (True, False):
        assert torch.equal(CoarseScorer(layout, coarse, count=count).scores(codes, scales), expected)


def test_four_bits_are_near_the_exact_scores() -> None:
    """The error is that of rounding: .2 of the spread of scores of rows that have nothing to do with the query."""
    layout, (codes, scales, *weights) = made([(64, 48), (32, 80), (9, 7)], 500, 8, 0)
    folded = FoldedQueries(tuple(weight.sign() * weight.abs() ** (1 / 3) for weight in weights))
    exact = score_rows(codes, scales, layout, folded)
    quick = CoarseScorer(layout, coarsened(folded)).scores(codes, scales)
    assert ((quick - exact).std(dim=1) < 0.2 * exact.std(dim=1)).all()
    assert (((quick - exact).std(dim=1)) > 0).all()
