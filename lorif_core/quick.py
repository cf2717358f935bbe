"""The quick look at stored rows: what queries are cut to, by kind of code, and approximate scores with it."""

from collections.abc import Callable

import torch

from lorif_core.coarse import BITS, CoarseQueries, CoarseScorer, coarsened
from lorif_core.factors import CodeLayout
from lorif_core.narrow import DIRECTIONS, NarrowQueries, is_faster, narrowed, quick_scores
from lorif_core.scoring import FoldedQueries

QuickQueries = NarrowQueries | CoarseQueries
QuickScores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def has_quick_look(layout: CodeLayout) -> bool:
    """Whether there are quick scores that take much less than exact ones."""
    if layout.code.kind == "dense":
        return layout.code.dtype == "sign"
    return is_faster(layout)


def quick_queries(folded: FoldedQueries, layout: CodeLayout) -> QuickQueries | None:
    """What is left of folded queries for a quick look; None where exact scores are as fast."""
    if not has_quick_look(layout):
        return None
    return coarsened(folded) if layout.code.kind == "dense" else narrowed(folded, layout)


def quick_scorer(layout: CodeLayout, queries: QuickQueries) -> QuickScores:
    """Of codes and scales, as `scoring.score_rows` takes them, (Q, B) float32 approximate scores."""
    if isinstance(queries, CoarseQueries):
        return CoarseScorer(layout, queries).scores
    return lambda codes, scales_BS: quick_scores(codes, scales_BS, layout, queries)


def quick_bytes(layout: CodeLayout) -> int:
    """Memory that the quick look takes of one query."""
    if not has_quick_look(layout):
        return 0
    layers = [slot.layer for slot in layout.slots]
    if layout.code.kind == "dense":
        return sum(layer.dim + BITS * layer.dim // 8 for layer in layers)  # whole numbers, and their planes
    return 4 * DIRECTIONS * sum(layer.d1 + layer.d2 for layer in layers)
