"""Curvature of the stored gradients: truncated randomized SVD, damping, and H^-1 folded into a query.

Per layer H = sum_i g_i g_i^T + lambda I over the stored g_i = vec(G_i). The leading eigenpairs of
C = sum_i g_i g_i^T are those of C in the block Krylov space [C X, C^2 X, ...] of a random X (Musco and Musco 2015;
the last block alone is the subspace iteration of Halko et al. 2011). The only access to the data is a `scan` that
returns a sum over rows; the sum may be computed anywhere. H^-1 follows by the Woodbury identity (LoRIF section
3.3). Twice the components that it uses are kept, where they are found, so that merges lose little.

Shapes: D = d1 d2 of a layer, k = rank + oversample, m = min(power_iterations, 3) k, r rank, c components kept,
Q queries, B rows of a block, L layers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lorif_core.errors import UserError
from lorif_core.factors import CodeLayout, decode_rows
from lorif_core.projection import counter_generator

Damping = Literal["retained", "trace", "paper"] | float
Tail = Literal["truncated", "tail"]
_BLOCKS = 3  # of the Krylov space; more would cost memory, and change nothing that can be told
_CARRIED = 2  # components kept, over those that are used
ScanKind = Literal["product", "gram"]


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """One pass over all rows: per layer number a basis Q (D, k), or None for the identity.

    `product` asks for C Q (D, k); `gram` for Q^T C Q (k, k) in float64.
    """

    kind: ScanKind
    bases: dict[int, torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class ScanResult:
    """Sums over rows: per layer the matrix asked for and the trace of C; and the number of rows."""

    matrices: dict[int, torch.Tensor]
    traces: dict[int, float]
    rows: int

    def __add__(self, other: "ScanResult") -> "ScanResult":
        if not self.matrices:
            return other
        for layer, matrix in other.matrices.items():
            self.matrices[layer].add_(matrix)
        traces = {layer: trace + other.traces[layer] for layer, trace in self.traces.items()}
        return ScanResult(self.matrices, traces, self.rows + other.rows)


NO_ROWS = ScanResult({}, {}, 0)
Scan = Callable[[ScanRequest], ScanResult]


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


def scan_blocks(
    blocks: Iterable[tuple[torch.Tensor, torch.Tensor]], layout: CodeLayout, request: ScanRequest
) -> ScanResult:
    """The sums of `request` over blocks of codes as they are stored and float32 scales (B, S).

    Only one block of one layer is decoded at a time; products accumulate in float32, grams in float64.
    """
    sums: dict[int, torch.Tensor] = {}
    traces = dict.fromkeys(request.bases, 0.0)
    rows = 0
    widest = max((layout.slots[layer].layer.dim for layer in request.bases), default=0)
    block_rows = decode_rows(widest)
    scratch = torch.empty(block_rows * widest)  # reused: fresh pages would cost more than the product
    for block_codes, block_scales in blocks:
        rows += len(block_codes)
        for codes, scales in zip(block_codes.split(block_rows), block_scales.split(block_rows), strict=True):
            for layer, basis in request.bases.items():
                dim = layout.slots[layer].layer.dim
                room = scratch[: len(codes) * dim].view(len(codes), dim)
                G_BD = layout.decode(codes, scales, layer, out=room)
                traces[layer] += float(G_BD.square().sum(dtype=torch.float64))
                _accumulate(sums, layer, G_BD, basis, request.kind)
    return ScanResult(sums, traces, rows)


def _accumulate(
    sums: dict[int, torch.Tensor], layer: int, G_BD: torch.Tensor, basis: torch.Tensor | None, kind: ScanKind
) -> None:
    if kind == "gram":
        projected = (G_BD if basis is None else G_BD @ basis).double()
        left, right = projected.T, projected
    else:
        left, right = G_BD.T, (G_BD if basis is None else G_BD @ basis)
    if layer in sums:
        sums[layer].addmm_(left, right)
    else:
        sums[layer] = left @ right


def fit_layers(
    layers: Sequence[int], dims: Sequence[int], rows: int, spec: CurvatureSpec, scan: Scan
) -> dict[int, LayerCurvature]:
    """Curvature of some layers by passes of `scan` over all rows.

    Args:
        layers: layer numbers to fit together, in one scan per pass.
        dims: D of every layer, indexed by layer number.
        rows: number of rows that `scan` sums over.
        spec: `woodbury` takes power_iterations products and one gram; `exact` one gram of the identity.
        scan: sums over the rows, wherever they are.
    """
    if spec.kind == "none":
        return {layer: identity_curvature(dims[layer]) for layer in layers}
    bases: dict[int, torch.Tensor | None] = {layer: _start(layer, dims[layer], rows, spec) for layer in layers}
    iterated = {layer: basis for layer, basis in bases.items() if basis is not None}
    if iterated:
        blocks: dict[int, list[torch.Tensor]] = {layer: [] for layer in iterated}
        for _ in range(spec.power_iterations):
            product = scan(ScanRequest("product", dict(iterated)))
            iterated = {layer: orthonormal(matrix) for layer, matrix in product.matrices.items()}
            for layer, block in iterated.items():
                blocks[layer] = [*blocks[layer], block][-_BLOCKS:]
        for layer in iterated:
            found = blocks.pop(layer)
            bases[layer] = found[0] if len(found) == 1 else orthonormal(torch.cat(found, dim=1))
    final = scan(ScanRequest("gram", bases))
    return {layer: _rayleigh_ritz(final, layer, bases[layer], dims[layer], spec) for layer in layers}


def orthonormal(matrix_Dk: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the columns, through a QR in float64: columns differ by powers of sigma^2."""
    return torch.linalg.qr(matrix_Dk.double()).Q.float()


