"""The quick look at stored rows: what queries are cut to, and approximate scores with it.

Queries are cut to whole numbers for dense signs (`coarse`), and a few of them to their leading directions for
factors (`narrow`), which spares the unpacking of rows. Else products are in bfloat16 (`half`), on processors that
have it.
"""

from collections.abc import Callable

import torch

from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.bfloat16_prefilter import HalfQueries, HalfScorer, halved
from lorif_core.search.bfloat16_prefilter import is_fast as has_fast_half
from lorif_core.search.low_rank_prefilter import DIRECTIONS, NarrowQueries, is_faster, narrowed, quick_scores
from lorif_core.search.scoring import FoldedQueries
from lorif_core.search.sign_prefilter import CoarseQueries, CoarseScorer, can_count_bits, coarsened

QuickQueries = NarrowQueries | CoarseQueries | HalfQueries
QuickScores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_NARROW_QUERIES = 32  # of more, products in bfloat16 are sooner done than look-ups for each (benchmarks.query)
_WORTH_HALF = 2**14  # numbers of a gradient, below which calls take longer than products


def quick_kind(layout: CodeLayout, queries: int) -> type[QuickQueries] | None:
    """The quick look at rows for so many queries at once; None where exact scores are as fast."""
    half = has_fast_half() and _is_worth_half(layout)
    if _is_dense_sign(layout) and (can_count_bits() or not half):
        return CoarseQueries
    if _can_be_narrow(layout) and (queries <= _NARROW_QUERIES or not half):
        return NarrowQueries
    return HalfQueries if half else None


def _is_dense_sign(layout: CodeLayout) -> bool:
    return layout.code.kind == "dense" and layout.code.dtype == "sign"


def _can_be_narrow(layout: CodeLayout) -> bool:
    return layout.code.kind != "dense" and is_faster(layout)


def _is_worth_half(layout: CodeLayout) -> bool:
    return sum(slot.layer.dim for slot in layout.slots) >= _WORTH_HALF


def quick_queries(folded: FoldedQueries, layout: CodeLayout) -> QuickQueries | None:
    """What is left of folded queries for a quick look; None where exact scores are as fast."""
    kind = quick_kind(layout, folded.count)
    if kind is NarrowQueries:
        return narrowed(folded, layout)
    if kind is CoarseQueries:
        return coarsened(folded)
    return None if kind is None else halved(folded)


def quick_scorer(layout: CodeLayout, queries: QuickQueries) -> QuickScores:
    """Of codes and scales, as `scoring.score_rows` takes them, (Q, B) float32 approximate scores."""
    if isinstance(queries, HalfQueries):
        return HalfScorer(layout, queries).scores
    if isinstance(queries, CoarseQueries):
        return CoarseScorer(layout, queries).scores
    return lambda codes, scales_BS: quick_scores(codes, scales_BS, layout, queries)


def quick_bytes(layout: CodeLayout) -> int:
    """Memory that the quick look takes of one query at most, by any of the ways there are for the code."""
    layers = [slot.layer for slot in layout.slots]
    narrow = 4 * DIRECTIONS * sum(layer.d1 + layer.d2 for layer in layers) if _can_be_narrow(layout) else 0
    other = 4 * sum(layer.dim for layer in layers) if _is_dense_sign(layout) or _is_worth_half(layout) else 0
    return max(narrow, other)
