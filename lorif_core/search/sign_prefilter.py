"""Prefilter scores of dense signs: queries are quantised to four bits, and row bits are counted, not unpacked.

In each layer w ~ step n with n in [-7, 7]. A stored row has a bit b_j for each +-1, so with popcount and the bit
planes of n in two's complement (as RaBitQ, arXiv 2405.12497, does for vectors)

    < n, row >  =  2 sum_{b_j = 1} n_j - sum_j n_j,      sum_{b_j = 1} n_j  =  sum_p +-2^p |b & plane_p|.

Popcount needs numba (the extra `fast`). Without it the same sums are an integer matrix product, which is slower
for any number of queries.

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
from lorif_core.gradients.shared_tensor import shared_tensor
from lorif_core.search.scoring import FoldedQueries

BITS = 4
_LARGEST = 2 ** (BITS - 1) - 1
_CLIP_RMS = 4.0  # clipping an outlier costs less than coarser steps for the rest; of 3 to 8 it ranks rows best
_TINY = 1e-30
_MAX_SUMS = 2**21  # integer sums of all layers and queries in memory at once
_MIN_ROWS = 64


@dataclass(frozen=True, slots=True)
class SignQueries:
    """Integers n (Q, D) int8 and steps (Q,) float32 of each layer, with w ~ step n.

    < w, step n > = |w|^2, so that the strongest rows, those along the query, are not underestimated.
    """

    levels: tuple[torch.Tensor, ...]
    steps: tuple[torch.Tensor, ...]

    relative_error: ClassVar[float] = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        """As numpy arrays, for the reason of `FoldedQueries`."""
        return _signs_of, tuple([tensor.numpy() for tensor in side] for side in (self.levels, self.steps))


def _signs_of(levels: Sequence[np.ndarray], steps: Sequence[np.ndarray]) -> SignQueries:
    return SignQueries(*(tuple(map(shared_tensor, side)) for side in (levels, steps)))


def to_signs(folded: FoldedQueries) -> SignQueries:
    """Quantise folded queries to integers in [-7, 7]."""
    levels, steps = [], []
    for weight_QD in folded.weights:
        rms = weight_QD.square().mean(dim=1, keepdim=True).sqrt()
        limit = torch.minimum(weight_QD.abs().amax(dim=1, keepdim=True), _CLIP_RMS * rms).clamp_min(_TINY)
        rounded = (weight_QD * (_LARGEST / limit)).round_().clamp_(-_LARGEST, _LARGEST)
        steps.append(weight_QD.square().sum(dim=1) / (weight_QD * rounded).sum(dim=1).clamp_min(_TINY))
        levels.append(rounded.to(torch.int8))
    return SignQueries(tuple(levels), tuple(steps))


@cache
def can_count_bits() -> bool:
    """Whether numba is installed."""
    return find_spec("numba") is not None


class SignScorer:
    """Prefilter scores of rows of dense signs.

    Args:
        layout: layout of the codes.
        queries: the quantised queries.
        count_bits: count bits if numba is installed.
    """

    def __init__(self, layout: CodeLayout, queries: SignQueries, *, count_bits: bool = True) -> None:
        self._layout, self._queries, self._counter = layout, queries, None
        if count_bits and can_count_bits():
            from lorif_core.search.popcount import BitCounter

            self._counter = BitCounter(queries.levels, [slot.packed.start for slot in layout.slots])

    @property
    def counts_bits(self) -> bool:
        """Whether this scorer counts bits; otherwise it multiplies matrices."""
        return self._counter is not None

    def scores(self, codes: torch.Tensor, scales_BS: torch.Tensor) -> torch.Tensor:
        """(Q, B) float32; codes (B, bytes) uint8 as they are stored."""
        queries = len(self._queries.steps[0])
        scores_QB = torch.zeros(queries, len(codes))
        size = max(_MIN_ROWS, _MAX_SUMS // (queries * len(self._queries.steps)))
        for start in range(0, len(codes), size):
            chunk = slice(start, start + size)
            for number, sums_QB in enumerate(self._sums(codes[chunk])):
                step_Q1, scale_B = self._queries.steps[number][:, None], scales_BS[chunk, number]
                scores_QB[:, chunk] += sums_QB * step_Q1 * scale_B
        return scores_QB

    def _sums(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """< n, row > of each layer, (Q, B)."""
        if self._counter is not None:
            return self._counter.sums(codes)
        pairs = zip(self._queries.levels, self._layout.slots, strict=True)
        return [_products(levels, codes, slot) for levels, slot in pairs]


def _products(levels_QD: torch.Tensor, codes: torch.Tensor, slot: LayerSlot) -> torch.Tensor:
    """< n, row > of one layer, (Q, B), by unpacking: int8 matrix products with sums in int32."""
    table, products = byte_levels("sign").to(torch.int8), []
    for packed in codes[:, slot.packed].split(decode_rows(slot.layer.dim)):
        rows = torch.nn.functional.embedding(packed.int(), table).flatten(1)[:, : slot.layer.dim]
        products.append(torch._int_mm(levels_QD, rows.T))
    return torch.cat(products, dim=1)
