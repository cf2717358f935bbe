"""Fit of the curvature of the stored gradients by a truncated randomized SVD.

Per layer H = sum_i g_i g_i^T + lambda I over the stored g_i = vec(G_i). The leading eigenpairs of
C = sum_i g_i g_i^T are approximated by those of C in the block Krylov space [C X, C^2 X, ...] of a random X
(Musco and Musco 2015; the last block alone is the subspace iteration of Halko et al. 2011). The only access to the
data is a `scan` that returns a sum over rows; the sum may be computed anywhere. H^-1 follows from the Woodbury
identity (LoRIF section 3.3). Up to twice as many components as H^-1 uses are stored, so that merges lose little.

Shapes: D = d1 d2 of a layer, k = rank + oversample, m = min(power_iterations, 3) k.
"""

from collections.abc import Sequence

import torch

from lorif_core.curvature.scan import Scan, ScanRequest, ScanResult
from lorif_core.curvature.woodbury import (
    CurvatureSpec,
    LayerCurvature,
    identity_curvature,
    layer_curvature_from,
    stored_rank,
    subspace_size,
)
from lorif_core.errors import UserError
from lorif_core.gradients.projection import counter_generator

_MAX_BLOCKS = 3  # of the Krylov space; more would cost memory without a measurable gain


def fit_layers(
    layers: Sequence[int], dims: Sequence[int], rows: int, spec: CurvatureSpec, scan: Scan
) -> dict[int, LayerCurvature]:
    """Curvature of some layers from passes of `scan` over all rows.

    Args:
        layers: layer numbers to fit together, in one scan per pass.
        dims: D of every layer, indexed by layer number.
        rows: number of rows that `scan` sums over.
        spec: `woodbury` takes power_iterations products and one gram, `exact` one gram of the identity.
        scan: returns sums over the rows.
    """
    if spec.kind == "none":
        return {layer: identity_curvature(dims[layer]) for layer in layers}
    bases: dict[int, torch.Tensor | None] = {
        layer: _random_start(layer, dims[layer], rows, spec) for layer in layers
    }
    iterated = {layer: basis for layer, basis in bases.items() if basis is not None}
    if iterated:
        blocks: dict[int, list[torch.Tensor]] = {layer: [] for layer in iterated}
        for _ in range(spec.power_iterations):
            product = scan(ScanRequest("product", dict(iterated)))
            iterated = {layer: orthonormal(matrix) for layer, matrix in product.matrices.items()}
            for layer, block in iterated.items():
                blocks[layer] = [*blocks[layer], block][-_MAX_BLOCKS:]
        for layer in iterated:
            krylov = blocks.pop(layer)
            bases[layer] = krylov[0] if len(krylov) == 1 else orthonormal(torch.cat(krylov, dim=1))
    final = scan(ScanRequest("gram", bases))
    return {layer: _rayleigh_ritz(final, layer, bases[layer], dims[layer], spec) for layer in layers}


def orthonormal(matrix_Dk: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the columns, by a QR in float64 because columns differ by powers of sigma^2."""
    return torch.linalg.qr(matrix_Dk.double()).Q.float()


def layer_groups(dims: Sequence[int], rows: int, spec: CurvatureSpec, memory_gb: float) -> list[list[int]]:
    """Groups of layers that are fitted together: as many per group as fit into a worker's memory.

    Larger groups need fewer passes over the data.

    Raises:
        UserError: a single layer does not fit into the memory.
    """
    budget = memory_gb * 2**30
    groups: list[list[int]] = []
    used = budget
    for layer, dim in enumerate(dims):
        need = layer_bytes(dim, rows, spec)
        if need > budget:
            raise UserError(
                f"the {spec.kind} curvature of layer {layer} ({dim} gradient dimensions) needs "
                f"{need / 2**30:.1f} GiB in a worker, more than compute.memory_gb = {memory_gb:g}; raise "
                f"compute.memory_gb, lower curvature.rank or raise projection.factor"
            )
        if not groups or used + need > budget:
            groups.append([])
            used = 0.0
        groups[-1].append(layer)
        used += need
    return groups


def layer_bytes(dim: int, rows: int, spec: CurvatureSpec) -> int:
    """Bytes of a layer in a pass: its basis and its sums in float32, and its Gram matrix in float64."""
    if spec.kind == "none":
        return 0
    size = krylov_size(dim, rows, spec)
    basis = 0 if size == dim else 4 * dim * max(2 * subspace_size(dim, rows, spec), size)
    return basis + 8 * size * size


def krylov_size(dim: int, rows: int, spec: CurvatureSpec) -> int:
    """m, the number of basis vectors of the last pass; `dim` means the identity, without earlier passes."""
    return min(dim, min(spec.power_iterations, _MAX_BLOCKS) * subspace_size(dim, rows, spec))


def _random_start(layer: int, dim: int, rows: int, spec: CurvatureSpec) -> torch.Tensor | None:
    size = subspace_size(dim, rows, spec)
    if krylov_size(dim, rows, spec) == dim:
        return None
    normal = counter_generator(spec.seed, f"sketch/{layer}/{dim}x{size}").standard_normal((dim, size))
    return torch.from_numpy(normal).float()


def _rayleigh_ritz(
    final: ScanResult, layer: int, basis: torch.Tensor | None, dim: int, spec: CurvatureSpec
) -> LayerCurvature:
    """Curvature from the leading eigenpairs of C in the span of the basis."""
    eigenvalues, rotation = torch.linalg.eigh(final.matrices[layer])
    eigenvalues, rotation = eigenvalues.flip(0).clamp_min(0.0), rotation.flip(1)
    # C has at most `rows` non-zero eigenvalues
    vectors = rotation[:, : min(stored_rank(dim, spec), final.rows)].float()
    eigenvectors = vectors.contiguous() if basis is None else basis @ vectors
    return layer_curvature_from(eigenvalues, eigenvectors, final.traces[layer], final.rows, spec)
