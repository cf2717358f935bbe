"""Sums over all rows for the curvature fit: products C Q and grams Q^T C Q.

Shapes: D = d1 d2 of a layer, k columns of a basis, B rows of a block, S scales of a row.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from lorif_core.gradients.codes import CodeLayout, decode_rows

ScanKind = Literal["product", "gram"]


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """One pass over all rows: per layer number a basis Q (D, k), or None for the identity.

    `product` requests C Q (D, k), float32; `gram` requests Q^T C Q (k, k), float64.
    """

    kind: ScanKind
    bases: dict[int, torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class ScanResult:
    """Sums over rows: per layer the requested matrix and the trace of C; and the number of rows."""

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


def scan_blocks(
    blocks: Iterable[tuple[torch.Tensor, torch.Tensor]], layout: CodeLayout, request: ScanRequest
) -> ScanResult:
    """The sums of `request` over blocks of stored codes and float32 scales (B, S).

    One block of one layer is decoded at a time. Products accumulate in float32, grams in float64.
    """
    sums: dict[int, torch.Tensor] = {}
    traces = dict.fromkeys(request.bases, 0.0)
    rows = 0
    widest = max((layout.slots[layer].layer.dim for layer in request.bases), default=0)
    block_rows = decode_rows(widest)
    scratch = torch.empty(block_rows * widest)  # reused, because new memory pages would cost more than the product
    for block_codes, block_scales in blocks:
        rows += len(block_codes)
        for codes, scales in zip(block_codes.split(block_rows), block_scales.split(block_rows), strict=True):
            for layer, basis in request.bases.items():
                dim = layout.slots[layer].layer.dim
                buffer = scratch[: len(codes) * dim].view(len(codes), dim)
                G_BD = layout.decode(codes, scales, layer, out=buffer)
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
