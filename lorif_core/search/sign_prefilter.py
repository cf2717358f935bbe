"""Quick scores of dense signs: a query is cut to whole numbers of four bits, and bits are counted, not unpacked.

Per layer w ~ step n with n in [-7, 7]. A stored row is a bit b_j for each +-1, so with popcount and the bit planes
of n in two's complement (as RaBitQ, arXiv 2405.12497, does for vectors)

    < n, row >  =  2 sum_{b_j = 1} n_j - sum_j n_j,      sum_{b_j = 1} n_j  =  sum_p +-2^p |b & plane_p|.

Popcount needs the extra `fast` (numba). Without it the same sums are a product of matrices of whole numbers, which
is slower for any number of queries.

Shapes: Q queries, B rows, D = d1 d2, S scales of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch

from lorif_core.gradients.codes import CodeLayout, LayerSlot, decode_rows
from lorif_core.gradients.quantisation import byte_levels
from lorif_core.search.scoring import FoldedQueries, shared_tensor

BITS = 4
_LARGEST = 2 ** (BITS - 1) - 1
_CLIP_RMS = 4.0  # beyond it an outlier costs less than coarser steps for all others; the best of 3 to 8 for ranks
_TINY = 1e-30
_SUMS = 2**21  # whole numbers of all layers and queries at once
_LEAST_ROWS = 64


@dataclass(frozen=True, slots=True)
class CoarseQueries:
    """Per layer whole numbers (Q, D) int8 and steps (Q,) float32.

    < w, step n > = |w|^2, so that rows along the query, the strongest, do not score too little.
    """

    levels: tuple[torch.Tensor, ...]
    steps: tuple[torch.Tensor, ...]

    relative_error: ClassVar[float] = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        """As numpy arrays, as `FoldedQueries`."""
        return _coarse_of, ([one.numpy() for one in self.levels], [one.numpy() for one in self.steps])


def _coarse_of(levels: Sequence[np.ndarray], steps: Sequence[np.ndarray]) -> CoarseQueries:
    return CoarseQueries(*(tuple(map(shared_tensor, side)) for side in (levels, steps)))


def coarsened(folded: FoldedQueries) -> CoarseQueries:
    """Folded queries in whole numbers."""
    levels, steps = [], []
    for weight_QD in folded.weights:
        rms = weight_QD.square().mean(dim=1, keepdim=True).sqrt()
        limit = torch.minimum(weight_QD.abs().amax(dim=1, keepdim=True), _CLIP_RMS * rms).clamp_min(_TINY)
        whole = (weight_QD * (_LARGEST / limit)).round_().clamp_(-_LARGEST, _LARGEST)
        steps.append(weight_QD.square().sum(dim=1) / (weight_QD * whole).sum(dim=1).clamp_min(_TINY))
        levels.append(whole.to(torch.int8))
    return CoarseQueries(tuple(levels), tuple(steps))


@cache
def can_count_bits() -> bool:
    """Whether numba is there."""
    return find_spec("numba") is not None


class CoarseScorer:
    """Quick scores of rows of dense signs.

    Args:
        layout: of the codes.
        coarse: the queries.
        count: count bits, if numba is there.
    """

    def __init__(self, layout: CodeLayout, coarse: CoarseQueries, *, count: bool = True) -> None:
        self._layout, self._coarse, self._count = layout, coarse, None
        if count and can_count_bits():
            from lorif_core.search.popcount import BitCounter

            self._count = BitCounter(coarse.levels, [slot.packed.start for slot in layout.slots])

    @property
    def counts_bits(self) -> bool:
        """Whether it does, for want of which it multiplies."""
        return self._count is not None

    def scores(self, codes: torch.Tensor, scales_BS: torch.Tensor) -> torch.Tensor:
        """(Q, B) float32; codes (B, bytes) uint8 as they are stored."""
        queries = len(self._coarse.steps[0])
        scores_QB = torch.zeros(queries, len(codes))
        size = max(_LEAST_ROWS, _SUMS // (queries * len(self._coarse.steps)))
        for start in range(0, len(codes), size):
            some = slice(start, start + size)
            for number, sums_QB in enumerate(self._sums(codes[some])):
                step_Q1, scale_B = self._coarse.steps[number][:, None], scales_BS[some, number]
                scores_QB[:, some] += sums_QB * step_Q1 * scale_B
        return scores_QB

    def _sums(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """Per layer < n, row >, (Q, B)."""
        if self._count is not None:
            return self._count.sums(codes)
        pairs = zip(self._coarse.levels, self._layout.slots, strict=True)
        return [_products(levels, codes, slot) for levels, slot in pairs]


def _products(levels_QD: torch.Tensor, codes: torch.Tensor, slot: LayerSlot) -> torch.Tensor:
    """The same by unpacking: one product of int8 matrices with sums in int32."""
    table, found = byte_levels("sign").to(torch.int8), []
    for packed in codes[:, slot.packed].split(decode_rows(slot.layer.dim)):
        rows = torch.nn.functional.embedding(packed.int(), table).flatten(1)[:, : slot.layer.dim]
        found.append(torch._int_mm(levels_QD, rows.T))
    return torch.cat(found, dim=1)
