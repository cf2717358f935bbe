"""The fitted curvature of a layer: which eigenpairs are kept, lambda by its rule, and H^-1 folded into a query.

Shapes: D = d1 d2 of a layer, r rank, c components kept, Q queries.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Damping = Literal["retained", "trace", "paper"] | float
Tail = Literal["truncated", "tail"]
_CARRIED = 2  # components kept, over those that are used


@dataclass(frozen=True, slots=True)
class CurvatureSpec:
    """Settings of a fit; `rank` is cut to what each layer and the data allow."""

    kind: Literal["woodbury", "exact", "none"] = "woodbury"
    rank: int = 256
    oversample: int = 10
    power_iterations: int = 3
    damping: Damping = "retained"
    tail: Tail = "truncated"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LayerCurvature:
    """What is known of C for one layer.

    Attributes:
        sigma2: (c,) leading eigenvalues of C, descending, float64.
        basis: (D, c) their eigenvectors, float32.
        trace: tr C, the total squared norm of the stored gradients.
        rows: number of rows summed.
        damping: lambda.
        outside: 1 / outside scales the part of a query outside the basis.
        rank: r, the leading components that H^-1 uses, None for all; the others are there for merges.
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

        That is the Woodbury identity without its difference of two large numbers, which would leave only
        rounding where sigma2 is far above lambda.
        """
        basis, sigma2 = self.basis[:, : self.rank], self.sigma2[: self.rank]
        inside = queries_QD @ basis
        folded = (inside / (sigma2 + self.damping).to(inside)) @ basis.T
        if basis.shape[1] == basis.shape[0]:
            return folded
        rest = queries_QD - inside @ basis.T
        rest = rest - (rest @ basis) @ basis.T  # twice is enough
        return folded + rest / self.outside

    @property
    def energy(self) -> float:
        """Share of the gradients' squared norm inside the basis that is used."""
        return float(self.sigma2[: self.rank].sum()) / self.trace if self.trace > 0 else 0.0

    @property
    def tail(self) -> float:
        """Mean eigenvalue of C outside all components that are kept."""
        dim, kept = self.basis.shape
        return max(self.trace - float(self.sigma2.sum()), 0.0) / (dim - kept) if kept < dim else 0.0


def identity_curvature(dim: int) -> LayerCurvature:
    """`none`: H = I, so that a score is the plain gradient dot product."""
    return LayerCurvature(torch.empty(0, dtype=torch.float64), torch.empty(dim, 0), 0.0, 0, 1.0, 1.0)


def subspace_size(dim: int, rows: int, spec: CurvatureSpec) -> int:
    """k, the number of basis vectors carried through the passes."""
    if spec.kind == "exact":
        return dim
    return min(dim, spec.rank + spec.oversample, max(rows, 1) + spec.oversample)


def settled(
    eigenvalues: torch.Tensor, basis: torch.Tensor, trace: float, rows: int, spec: CurvatureSpec
) -> LayerCurvature:
    """The leading ones of the eigenpairs that are known, with lambda and `outside` from their rules.

    Args:
        eigenvalues: (k,) float64, descending; there may be more of them than vectors.
        basis: (D, k') their vectors.
        trace: tr C.
        rows: number of rows summed.
        spec: settings.
    """
    dim = len(basis)
    kept = min(used_rank(dim, spec), rows, len(eigenvalues))
    damping = damping_value(spec, eigenvalues, kept, trace, dim, rows)
    stored = min(carried(dim, spec), rows, len(eigenvalues), basis.shape[1])
    used = min(kept, stored)
    outside = damping
    if spec.tail == "tail" and used < dim:
        outside += max(trace - float(eigenvalues[:used].sum()), 0.0) / (dim - used)
    return LayerCurvature(
        eigenvalues[:stored].clone(), basis[:, :stored].contiguous(), trace, rows, damping, outside, used
    )


def carried(dim: int, spec: CurvatureSpec) -> int:
    """The most components of a layer that are kept."""
    return min(_CARRIED * used_rank(dim, spec), dim)


def used_rank(dim: int, spec: CurvatureSpec) -> int:
    """r, the most components of a layer that H^-1 uses."""
    return dim if spec.kind == "exact" else min(spec.rank, dim)


def damping_value(
    spec: CurvatureSpec, eigenvalues: torch.Tensor, kept: int, trace: float, dim: int, rows: int
) -> float:
    """lambda of one layer (DESIGN section 2).

    `retained`: 0.5 mean of the kept eigenvalues; `paper`: 0.1 mean over rank + oversample of them; `trace`:
    0.5 tr C / D; or a number. A layer without any gradient gets 1, so that it folds to nothing rather than
    divides by zero.
    """
    if not isinstance(spec.damping, str):
        return spec.damping
    if spec.damping == "trace":
        value = 0.5 * trace / dim
    elif spec.damping == "paper":
        value = 0.1 * float(eigenvalues[: min(subspace_size(dim, rows, spec), rows)].mean())
    else:
        value = 0.5 * float(eigenvalues[:kept].mean())
    return value if value > 0 else 1.0
