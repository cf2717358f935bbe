"""Invariant: quick scores are those of leading directions; the strongest rows are found, and scored exactly."""

import pickle

import numpy as np
import pytest
import torch

from lorif_core.gradients.codes import CodeLayout, encode
from lorif_core.gradients.quantisation import PER_BYTE, pack
from lorif_core.search import bfloat16_prefilter as half
from lorif_core.search import prefilter as quick
from lorif_core.search.bfloat16_prefilter import HalfQueries, HalfScorer, halved
from lorif_core.search.low_rank_prefilter import DIRECTIONS, NarrowQueries, narrowed, quick_scores
from lorif_core.search.prefilter import QuickQueries, quick_kind, quick_scorer
from lorif_core.search.scoring import FoldedQueries, score_rows
from lorif_core.search.sign_prefilter import CoarseQueries
from lorif_core.search.top_rows import Search, Sought, sought
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
    """Codes as they are stored, and scales, of random gradients that share some directions."""
    draw = torch.Generator().manual_seed(seed)
    encoded = []
    for slot in layout.slots:
        layer = slot.layer
        A, E = (torch.randn(rows, 6, size, generator=draw) for size in (layer.d1, layer.d2))
        encoded.append(encode(A + 0.5 * A[:, :1], E + 0.5 * E[:1], layout.code))
    codes = [one.codes for one in encoded]
    if layout.code.dtype in PER_BYTE:
        codes = [pack(levels, layout.code.dtype) for levels in codes]
    elif layout.code.dtype == "int8":
        codes = [levels.to(torch.int8) for levels in codes]
    elif layout.code.dtype == "float16":
        codes = [levels.half() for levels in codes]
    return torch.cat(codes, dim=1), torch.cat([one.scales for one in encoded], dim=1)


def queries_of(layout: CodeLayout, queries: int, directions: int, seed: int = 1) -> FoldedQueries:
    """Random queries with a decaying spectrum of so many directions."""
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
def test_quick_scores_are_exact_for_queries_of_few_directions(name: str, layers: tuple[LayerSpec, ...]) -> None:
    layout = CodeLayout(layers, CODES[name])
    codes, scales = rows_of(layout, 40)
    folded = queries_of(layout, 3, DIRECTIONS - 4)
    expected = score_rows(codes, scales, layout, folded)
    found = quick_scores(codes, scales, layout, narrowed(folded, layout))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_leading_directions_are_kept() -> None:
    """Of a query with more directions, what is left out is what an SVD would leave out, or hardly more."""
    layout = CodeLayout(WIDE, CODES["cut 3"])
    folded = queries_of(layout, 2, 64)
    narrow = narrowed(folded, layout)
    for number, slot in enumerate(layout.slots):
        W = folded.weights[number].view(2, slot.layer.d1, slot.layer.d2)
        left = (W - narrow.left[number] @ narrow.right[number].mT).square().sum(dim=(1, 2))
        best = torch.linalg.svdvals(W)[:, DIRECTIONS:].square().sum(dim=1)
        assert (left <= 1.3 * best + 1e-6).all()


