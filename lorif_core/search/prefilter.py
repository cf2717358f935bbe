"""The prefilter of a scan: reduced copies of the queries, and approximate scores of all rows with them.

There are three reductions. For dense signs, queries are quantised to four bits (`sign_prefilter`). For factored
codes, a few queries are truncated to low rank (`low_rank_prefilter`), which avoids the unpacking of rows. In other
cases products are in bfloat16 (`bfloat16_prefilter`), on processors that multiply it fast.
"""

from collections.abc import Callable

import torch

from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.bfloat16_prefilter import (
    BFloat16Queries,
    BFloat16Scorer,
    has_fast_bfloat16,
    to_bfloat16,
)
from lorif_core.search.low_rank_prefilter import (
    DIRECTIONS,
    LowRankQueries,
    is_low_rank_faster,
    prefilter_scores,
    to_low_rank,
)
from lorif_core.search.scoring import FoldedQueries
from lorif_core.search.sign_prefilter import SignQueries, SignScorer, can_count_bits, to_signs

PrefilterQueries = LowRankQueries | SignQueries | BFloat16Queries
PrefilterScores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_MAX_LOW_RANK_QUERIES = (
    32  # with more, bfloat16 products are faster than look-ups for each query (benchmarks.query)
)
_MIN_BFLOAT16_NUMBERS = 2**14  # numbers of a gradient; with fewer, calls take longer than products


def prefilter_kind(layout: CodeLayout, queries: int) -> type[PrefilterQueries] | None:
    """The prefilter for a number of queries in one scan; None if exact scores are as fast."""
    use_bfloat16 = has_fast_bfloat16() and _is_bfloat16_worthwhile(layout)
    if _is_dense_sign(layout) and (can_count_bits() or not use_bfloat16):
        return SignQueries
    if _is_low_rank_worthwhile(layout) and (queries <= _MAX_LOW_RANK_QUERIES or not use_bfloat16):
        return LowRankQueries
    return BFloat16Queries if use_bfloat16 else None


def _is_dense_sign(layout: CodeLayout) -> bool:
    return layout.code.kind == "dense" and layout.code.dtype == "sign"


def _is_low_rank_worthwhile(layout: CodeLayout) -> bool:
    return layout.code.kind != "dense" and is_low_rank_faster(layout)


def _is_bfloat16_worthwhile(layout: CodeLayout) -> bool:
    return sum(slot.layer.dim for slot in layout.slots) >= _MIN_BFLOAT16_NUMBERS


def prefilter_queries(folded: FoldedQueries, layout: CodeLayout) -> PrefilterQueries | None:
    """Folded queries reduced for the prefilter; None if exact scores are as fast."""
    kind = prefilter_kind(layout, folded.count)
    if kind is LowRankQueries:
        return to_low_rank(folded, layout)
    if kind is SignQueries:
        return to_signs(folded)
    return None if kind is None else to_bfloat16(folded)


def prefilter_scorer(layout: CodeLayout, queries: PrefilterQueries) -> PrefilterScores:
    """A function from codes and scales, as in `scoring.score_rows`, to (Q, B) float32 approximate scores."""
    if isinstance(queries, BFloat16Queries):
        return BFloat16Scorer(layout, queries).scores
    if isinstance(queries, SignQueries):
        return SignScorer(layout, queries).scores
    return lambda codes, scales_BS: prefilter_scores(codes, scales_BS, layout, queries)


def prefilter_bytes(layout: CodeLayout) -> int:
    """Upper bound on the memory of one reduced query, over all prefilters that the code allows."""
    layers = [slot.layer for slot in layout.slots]
    low_rank, other = 0, 0
    if _is_low_rank_worthwhile(layout):
        low_rank = 4 * DIRECTIONS * sum(layer.d1 + layer.d2 for layer in layers)
    if _is_dense_sign(layout) or _is_bfloat16_worthwhile(layout):
        other = 4 * sum(layer.dim for layer in layers)
    return max(low_rank, other)
