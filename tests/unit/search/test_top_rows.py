"""Invariant: prefilter scores are near exact scores, and a search finds the strongest rows with exact scores."""

import pickle

import numpy as np
import pytest
import torch

from lorif_core.gradients.codes import CodeLayout, encode
from lorif_core.gradients.quantisation import LEVELS_PER_BYTE, pack
from lorif_core.search import bfloat16_prefilter, prefilter
from lorif_core.search.bfloat16_prefilter import BFloat16Queries, BFloat16Scorer, to_bfloat16
from lorif_core.search.low_rank_prefilter import DIRECTIONS, LowRankQueries, prefilter_scores, to_low_rank
from lorif_core.search.prefilter import PrefilterQueries, prefilter_kind, prefilter_scorer
from lorif_core.search.scoring import FoldedQueries, score_rows
from lorif_core.search.sign_prefilter import SignQueries
from lorif_core.search.top_rows import PreparedQueries, Search, prepare_queries
from lorif_core.spec import CodeSpec, LayerSpec

WIDE = (LayerSpec("a", 0, 0, 64, 96), LayerSpec("b", 0, 0, 96, 40), LayerSpec("c", 0, 0, 72, 72))
ODD = (LayerSpec("a", 0, 0, 63, 97), LayerSpec("b", 0, 0, 24, 41))
CODES = {
    "cut 3": CodeSpec("cut", 3, "sign"),
    "rank 2 sign": CodeSpec("rank", 2, "sign"),
    "rank 2 int4": CodeSpec("rank", 2, "int4"),
    "rank 1 int8": CodeSpec("rank", 1, "int8"),
    "rank 2 float16": CodeSpec("rank", 2, "float16"),
}
DENSE_SIGN = CodeSpec("dense", 1, "sign")