def layer_groups(dims: Sequence[int], rows: int, spec: CurvatureSpec, memory_gb: float) -> list[list[int]]:
    """Layers fitted together: as many as fit into a worker's memory, so that passes over the data are few.

    Raises:
        UserError: one layer alone does not fit.
    """
    budget = memory_gb * 2**30
    groups: list[list[int]] = []
    used = budget
    for layer, dim in enumerate(dims):
        need = layer_bytes(dim, rows, spec)
        if need > budget:
            raise UserError(
                f"the {spec.kind} curvature of layer {layer} ({dim} gradient dimensions) needs "
                f"{need / 2**30:.1f} GiB of a worker, above compute.memory_gb = {memory_gb:g}; raise it, lower "
                f"curvature.rank or raise projection.factor"
            )
        if not groups or used + need > budget:
            groups.append([])
            used = 0.0
        groups[-1].append(layer)
        used += need
    return groups


def layer_bytes(dim: int, rows: int, spec: CurvatureSpec) -> int:
    """Bytes a pass holds for a layer: its basis and its sums, in float32, and the Gram matrix in float64."""
    if spec.kind == "none":
        return 0
    size = krylov_size(dim, rows, spec)
    basis = 0 if size == dim else 4 * dim * max(2 * subspace_size(dim, rows, spec), size)
    return basis + 8 * size * size


def subspace_size(dim: int, rows: int, spec: CurvatureSpec) -> int:
    """k, the number of basis vectors carried through the passes."""
    if spec.kind == "exact":
        return dim
    return min(dim, spec.rank + spec.oversample, max(rows, 1) + spec.oversample)


def krylov_size(dim: int, rows: int, spec: CurvatureSpec) -> int:
    """m, the number of basis vectors of the last pass; `dim` means the identity, and no pass before it."""
    return min(dim, min(spec.power_iterations, _BLOCKS) * subspace_size(dim, rows, spec))


def _start(layer: int, dim: int, rows: int, spec: CurvatureSpec) -> torch.Tensor | None:
    size = subspace_size(dim, rows, spec)
    if krylov_size(dim, rows, spec) == dim:
        return None
    normal = counter_generator(spec.seed, f"sketch/{layer}/{dim}x{size}").standard_normal((dim, size))
    return torch.from_numpy(normal).float()


def _rayleigh_ritz(
    final: ScanResult, layer: int, basis: torch.Tensor | None, dim: int, spec: CurvatureSpec
) -> LayerCurvature:
    """Eigenpairs of C in the span of the basis, the leading ones kept; lambda from the rule."""
    eigenvalues, rotation = torch.linalg.eigh(final.matrices[layer])
    eigenvalues, rotation = eigenvalues.flip(0).clamp_min(0.0), rotation.flip(1)
    # C has no more than `rows` non-zero eigenvalues
    vectors = rotation[:, : min(carried(dim, spec), final.rows)].float()
    turned = vectors.contiguous() if basis is None else basis @ vectors
    return settled(eigenvalues, turned, final.traces[layer], final.rows, spec)


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
