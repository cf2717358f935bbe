"""Scores of stored rows against folded queries: s = sum_l < H_l^-1 Q_l, decode(code_l) >.

Shapes: Q queries, B rows, W levels and S scales of a row, c rank, D = d1 d2 of a layer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from lorif_core.gradients.codes import CodeLayout, decode_rows
from lorif_core.gradients.shared_tensor import shared_tensor
from lorif_core.spec import LayerSpec

_DECODE_FROM_QUERIES = 32  # from here on decoding G once is cheaper than a contraction per query (SPEED.md B)


@dataclass(frozen=True, slots=True)
class FoldedQueries:
    """W_l = H_l^-1 Q_l of each layer, (Q, d1 d2) float32."""

    weights: tuple[torch.Tensor, ...]

    @property
    def count(self) -> int:
        """The number of queries, Q."""
        return len(self.weights[0])

    def single(self, query: int) -> "FoldedQueries":
        """A single query, not copied."""
        return self.subset(query, query + 1)

    def subset(self, start: int, stop: int) -> "FoldedQueries":
        """Queries [start, stop), not copied."""
        return FoldedQueries(tuple(weight_QD[start:stop] for weight_QD in self.weights))

    def __reduce__(self) -> tuple[Any, ...]:
        """As numpy arrays: Ray's object store hands out arrays without a copy, but copies tensors."""
        return _folded_of, ([weight_QD.numpy(force=True) for weight_QD in self.weights],)


def _folded_of(arrays: Sequence[np.ndarray]) -> FoldedQueries:
    return FoldedQueries(tuple(map(shared_tensor, arrays)))


def queries_at_once(layers: Iterable[LayerSpec], memory_gb: float) -> int:
    """The number of queries whose dense float32 gradients fit into the memory together; at least one."""
    return max(1, int(memory_gb * 2**30 / (4 * sum(layer.dim for layer in layers))))


class FoldOperator(Protocol):
    """The curvature or metric of one layer."""

    def fold(self, queries_QD: torch.Tensor) -> torch.Tensor:
        """Fold query gradients, float32 (Q, D)."""


def fold_queries(gradients: Sequence[torch.Tensor], curvature: Iterable[FoldOperator]) -> FoldedQueries:
    """Fold the inverse curvature into dense query gradients, (Q, d1 d2) of each layer."""
    return FoldedQueries(tuple(layer.fold(gradient) for gradient, layer in zip(gradients, curvature, strict=True)))


def relative_to_own(folded: FoldedQueries, gradients: Sequence[torch.Tensor], power: float = 1.0) -> FoldedQueries:
    """Folded queries divided by s(q, q)^power, with s(q, q) = sum_l < W_l, Q_l > the query's influence on itself.

    With power 1 a score is a fraction of s(q, q). It has no unit: the scale of gradients, the damping and the
    number of rows behind H change both in the same way. So scores of several checkpoints are comparable.
    """
    return scaled(folded, own_scale(own_influence(folded, gradients), power))


def own_influence(folded: FoldedQueries, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """s(q, q) = sum_l < W_l, Q_l > of each query, (Q,) float64."""
    own_Q = torch.zeros(folded.count, dtype=torch.float64)
    for weight_QD, gradient_QD in zip(folded.weights, gradients, strict=True):
        own_Q += (weight_QD.double() * gradient_QD).sum(dim=1)
    return own_Q


def own_scale(own_Q: torch.Tensor, power: float) -> torch.Tensor:
    """s(q, q)^-power, or 0 if a query has no influence on itself."""
    return torch.where(own_Q > 0, own_Q.clamp_min(torch.finfo(own_Q.dtype).tiny) ** -power, 0.0)


def scaled(folded: FoldedQueries, scale_Q: torch.Tensor) -> FoldedQueries:
    """Folded queries, each multiplied by its factor."""
    return FoldedQueries(tuple((weight_QD * scale_Q[:, None]).float() for weight_QD in folded.weights))


def score_rows(
    codes: torch.Tensor, scales_BS: torch.Tensor, layout: CodeLayout, folded: FoldedQueries
) -> torch.Tensor:
    """(Q, B) float32 scores of stored rows: codes (B, W), or (B, bytes) if packed, and float32 scales."""
    scores_QB = torch.zeros(folded.count, len(codes), device=codes.device)
    block_rows = decode_rows(max(slot.layer.dim for slot in layout.slots))
    for start in range(0, len(codes), block_rows):
        rows = slice(start, start + block_rows)
        for index, weight_QD in enumerate(folded.weights):
            scores_QB[:, rows] += _score_layer(codes[rows], scales_BS[rows], layout, index, weight_QD)
    return scores_QB


def _score_layer(
    codes: torch.Tensor, scales_BS: torch.Tensor, layout: CodeLayout, index: int, weight_QD: torch.Tensor
) -> torch.Tensor:
    """(Q, B) of one layer: u^T W v per query for few queries, else rows are decoded and multiplied."""
    queries, slot = len(weight_QD), layout.slots[index]
    scales = scales_BS[:, slot.scales]
    if layout.code.kind == "dense":
        return (weight_QD @ layout.levels(codes, slot).T) * scales.T
    if queries * slot.terms >= _DECODE_FROM_QUERIES:
        return weight_QD @ layout.decode(codes, scales_BS, index).T
    layer = slot.layer
    u, v = layout.factors(codes, slot)
    weight = weight_QD.view(queries, layer.d1, layer.d2).permute(1, 0, 2).reshape(layer.d1, queries * layer.d2)
    left = u.transpose(1, 2).reshape(-1, layer.d1) @ weight  # (B c, Q d2)
    right = v.transpose(1, 2).reshape(-1, 1, layer.d2)
    per_term = left.view(-1, queries, layer.d2).mul_(right).sum(dim=2).view(len(codes), -1, queries)
    return (per_term * scales[:, :, None]).sum(dim=1).T