def rows_of(layout: CodeLayout, rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Stored codes, and scales, of random gradients that share some directions."""
    draw = torch.Generator().manual_seed(seed)
    encoded = []
    for slot in layout.slots:
        layer = slot.layer
        A, E = (torch.randn(rows, 6, size, generator=draw) for size in (layer.d1, layer.d2))
        encoded.append(encode(A + 0.5 * A[:, :1], E + 0.5 * E[:1], layout.code))
    codes = [layer_codes.codes for layer_codes in encoded]
    if layout.code.dtype in LEVELS_PER_BYTE:
        codes = [pack(levels, layout.code.dtype) for levels in codes]
    elif layout.code.dtype == "int8":
        codes = [levels.to(torch.int8) for levels in codes]
    elif layout.code.dtype == "float16":
        codes = [levels.half() for levels in codes]
    return torch.cat(codes, dim=1), torch.cat([layer_codes.scales for layer_codes in encoded], dim=1)


def queries_of(layout: CodeLayout, queries: int, directions: int, seed: int = 1) -> FoldedQueries:
    """Random queries with a decaying spectrum of a given number of directions."""
    draw = torch.Generator().manual_seed(seed)
    weights = []
    for slot in layout.slots:
        sizes = (slot.layer.d1, slot.layer.d2)
        X, Y = (torch.randn(queries, size, directions, generator=draw) for size in sizes)
        decay = 0.9 ** torch.arange(directions)
        weights.append(((X * decay) @ Y.mT).flatten(1))
    return FoldedQueries(tuple(weights))


@pytest.mark.parametrize("layers", [WIDE, ODD], ids=["whole bytes", "odd sizes"])
@pytest.mark.parametrize("name", CODES)
def test_low_rank_scores_are_exact_for_queries_of_few_directions(name: str, layers: tuple[LayerSpec, ...]) -> None:
    layout = CodeLayout(layers, CODES[name])
    codes, scales = rows_of(layout, 40)
    folded = queries_of(layout, 3, DIRECTIONS - 4)
    expected = score_rows(codes, scales, layout, folded)
    scores = prefilter_scores(codes, scales, layout, to_low_rank(folded, layout))
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_leading_directions_are_retained() -> None:
    """For a query with more directions, the error is at most 1.3 times that of a truncated SVD."""
    layout = CodeLayout(WIDE, CODES["cut 3"])
    folded = queries_of(layout, 2, 64)
    low_rank = to_low_rank(folded, layout)
    for number, slot in enumerate(layout.slots):
        W = folded.weights[number].view(2, slot.layer.d1, slot.layer.d2)
        error = (W - low_rank.left[number] @ low_rank.right[number].mT).square().sum(dim=(1, 2))
        least = torch.linalg.svdvals(W)[:, DIRECTIONS:].square().sum(dim=1)
        assert (error <= 1.3 * least + 1e-6).all()


@pytest.mark.parametrize("layers", [WIDE, ODD], ids=["whole bytes", "odd sizes"])
@pytest.mark.parametrize(("queries", "fast"), [(3, True), (40, True), (40, False)])
@pytest.mark.parametrize("name", [*CODES, "dense sign", "dense int8", "dense float16"])
def test_bfloat16_scores_have_rounding_errors_only(
    name: str, queries: int, fast: bool, layers: tuple[LayerSpec, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contracted or decoded, in one piece or in pieces of rows and columns, also on a machine without bfloat16."""
    monkeypatch.setattr(bfloat16_prefilter, "has_fast_bfloat16", lambda: fast)
    code = CODES.get(name) or CodeSpec("dense", 1, name.removeprefix("dense "))
    layout = CodeLayout(layers, code)
    codes, scales = rows_of(layout, 90)
    folded = queries_of(layout, queries, 30)
    expected = score_rows(codes, scales, layout, folded)
    for numbers in (2**22, 1000):
        block = bfloat16_prefilter._Block(50, 40, numbers)
        monkeypatch.setattr(bfloat16_prefilter, "_BLOCKS", {"cpu": block, "cuda": block})
        error = BFloat16Scorer(layout, to_bfloat16(folded)).scores(codes, scales) - expected
        assert (error.std(dim=1) <= 2**-7 * expected.std(dim=1)).all()
        assert (error.abs() <= 2**-5 * expected.std(dim=1, keepdim=True) + 2**-6 * expected.abs()).all()


@pytest.mark.parametrize(
    "code", [CodeSpec("rank", 1, "sign"), CodeSpec("cut", 4, "sign"), CODES["rank 2 float16"]]
)
@pytest.mark.parametrize("queries", [2, 40])
def test_rows_unlike_the_sample_are_within_the_margin(code: CodeSpec, queries: int) -> None:
    """Rows along a query score a hundred times as much as the rows that the margin is estimated from."""
    layout = CodeLayout((LayerSpec("a", 0, 0, 128, 128),), code)
    codes, scales = rows_of(layout, 900)
    folded = queries_of(layout, queries, 40)
    along = layout.decode(codes[600:], scales[600:], 0)[:queries]
    folded = FoldedQueries((folded.weights[0] + 0.3 * along / along.norm(dim=1, keepdim=True) * 128,))
    rounded = to_bfloat16(folded)
    exact = score_rows(codes, scales, layout, folded)
    error = (BFloat16Scorer(layout, rounded).scores(codes, scales) - exact).abs()
    norms = scales.norm(dim=1)
    margin = 5 * ((error / norms)[:, :256]).square().mean(dim=1, keepdim=True).sqrt() * norms
    assert (error <= margin + rounded.relative_error * exact.abs()).all()


SEARCHES = {
    "leading directions": (CODES["cut 3"], 4, LowRankQueries, False),
    "leading directions of floats": (CODES["rank 2 float16"], 4, LowRankQueries, True),
    "bits": (DENSE_SIGN, 4, SignQueries, True),
    "bfloat16, factors": (CODES["cut 3"], 40, BFloat16Queries, True),
    "bfloat16, floats": (CodeSpec("dense", 1, "float16"), 2, BFloat16Queries, True),
}


@pytest.mark.parametrize(("code", "count", "kind", "fast"), SEARCHES.values(), ids=SEARCHES)
def test_the_strongest_rows_are_found_with_exact_scores(
    code: CodeSpec, count: int, kind: type[PrefilterQueries], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of any size, with and without multipliers of the scores."""
    monkeypatch.setattr(prefilter, "has_fast_bfloat16", lambda: fast)
    layout = CodeLayout((LayerSpec("a", 0, 0, 192, 256), LayerSpec("b", 0, 0, 224, 192)), code)
    assert prefilter_kind(layout, count) is kind
    rows, queries = 1500, queries_of(layout, count, 100)
    codes, scales = rows_of(layout, rows)
    ids = [f"x{row}" for row in range(rows)]
    prepared = prepare_queries(layout, queries, zip(codes.split(100), scales.split(100), strict=True))
    for multiplier in (None, np.linspace(0.5, 2.0, rows, dtype=np.float32)):
        prefiltered, exact = Search(layout, prepared, 20), Search(layout, PreparedQueries(queries), 20)
        for start, stop in ((0, 10), (10, 600), (600, rows)):
            block = slice(start, stop)
            block_multiplier = None if multiplier is None else multiplier[block]
            for search in (prefiltered, exact):
                search.update(codes[block], scales[block], ids[block], block_multiplier)
        for top, expected in zip(prefiltered.best, exact.best, strict=True):
            for side in ("proponents", "opponents"):
                hits, expected_hits = getattr(top, side), getattr(expected, side)
                assert [hit.example_id for hit in hits] == [hit.example_id for hit in expected_hits]
                expected_scores = [hit.score for hit in expected_hits]
                np.testing.assert_allclose([hit.score for hit in hits], expected_scores, rtol=1e-4)


@pytest.mark.parametrize(("code", "count"), [(CODES["cut 3"], 2), (DENSE_SIGN, 2), (CODES["cut 3"], 40)], ids=str)
def test_pickled_queries_give_the_same_scores(code: CodeSpec, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefilter, "has_fast_bfloat16", lambda: count > 2)
    layout = CodeLayout((*ODD, LayerSpec("c", 0, 0, 128, 128)), code)
    codes, scales = rows_of(layout, 300)
    sent = prepare_queries(layout, queries_of(layout, count, 50), [(codes, scales)])
    received = pickle.loads(pickle.dumps(sent))  # noqa: S301
    np.testing.assert_array_equal(received.margins, sent.margins)
    before, after = (prefilter_scorer(layout, side.prefilter)(codes, scales) for side in (sent, received))
    torch.testing.assert_close(before, after, rtol=0, atol=0)


@pytest.mark.parametrize("fast", [False, True])
def test_codes_without_a_faster_prefilter_are_scored_exactly(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefilter, "has_fast_bfloat16", lambda: fast)
    for layout in (
        CodeLayout((LayerSpec("a", 0, 0, 16, 24),), CodeSpec("rank", 1, "float16")),
        CodeLayout(WIDE, CodeSpec("dense", 1, "int8")),
    ):
        assert prefilter_kind(layout, 1) is prefilter_kind(layout, 500) is None
