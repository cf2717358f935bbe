"""Curvature of more or fewer rows without a pass over the others: truncated SVDs are merged, and taken from.

Merging is a decomposition of V1 (S1^2 - t1) V1^T + V2 (S2^2 - t2) V2^T + (t1 + t2) I, C1 + C2 exactly as far as
both are known; what either has left out of its basis is spread evenly, t being its mean eigenvalue (probabilistic
PCA, Tipping and Bishop 1999). Both keep more components than H^-1 uses, so that those come out nearly whole.
Taking rows away is restricted to the span of V, where what stays is V^T (C - C_left) V = S^2 - V^T C_left V, never
negative but for rounding. Damping follows the rule of the fit.

Shapes: D = d1 d2 of a layer, c and k numbers of components.
"""

from collections.abc import Iterator

import torch

from lorif_core.curvature.woodbury import CurvatureSpec, LayerCurvature, carried, settled, subspace_size

_ROWS_AT_ONCE = 16384  # of the bases, which are as long as D
_NOISE = 1e-13  # of the largest eigenvalue: rounding of what the bases have in common


def merge(first: LayerCurvature, second: LayerCurvature, spec: CurvatureSpec) -> LayerCurvature:
    """Curvature of the rows of both."""
    eigenvalues, basis = _decomposed(first, second, spec)
    dim, rows = len(first.basis), first.rows + second.rows
    trace = first.trace + second.trace
    return settled(_with_tail(eigenvalues, trace, dim, rows, spec), basis, trace, rows, spec)


def standing_for(fitted: LayerCurvature, rows: int, spec: CurvatureSpec) -> LayerCurvature:
    """Curvature of more rows, of which the fitted ones are a sample."""
    factor = rows / max(fitted.rows, 1)
    eigenvalues, trace = fitted.sigma2 * factor, fitted.trace * factor
    return settled(_with_tail(eigenvalues, trace, len(fitted.basis), rows, spec), fitted.basis, trace, rows, spec)


def downdate(
    fitted: LayerCurvature, gram_rr: torch.Tensor, trace: float, rows: int, spec: CurvatureSpec
) -> LayerCurvature:
    """Curvature without some of its rows.

    Args:
        fitted: of all rows.
        gram_rr: V^T C_left V of the rows that leave, float64.
        trace: tr C_left.
        rows: how many leave; some must stay.
        spec: settings of the fit.
    """
    eigenvalues, rotation = torch.linalg.eigh(torch.diag(fitted.sigma2) - gram_rr)
    eigenvalues = eigenvalues.flip(0).clamp_min(0.0)
    basis = fitted.basis @ rotation.flip(1).float()
    left = max(fitted.trace - trace, float(eigenvalues.sum()))
    remaining = fitted.rows - rows
    return settled(_with_tail(eigenvalues, left, len(basis), remaining, spec), basis, left, remaining, spec)


def _decomposed(
    first: LayerCurvature, second: LayerCurvature, spec: CurvatureSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of C1 + C2: eigenvalues (k,) float64, descending; leading vectors (D, c) float32."""
    tails = first.tail + second.tail
    roots = torch.cat([part.sigma2 - part.tail for part in (first, second)]).clamp_min(0.0).sqrt()
    dim, width = len(first.basis), len(roots)
    if width >= dim:
        whole = torch.cat(list(_scaled(first, second, roots)))
        eigenvalues, vectors = torch.linalg.eigh(whole @ whole.T)
        return eigenvalues.flip(0).clamp_min(0.0) + tails, vectors.flip(1).float()
    gram_kk = torch.zeros(width, width, dtype=torch.float64)
    for part in _scaled(first, second, roots):
        gram_kk.addmm_(part.T, part)
    eigenvalues, vectors = torch.linalg.eigh(gram_kk)
    eigenvalues, vectors = eigenvalues.flip(0).clamp_min(0.0), vectors.flip(1)
    kept = int((eigenvalues > _NOISE * eigenvalues[0]).sum())
    if kept == 0:  # no row has a gradient here; any direction will do
        return first.sigma2, first.basis
    leading = min(kept, carried(dim, spec))
    turned = vectors[:, :leading] * eigenvalues[:leading].rsqrt()
    return eigenvalues[:kept] + tails, torch.cat(
        [(part @ turned).float() for part in _scaled(first, second, roots)]
    )


def _scaled(first: LayerCurvature, second: LayerCurvature, roots: torch.Tensor) -> Iterator[torch.Tensor]:
    """[V1, V2] times the roots in float64, some rows at a time."""
    for start in range(0, len(first.basis), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        yield torch.cat([first.basis[rows], second.basis[rows]], dim=1).double() * roots


def _with_tail(eigenvalues: torch.Tensor, trace: float, dim: int, rows: int, spec: CurvatureSpec) -> torch.Tensor:
    """At least as many eigenvalues as a fit looks at; for those not known, the mean of what the trace leaves."""
    wanted = min(dim if spec.kind == "exact" else subspace_size(dim, rows, spec), rows)
    missing = wanted - len(eigenvalues)
    if missing <= 0:
        return eigenvalues
    mean = max(trace - float(eigenvalues.sum()), 0.0) / (dim - len(eigenvalues))
    smallest = float(eigenvalues[-1]) if len(eigenvalues) else mean
    return torch.cat([eigenvalues, torch.full((missing,), min(mean, smallest), dtype=torch.float64)])