@pytest.mark.parametrize("layers", [WIDE, ODD], ids=["whole bytes", "odd sizes"])
@pytest.mark.parametrize(("queries", "fast"), [(3, True), (40, True), (40, False)])
@pytest.mark.parametrize("name", [*CODES, "dense sign", "dense int8", "dense float16"])
def test_half_scores_are_off_by_their_rounding(
    name: str, queries: int, fast: bool, layers: tuple[LayerSpec, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contracted or decoded, whole or in pieces of rows and of columns, and on a machine without bfloat16."""
    monkeypatch.setattr(half, "is_fast", lambda: fast)
    code = CODES.get(name) or CodeSpec("dense", 1, name.removeprefix("dense "))
    layout = CodeLayout(layers, code)
    codes, scales = rows_of(layout, 90)
    folded = queries_of(layout, queries, 30)
    expected = score_rows(codes, scales, layout, folded)
    scorer = HalfScorer(layout, halved(folded))
    for numbers in (half._PIECE, 1000):
        monkeypatch.setattr(half, "_PIECE", numbers)
        monkeypatch.setattr(half, "_PIECE_ROWS", 40)
        monkeypatch.setattr(half, "_ROWS", 50)
        off = scorer.scores(codes, scales) - expected
        assert (off.std(dim=1) <= 2**-7 * expected.std(dim=1)).all()
        assert (off.abs() <= 2**-5 * expected.std(dim=1, keepdim=True) + 2**-6 * expected.abs()).all()


@pytest.mark.parametrize(
    "code", [CodeSpec("rank", 1, "sign"), CodeSpec("cut", 4, "sign"), CODES["rank 2 float16"]]
)
@pytest.mark.parametrize("queries", [2, 40])
def test_rows_that_no_sample_has_are_within_the_margin(code: CodeSpec, queries: int) -> None:
    """Rows of one layer along a query score a hundred times as much as those that the margin was learned from."""
    layout = CodeLayout((LayerSpec("a", 0, 0, 128, 128),), code)
    codes, scales = rows_of(layout, 900)
    folded = queries_of(layout, queries, 40)
    along = layout.decode(codes[600:], scales[600:], 0)[:queries]
    folded = FoldedQueries((folded.weights[0] + 0.3 * along / along.norm(dim=1, keepdim=True) * 128,))
    looking = halved(folded)
    exact = score_rows(codes, scales, layout, folded)
    off = (HalfScorer(layout, looking).scores(codes, scales) - exact).abs()
    sizes = scales.norm(dim=1)
    margin = 5 * ((off / sizes)[:, :256]).square().mean(dim=1, keepdim=True).sqrt() * sizes
    assert (off <= margin + looking.relative_error * exact.abs()).all()


SEARCHED = {
    "leading directions": (CODES["cut 3"], 4, NarrowQueries, False),
    "leading directions of floats": (CODES["rank 2 float16"], 4, NarrowQueries, True),
    "bits": (DENSE_SIGN, 4, CoarseQueries, True),
    "half, factors": (CODES["cut 3"], 40, HalfQueries, True),
    "half, floats": (CodeSpec("dense", 1, "float16"), 2, HalfQueries, True),
}


@pytest.mark.parametrize(("code", "count", "kind", "fast"), SEARCHED.values(), ids=SEARCHED)
def test_the_strongest_rows_are_found_with_exact_scores(
    code: CodeSpec, count: int, kind: type[QuickQueries], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of any size, with and without numbers that scores are multiplied by."""
    monkeypatch.setattr(quick, "has_fast_half", lambda: fast)
    layout = CodeLayout((LayerSpec("a", 0, 0, 192, 256), LayerSpec("b", 0, 0, 224, 192)), code)
    assert quick_kind(layout, count) is kind
    rows, queries = 1500, queries_of(layout, count, 100)
    codes, scales = rows_of(layout, rows)
    ids = [f"x{row}" for row in range(rows)]
    ready = sought(layout, queries, zip(codes.split(100), scales.split(100), strict=True))
    for times in (None, np.linspace(0.5, 2.0, rows, dtype=np.float32)):
        looked, exact = Search(layout, ready, 20), Search(layout, Sought(queries), 20)
        for start, stop in ((0, 10), (10, 600), (600, rows)):
            some = slice(start, stop)
            for search in (looked, exact):
                search.update(codes[some], scales[some], ids[some], None if times is None else times[some])
        for found, expected in zip(looked.best, exact.best, strict=True):
            for side in ("proponents", "opponents"):
                ours, theirs = getattr(found, side), getattr(expected, side)
                assert [hit.example_id for hit in ours] == [hit.example_id for hit in theirs]
                np.testing.assert_allclose([h.score for h in ours], [h.score for h in theirs], rtol=1e-4)


@pytest.mark.parametrize(("code", "count"), [(CODES["cut 3"], 2), (DENSE_SIGN, 2), (CODES["cut 3"], 40)], ids=str)
def test_what_a_worker_gets_is_what_was_sent(code: CodeSpec, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries that went through pickle give the same quick scores."""
    monkeypatch.setattr(quick, "has_fast_half", lambda: count > 2)
    layout = CodeLayout((*ODD, LayerSpec("c", 0, 0, 128, 128)), code)
    codes, scales = rows_of(layout, 300)
    sent = sought(layout, queries_of(layout, count, 50), [(codes, scales)])
    received = pickle.loads(pickle.dumps(sent))  # noqa: S301
    np.testing.assert_array_equal(received.margins, sent.margins)
    both = [quick_scorer(layout, one.quick)(codes, scales) for one in (sent, received)]
    torch.testing.assert_close(*both, rtol=0, atol=0)


@pytest.mark.parametrize("fast", [False, True])
def test_codes_that_gain_nothing_are_scored_exactly(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "has_fast_half", lambda: fast)
    for layout in (
        CodeLayout((LayerSpec("a", 0, 0, 16, 24),), CodeSpec("rank", 1, "float16")),
        CodeLayout(WIDE, CodeSpec("dense", 1, "int8")),
    ):
        assert quick_kind(layout, 1) is quick_kind(layout, 500) is None
