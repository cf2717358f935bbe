"""Quick scores of stored factors: a query is cut to its leading directions, and packed levels are never unpacked.

Of a folded query W (d1 x d2) of a layer r directions are kept, W ~ X Y^T with X (d1 x r) orthonormal, so that
u^T W v ~ (X^T u) . (Y^T v) costs r (d1 + d2) instead of d1 d2. Of levels that are packed in bytes, X^T u is a sum
of one row a byte out of a table with what each of the 256 bytes adds.

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
from lorif_core.gradients.quantisation import PER_BYTE, byte_levels
from lorif_core.search.scoring import FoldedQueries, shared_tensor

DIRECTIONS = 32  # of 128 tokens they have .92 of the energy, and the LDS of all (benchmarks.quality.quick)
_ROUNDS = 3
_WORTH = 2.0  # times fewer multiplications at least


@dataclass(frozen=True, slots=True)
class NarrowQueries:
    """Per layer X (Q, d1, r) and Y (Q, d2, r) with W ~ X Y^T."""

    left: tuple[torch.Tensor, ...]
    right: tuple[torch.Tensor, ...]

    relative_error: ClassVar[float] = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        """As numpy arrays, as `FoldedQueries`."""
        return _narrow_of, tuple([one.numpy(force=True) for one in side] for side in (self.left, self.right))


def _narrow_of(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> NarrowQueries:
    return NarrowQueries(*(tuple(shared_tensor(one) for one in side) for side in (left, right)))


def is_faster(layout: CodeLayout) -> bool:
    """Whether quick scores of factors take much less than exact ones."""
    per_byte = PER_BYTE.get(layout.code.dtype, 1)
    layers = [slot.layer for slot in layout.slots]
    narrow = sum(DIRECTIONS * (layer.d1 + layer.d2) for layer in layers) / per_byte
    return sum(layer.dim for layer in layers) > _WORTH * narrow


def narrowed(folded: FoldedQueries, layout: CodeLayout) -> NarrowQueries:
    """Folded queries cut to their leading directions by subspace iteration; exact where a side is no wider."""
    left, right = [], []
    for weight_QD, slot in zip(folded.weights, layout.slots, strict=True):
        W = weight_QD.view(-1, slot.layer.d1, slot.layer.d2)
        X = _leading(W)
        left.append(X)
        right.append(W.mT @ X)
    return NarrowQueries(tuple(left), tuple(right))


def _leading(W_Qmn: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis (Q, m, r) of the leading left singular vectors."""
    size = W_Qmn.shape[1]
    if size <= DIRECTIONS:
        return torch.eye(size).to(W_Qmn).expand(len(W_Qmn), -1, -1)
    basis = _start(size).to(W_Qmn).expand(len(W_Qmn), -1, -1)
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(W_Qmn @ (W_Qmn.mT @ basis)).Q
    return basis


@cache
def _start(size: int) -> torch.Tensor:
    """Fixed, so that all workers cut a query alike."""
    normal = counter_generator(0, f"narrow/{size}x{DIRECTIONS}").standard_normal((size, DIRECTIONS))
    return torch.from_numpy(normal)


def quick_scores(
    codes: torch.Tensor, scales_BS: torch.Tensor, layout: CodeLayout, narrow: NarrowQueries
) -> torch.Tensor:
    """(Q, B) float32 approximate scores of stored rows; codes and scales as `scoring.score_rows` takes them."""
    scores_QB = torch.zeros(len(narrow.left[0]), len(codes), device=codes.device)
    for index, slot in enumerate(layout.slots):
        sides = _Sides(codes, layout, index)
        scales_Bc = scales_BS[:, slot.scales]
        for query, (X, Y) in enumerate(zip(narrow.left[index], narrow.right[index], strict=True)):
            per_term = (sides.left(X) * sides.right(Y)).sum(dim=1).view(len(codes), -1)
            scores_QB[query] += (per_term * scales_Bc).sum(dim=1)
    return scores_QB


class _Sides:
    """The columns of U and V of one layer, as look-ups where they are whole bytes, else as floats."""

    def __init__(self, codes: torch.Tensor, layout: CodeLayout, index: int) -> None:
        slot, dtype = layout.slots[index], layout.code.dtype
        per_byte = PER_BYTE.get(dtype, 0)
        self._levels = None
        if per_byte and slot.layer.d1 % per_byte == 0 and slot.layer.d2 % per_byte == 0:
            self._levels = byte_levels(dtype).to(codes.device)
            packed, middle = codes[:, slot.packed], (slot.middle - slot.start) // per_byte
            sides = packed[:, :middle], packed[:, middle:]
            self._u, self._v = (self._places(side, layout.terms) for side in sides)
        else:
            u, v = layout.factors(codes, slot)
            self._u, self._v = (side.mT.reshape(-1, side.shape[1]) for side in (u, v))

    @staticmethod
    def _places(packed: torch.Tensor, terms: int) -> torch.Tensor:
        """(B c, bytes of a column): rows of a table that has 256 for each byte."""
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
