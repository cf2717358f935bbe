"""Prefilter scores of stored factors: queries are truncated to low rank, and packed levels are never unpacked.

A folded query W (d1 x d2) of a layer is truncated to r directions, W ~ X Y^T with X (d1 x r) orthonormal, so that
u^T W v ~ (X^T u) . (Y^T v) costs r (d1 + d2) instead of d1 d2. If levels are packed in bytes, X^T u is a sum of
one table row per byte; the table has the contribution of each of the 256 values of a byte.

Shapes: Q queries, B rows, c terms, d the size of a side, S scales of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch

from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.projection import counter_generator
from lorif_core.gradients.quantisation import LEVELS_PER_BYTE, byte_levels
from lorif_core.gradients.shared_tensor import shared_tensor
from lorif_core.search.scoring import FoldedQueries

DIRECTIONS = 32  # for 128 tokens: .92 of the energy, the LDS of all directions (benchmarks.quality.prefilter)
_ITERATIONS = 3
_MIN_SPEED_UP = 2.0  # least ratio of multiplications, exact to prefilter


@dataclass(frozen=True, slots=True)
class LowRankQueries:
    """X (Q, d1, r) and Y (Q, d2, r) of each layer, with W ~ X Y^T."""

    left: tuple[torch.Tensor, ...]
    right: tuple[torch.Tensor, ...]

    relative_error: ClassVar[float] = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        """As numpy arrays, for the reason of `FoldedQueries`."""
        return _low_rank_of, tuple([X.numpy(force=True) for X in side] for side in (self.left, self.right))


def _low_rank_of(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> LowRankQueries:
    return LowRankQueries(*(tuple(map(shared_tensor, side)) for side in (left, right)))


def is_low_rank_faster(layout: CodeLayout) -> bool:
    """Whether prefilter scores of factors need far fewer multiplications than exact scores."""
    per_byte = LEVELS_PER_BYTE.get(layout.code.dtype, 1)
    layers = [slot.layer for slot in layout.slots]
    multiplications = sum(DIRECTIONS * (layer.d1 + layer.d2) for layer in layers) / per_byte
    return sum(layer.dim for layer in layers) > _MIN_SPEED_UP * multiplications


def to_low_rank(folded: FoldedQueries, layout: CodeLayout) -> LowRankQueries:
    """Truncate folded queries by subspace iteration; exact if a side has at most `DIRECTIONS`."""
    left, right = [], []
    for weight_QD, slot in zip(folded.weights, layout.slots, strict=True):
        W = weight_QD.view(-1, slot.layer.d1, slot.layer.d2)
        X = _leading_directions(W)
        left.append(X)
        right.append(W.mT @ X)
    return LowRankQueries(tuple(left), tuple(right))


def _leading_directions(W_Qmn: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis (Q, m, r) of the leading left singular vectors."""
    size = W_Qmn.shape[1]
    if size <= DIRECTIONS:
        return torch.eye(size).to(W_Qmn).expand(len(W_Qmn), -1, -1)
    basis = _initial_basis(size).to(W_Qmn).expand(len(W_Qmn), -1, -1)
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(W_Qmn @ (W_Qmn.mT @ basis)).Q
    return basis


@cache
def _initial_basis(size: int) -> torch.Tensor:
    """A fixed random basis, so that all workers truncate a query in the same way."""
    normal = counter_generator(0, f"narrow/{size}x{DIRECTIONS}").standard_normal((size, DIRECTIONS))
    return torch.from_numpy(normal)


def prefilter_scores(
    codes: torch.Tensor, scales_BS: torch.Tensor, layout: CodeLayout, queries: LowRankQueries
) -> torch.Tensor:
    """(Q, B) float32 approximate scores of stored rows; codes and scales as in `scoring.score_rows`."""
    scores_QB = torch.zeros(len(queries.left[0]), len(codes), device=codes.device)
    for index, slot in enumerate(layout.slots):
        sides = _Sides(codes, layout, index)
        scales_Bc = scales_BS[:, slot.scales]
        for query, (X, Y) in enumerate(zip(queries.left[index], queries.right[index], strict=True)):
            per_term = (sides.left(X) * sides.right(Y)).sum(dim=1).view(len(codes), -1)
            scores_QB[query] += (per_term * scales_Bc).sum(dim=1)
    return scores_QB


class _Sides:
    """The columns of U and V of one layer: table indices if they fill whole bytes, else floats."""

    def __init__(self, codes: torch.Tensor, layout: CodeLayout, index: int) -> None:
        slot, dtype = layout.slots[index], layout.code.dtype
        per_byte = LEVELS_PER_BYTE.get(dtype, 0)
        self._levels = None
        if per_byte and slot.layer.d1 % per_byte == 0 and slot.layer.d2 % per_byte == 0:
            self._levels = byte_levels(dtype).to(codes.device)
            packed, middle = codes[:, slot.packed], (slot.middle - slot.start) // per_byte
            sides = packed[:, :middle], packed[:, middle:]
            self._u, self._v = (self._table_rows(side, slot.terms) for side in sides)
        else:
            u, v = layout.factors(codes, slot)
            self._u, self._v = (side.mT.reshape(-1, side.shape[1]) for side in (u, v))

    @staticmethod
    def _table_rows(packed: torch.Tensor, terms: int) -> torch.Tensor:
        """(B c, bytes of a column): indices into a table with 256 rows for each byte of a column."""
        columns = packed.reshape(len(packed) * terms, -1)
        return columns.int() + 256 * torch.arange(columns.shape[1], dtype=torch.int32, device=packed.device)

    def left(self, X_dr: torch.Tensor) -> torch.Tensor:
        """U^T X, (B c, r)."""
        return self._product(self._u, X_dr)

    def right(self, Y_dr: torch.Tensor) -> torch.Tensor:
        """V^T Y, (B c, r)."""
        return self._product(self._v, Y_dr)

    def _product(self, side: torch.Tensor, matrix_dr: torch.Tensor) -> torch.Tensor:
        if self._levels is None:
            return side @ matrix_dr
        table = self._levels @ matrix_dr.view(side.shape[1], -1, matrix_dr.shape[1])
        return torch.nn.functional.embedding_bag(side, table.flatten(0, 1), mode="sum")
