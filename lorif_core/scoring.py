"""Scores of stored rows against folded queries: s = sum_l < H_l^-1 Q_l, decode(code_l) >.

Shapes: Q queries, B rows, W code width, L layers, c rank, D = d1 d2.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from lorif_core.curvature import LayerCurvature
from lorif_core.factors import CodeLayout, decode_rows

# From here on decoding G once is cheaper than one contraction a query (SPEED.md, section B).
_DECODE_FROM_QUERIES = 32


@dataclass(frozen=True, slots=True)
class FoldedQueries:
    """W_l = H_l^-1 Q_l: per layer (Q, d1 d2) float32."""

    weights: tuple[torch.Tensor, ...]

    @property
    def count(self) -> int:
        """Q."""
        return len(self.weights[0])


def fold_queries(gradients: Sequence[torch.Tensor], curvature: Iterable[LayerCurvature]) -> FoldedQueries:
    """Fold the inverse curvature into dense query gradients, per layer (Q, d1 d2)."""
    return FoldedQueries(tuple(layer.fold(gradient) for gradient, layer in zip(gradients, curvature, strict=True)))


def score_rows(
    codes_BW: torch.Tensor, scales_BL: torch.Tensor, layout: CodeLayout, folded: FoldedQueries
) -> torch.Tensor:
    """(Q, B) float32 scores of rows given as float32 codes and scales."""
    scores_QB = torch.zeros(folded.count, len(codes_BW), device=codes_BW.device)
    block_rows = decode_rows(max(slot.layer.dim for slot in layout.slots))
    for start in range(0, len(codes_BW), block_rows):
        rows = slice(start, start + block_rows)
        for index, weight_QD in enumerate(folded.weights):
            scores_QB[:, rows] += _score_layer(codes_BW[rows], scales_BL[rows], layout, index, weight_QD)
    return scores_QB


def _score_layer(
    codes: torch.Tensor, scales: torch.Tensor, layout: CodeLayout, index: int, weight_QD: torch.Tensor
) -> torch.Tensor:
    """(Q, B) of one layer: u^T W v per query where queries are few, else decode and multiply."""
    queries = len(weight_QD)
    if layout.code.kind == "dense" or queries * layout.code.rank >= _DECODE_FROM_QUERIES:
        return weight_QD @ layout.decode(codes, scales, index).T
    layer = layout.slots[index].layer
    u, v = layout.factors(codes, layout.slots[index])
    weight = weight_QD.view(queries, layer.d1, layer.d2).permute(1, 0, 2).reshape(layer.d1, queries * layer.d2)
    left = u.transpose(1, 2).reshape(-1, layer.d1) @ weight  # (B c, Q d2)
    right = v.transpose(1, 2).reshape(-1, 1, layer.d2)
    per_factor = left.view(-1, queries, layer.d2).mul_(right).sum(dim=2)
    return (per_factor.view(len(codes), -1, queries).sum(dim=1) * scales[:, index, None]).T
