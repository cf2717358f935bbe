"""Invariant: bit counts, integer products and float64 give the same prefilter scores of dense signs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.scoring import FoldedQueries, score_rows
from lorif_core.search.sign_prefilter import SignScorer, to_signs
from lorif_core.spec import CodeSpec, LayerSpec

SIZES = st.lists(st.tuples(st.integers(1, 17), st.integers(1, 23)), min_size=1, max_size=4)


def random_case(
    sizes: list[tuple[int, int]], rows: int, queries: int, seed: int
) -> tuple[CodeLayout, list[torch.Tensor]]:
    """A layout, and random codes, scales and weights; the weights of the last layer are zero."""
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
    """For any number of rows, and for layers at any offset within a row, aligned to words or not."""
    layout, (codes, scales, *weights) = random_case(sizes, rows, queries, seed)
    quantised = to_signs(FoldedQueries(tuple(weights)))
    counted = SignScorer(layout, quantised)
    assert counted.counts_bits
    scores = counted.scores(codes, scales)
    multiplied = SignScorer(layout, quantised, count_bits=False).scores(codes, scales)
    torch.testing.assert_close(scores, multiplied, rtol=0, atol=0)
    expected = torch.zeros(queries, rows, dtype=torch.float64)
    for number, slot in enumerate(layout.slots):
        query = quantised.levels[number].double() * quantised.steps[number].double()[:, None]
        expected += query @ (layout.levels(codes, slot).double() * scales[:, number, None].double()).T
    torch.testing.assert_close(
        scores.double(), expected, rtol=1e-4, atol=1e-4 * max(1.0, float(expected.abs().max()))
    )


def test_chunks_of_rows_give_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, (codes, scales, *weights) = random_case([(30, 17), (8, 9)], 300, 3, 0)
    quantised = to_signs(FoldedQueries(tuple(weights)))
    expected = SignScorer(layout, quantised).scores(codes, scales)
    monkeypatch.setattr("lorif_core.search.sign_prefilter._MAX_SUMS", 1)
    for count_bits in (True, False):
        scorer = SignScorer(layout, quantised, count_bits=count_bits)
        assert torch.equal(scorer.scores(codes, scales), expected)


def test_four_bits_are_near_the_exact_scores() -> None:
    """The rounding error is below .2 of the standard deviation of the scores of unrelated rows."""
    layout, (codes, scales, *weights) = random_case([(64, 48), (32, 80), (9, 7)], 500, 8, 0)
    folded = FoldedQueries(tuple(weight.sign() * weight.abs() ** (1 / 3) for weight in weights))
    exact = score_rows(codes, scales, layout, folded)
    error_Q = (SignScorer(layout, to_signs(folded)).scores(codes, scales) - exact).std(dim=1)
    assert (error_Q < 0.2 * exact.std(dim=1)).all()
    assert (error_Q > 0).all()
