"""Projections of the wide side of fused experts, which has the neurons of all experts (`model/experts.py`).

A row has the neurons of one expert only, so the other coordinates, which are zero, never exist. Every neuron of
every expert has a sign of its own. The size of the projected side does not depend on the number of experts.

Shapes: E experts, n neurons of one expert, d projected size, S rows, N tokens, K experts per token.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from lorif_core.gradients.projection import DenseSide, FoldedSide, Side
from lorif_core.model.expert_routing import Routing, grouped_product

_NUMBERS = 2**22  # bounds those in memory at once for each expert of a token


class ExpertSide(Protocol):
    """The wide side of a layer of fused experts."""

    def __call__(self, rows_Sn: torch.Tensor, experts_S: torch.Tensor) -> torch.Tensor:
        """(S, d) float32 (float64 stays float64) of rows whose experts ascend."""

    def by_token(self, rows_Sn: torch.Tensor, routing: Routing) -> torch.Tensor:
        """(N, d): the sum of the projected rows of each token."""

    def double(self) -> "ExpertSide":
        """The same projection for float64 inputs."""


def expert_side(side: Side, experts: int, size: int) -> ExpertSide:
    """A wide side of size d with the random numbers of `side`, whose features are the neurons of all experts."""
    if isinstance(side, DenseSide) and side.matrix is not None:
        return DenseExperts(side.matrix.view(experts, -1, size), side.scale)
    signs = side.signs if isinstance(side, FoldedSide) else None
    return FoldedExperts(None if signs is None else signs.view(experts, -1), size)


@dataclass(frozen=True, slots=True)
class FoldedExperts:
    """Adds neurons with random signs.

    With d <= n the neuron j of each expert is added to the bucket j mod d. With d = p n the experts e, e + p,
    e + 2 p and so on share n buckets. `signs` is (E, n), as in `FoldedSide`; None for d = E n, where nothing is
    added, without scales.
    """

    signs: torch.Tensor | None
    size: int

    def __call__(self, rows_Sn: torch.Tensor, experts_S: torch.Tensor) -> torch.Tensor:
        """See `ExpertSide`."""
        if self.signs is None:
            signed = rows_Sn if rows_Sn.dtype == torch.float64 else rows_Sn.float()
        else:
            signed = rows_Sn * self.signs[experts_S]
        rows, neurons = signed.shape
        if neurons < self.size:
            blocks = signed.new_zeros(rows, self.size // neurons, neurons)
            blocks[torch.arange(rows, device=signed.device), experts_S % blocks.shape[1]] = signed
            return blocks.flatten(1)
        if neurons == self.size:
            return signed
        folded = signed[:, : self.size].clone()
        for start in range(self.size, neurons, self.size):
            part = signed[:, start : start + self.size]
            folded[:, : part.shape[1]] += part
        return folded

    def by_token(self, rows_Sn: torch.Tensor, routing: Routing) -> torch.Tensor:
        """See `ExpertSide`. Some tokens at a time, because all rows with their signs may not fit into memory."""
        parts = []
        for chunk_TK in routing.rows_of_tokens().split(max(1, _NUMBERS // (self.size + rows_Sn.shape[1]))):
            rows = chunk_TK.flatten()
            parts.append(self(rows_Sn[rows], routing.experts[rows]).unflatten(0, chunk_TK.shape).sum(dim=1))
        return torch.cat(parts)

    def double(self) -> "FoldedExperts":
        """See `ExpertSide`."""
        return FoldedExperts(None if self.signs is None else self.signs.double(), self.size)


@dataclass(frozen=True, slots=True)
class DenseExperts:
    """Multiplies with a matrix of each expert, `matrix` (E, n, d), and with `scale` in float32."""

    matrix: torch.Tensor
    scale: float

    def __call__(self, rows_Sn: torch.Tensor, experts_S: torch.Tensor) -> torch.Tensor:
        """See `ExpertSide`."""
        projected = grouped_product(rows_Sn, self.matrix, experts_S)
        return (projected if projected.dtype == torch.float64 else projected.float()) * self.scale

    def by_token(self, rows_Sn: torch.Tensor, routing: Routing) -> torch.Tensor:
        """See `ExpertSide`."""
        return routing.sum_by_token(self(rows_Sn, routing.experts))

    def double(self) -> "DenseExperts":
        """See `ExpertSide`."""
        return DenseExperts(self.matrix.double(), self.scale)
