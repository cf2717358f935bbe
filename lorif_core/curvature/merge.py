"""Updates of a curvature for added or removed rows, without a pass over the other rows.

A merge decomposes V1 (S1^2 - t1) V1^T + V2 (S2^2 - t2) V2^T + (t1 + t2) I. It equals C1 + C2 up to the components
outside the stored bases, whose energy is spread evenly: t is their mean eigenvalue (probabilistic PCA, Tipping and
Bishop 1999). Both curvatures store more components than H^-1 uses, so that the used ones are nearly exact. A
removal is restricted to the span of V, where V^T (C - C_removed) V = S^2 - V^T C_removed V, which is negative only
by rounding. The damping follows the rule of the fit.

Shapes: D = d1 d2 of a layer, c and k numbers of components, r components of the stored basis.
"""

from collections.abc import Iterator

import torch

from lorif_core.curvature.woodbury import (
    CurvatureSpec,
    LayerCurvature,
    layer_curvature_from,
    stored_rank,
    subspace_size,
)

_BASIS_ROWS_AT_ONCE = 16384  # a basis has D rows
_NOISE = 1e-13  # relative to the largest eigenvalue: rounding errors of directions that both bases contain


def merge(first: LayerCurvature, second: LayerCurvature, spec: CurvatureSpec) -> LayerCurvature:
    """Curvature of the rows of both curvatures."""
    eigenvalues, basis = _decompose_sum(first, second, spec)
    dim, rows = len(first.basis), first.rows + second.rows
    trace = first.trace + second.trace
    return layer_curvature_from(
        _complete_eigenvalues(eigenvalues, trace, dim, rows, spec), basis, trace, rows, spec
    )


def extrapolate(fitted: LayerCurvature, rows: int, spec: CurvatureSpec) -> LayerCurvature:
    """Curvature of `rows` rows, of which the fitted rows are a sample."""
    factor = rows / max(fitted.rows, 1)
    eigenvalues, trace = fitted.sigma2 * factor, fitted.trace * factor
    return layer_curvature_from(
        _complete_eigenvalues(eigenvalues, trace, len(fitted.basis), rows, spec), fitted.basis, trace, rows, spec
    )


def downdate(
    fitted: LayerCurvature, gram_rr: torch.Tensor, trace: float, rows: int, spec: CurvatureSpec
) -> LayerCurvature:
    """Curvature without some of its rows.

    Args:
        fitted: curvature of all rows.
        gram_rr: V^T C_removed V of the removed rows, float64.
        trace: tr C_removed.
        rows: number of removed rows, smaller than `fitted.rows`.
        spec: settings of the fit.
    """
    eigenvalues, rotation = torch.linalg.eigh(torch.diag(fitted.sigma2) - gram_rr)
    eigenvalues = eigenvalues.flip(0).clamp_min(0.0)
    basis = fitted.basis @ rotation.flip(1).float()
    remaining_trace = max(fitted.trace - trace, float(eigenvalues.sum()))
    remaining_rows = fitted.rows - rows
    return layer_curvature_from(
        _complete_eigenvalues(eigenvalues, remaining_trace, len(basis), remaining_rows, spec),
        basis,
        remaining_trace,
        remaining_rows,
        spec,
    )


def _decompose_sum(
    first: LayerCurvature, second: LayerCurvature, spec: CurvatureSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (k,) of C1 + C2, float64, descending, and leading eigenvectors (D, c), float32."""
    tails = first.tail + second.tail
    roots = torch.cat([part.sigma2 - part.tail for part in (first, second)]).clamp_min(0.0).sqrt()
    dim, width = len(first.basis), len(roots)
    if width >= dim:
        scaled = torch.cat(list(_scaled_bases(first, second, roots)))
        eigenvalues, vectors = torch.linalg.eigh(scaled @ scaled.T)
        return eigenvalues.flip(0).clamp_min(0.0) + tails, vectors.flip(1).float()
    gram_kk = torch.zeros(width, width, dtype=torch.float64)
    for part in _scaled_bases(first, second, roots):
        gram_kk.addmm_(part.T, part)
    eigenvalues, vectors = torch.linalg.eigh(gram_kk)
    eigenvalues, vectors = eigenvalues.flip(0).clamp_min(0.0), vectors.flip(1)
    significant = int((eigenvalues > _NOISE * eigenvalues[0]).sum())
    if significant == 0:  # no row has a gradient in this layer, so any basis is right
        return first.sigma2, first.basis
    leading = min(significant, stored_rank(dim, spec))
    rotation = vectors[:, :leading] * eigenvalues[:leading].rsqrt()
    basis = torch.cat([(part @ rotation).float() for part in _scaled_bases(first, second, roots)])
    return eigenvalues[:significant] + tails, basis


def _scaled_bases(first: LayerCurvature, second: LayerCurvature, roots: torch.Tensor) -> Iterator[torch.Tensor]:
    """Blocks of rows of [V1, V2] times the roots, float64."""
    for start in range(0, len(first.basis), _BASIS_ROWS_AT_ONCE):
        rows = slice(start, start + _BASIS_ROWS_AT_ONCE)
        yield torch.cat([first.basis[rows], second.basis[rows]], dim=1).double() * roots


def _complete_eigenvalues(
    eigenvalues: torch.Tensor, trace: float, dim: int, rows: int, spec: CurvatureSpec
) -> torch.Tensor:
    """The eigenvalues, extended to the number that a fit computes by the mean of the remaining trace."""
    required = min(dim if spec.kind == "exact" else subspace_size(dim, rows, spec), rows)
    missing = required - len(eigenvalues)
    if missing <= 0:
        return eigenvalues
    mean = max(trace - float(eigenvalues.sum()), 0.0) / (dim - len(eigenvalues))
    smallest = float(eigenvalues[-1]) if len(eigenvalues) else mean
    return torch.cat([eigenvalues, torch.full((missing,), min(mean, smallest), dtype=torch.float64)])
