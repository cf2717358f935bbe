"""The fitted curvature of a layer: stored eigenpairs, damping lambda, and the folding of H^-1 into queries.

Shapes: D = d1 d2 of a layer, r rank, c stored components, Q queries.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Damping = Literal["retained", "trace", "paper"] | float
Tail = Literal["truncated", "tail"]
_STORED_PER_USED = 2  # stored components per component that H^-1 uses


@dataclass(frozen=True, slots=True)
class CurvatureSpec:
    """Settings of a fit; `rank` is reduced to what each layer and the data allow."""

    kind: Literal["woodbury", "exact", "none"] = "woodbury"
    rank: int = 256
    oversample: int = 10
    power_iterations: int = 3
    damping: Damping = "retained"
    tail: Tail = "truncated"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LayerCurvature:
    """Truncated eigendecomposition of C and damping of one layer.

    Attributes:
        sigma2: (c,) leading eigenvalues of C, descending, float64.
        basis: (D, c) their eigenvectors, float32.
        trace: tr C, the total squared norm of the stored gradients.
        rows: number of summed rows.
        damping: lambda.
        outside: divisor of the component of a query outside the basis.
        rank: r, the number of leading components that H^-1 uses, None for all; merges use the others too.
    """

    sigma2: torch.Tensor
    basis: torch.Tensor
    trace: float
    rows: int
    damping: float
    outside: float
    rank: int | None = None

    def fold(self, queries_QD: torch.Tensor) -> torch.Tensor:
        """H^-1 q for each row, float32 (Q, D): V (sigma2 + lambda)^-1 V^T q + (q - V V^T q) / outside.

        This form of the Woodbury identity avoids a difference of two large numbers, of which only rounding errors
        would remain where sigma2 is far above lambda.
        """
        basis, sigma2 = self.basis[:, : self.rank], self.sigma2[: self.rank]
        inside = queries_QD @ basis
        folded = (inside / (sigma2 + self.damping).to(inside)) @ basis.T
        if basis.shape[1] == basis.shape[0]:
            return folded
        residual = queries_QD - inside @ basis.T
        residual = residual - (residual @ basis) @ basis.T  # two projections suffice for orthogonality
        return folded + residual / self.outside

    @property
    def energy(self) -> float:
        """Share of the gradients' squared norm inside the used basis."""
        return float(self.sigma2[: self.rank].sum()) / self.trace if self.trace > 0 else 0.0

    @property
    def tail(self) -> float:
        """Mean eigenvalue of C outside all stored components."""
        dim, stored = self.basis.shape
        return max(self.trace - float(self.sigma2.sum()), 0.0) / (dim - stored) if stored < dim else 0.0


def identity_curvature(dim: int) -> LayerCurvature:
    """The curvature `none`: H = I, so that a score is the plain gradient dot product."""
    return LayerCurvature(torch.empty(0, dtype=torch.float64), torch.empty(dim, 0), 0.0, 0, 1.0, 1.0)


def subspace_size(dim: int, rows: int, spec: CurvatureSpec) -> int:
    """k, the number of basis vectors of each pass before the last."""
    if spec.kind == "exact":
        return dim
    return min(dim, spec.rank + spec.oversample, max(rows, 1) + spec.oversample)


def layer_curvature_from(
    eigenvalues: torch.Tensor, basis: torch.Tensor, trace: float, rows: int, spec: CurvatureSpec
) -> LayerCurvature:
    """Curvature from the leading eigenpairs, with lambda and `outside` from the rules of the spec.

    Args:
        eigenvalues: (k,) float64, descending; there may be more eigenvalues than eigenvectors.
        basis: (D, k') eigenvectors of the leading eigenvalues.
        trace: tr C.
        rows: number of summed rows.
        spec: settings of the fit.
    """
    dim = len(basis)
    rank = min(used_rank(dim, spec), rows, len(eigenvalues))
    damping = damping_value(spec, eigenvalues, rank, trace, dim, rows)
    stored = min(stored_rank(dim, spec), rows, len(eigenvalues), basis.shape[1])
    used = min(rank, stored)
    outside = damping
    if spec.tail == "tail" and used < dim:
        outside += max(trace - float(eigenvalues[:used].sum()), 0.0) / (dim - used)
    return LayerCurvature(
        eigenvalues[:stored].clone(), basis[:, :stored].contiguous(), trace, rows, damping, outside, used
    )


def stored_rank(dim: int, spec: CurvatureSpec) -> int:
    """The largest number of components of a layer that are stored."""
    return min(_STORED_PER_USED * used_rank(dim, spec), dim)


def used_rank(dim: int, spec: CurvatureSpec) -> int:
    """r, the largest number of components of a layer that H^-1 uses."""
    return dim if spec.kind == "exact" else min(spec.rank, dim)


def damping_value(
    spec: CurvatureSpec, eigenvalues: torch.Tensor, rank: int, trace: float, dim: int, rows: int
) -> float:
    """lambda of one layer (DESIGN section 2).

    `retained` is 0.5 times the mean of the `rank` leading eigenvalues, `paper` 0.1 times the mean of the
    rank + oversample leading ones, `trace` 0.5 tr C / D; a number is taken as it is. A layer without any gradient
    gets 1, so that folding does not divide by zero.
    """
    if not isinstance(spec.damping, str):
        return spec.damping
    if spec.damping == "trace":
        value = 0.5 * trace / dim
    elif spec.damping == "paper":
        value = 0.1 * float(eigenvalues[: min(subspace_size(dim, rows, spec), rows)].mean())
    else:
        value = 0.5 * float(eigenvalues[:rank].mean())
    return value if value > 0 else 1.0
