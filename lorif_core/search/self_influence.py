"""Self-influence of stored rows, s(x, x) = sum_l < H_l^-1 G_l, G_l >, from their codes.

In each layer it is a quadratic form. If H is the identity or a (newer) metric, the form is a Kronecker product and
is evaluated on the factors; a fitted curvature needs decoded rows.

Here G is the decoded code. Whitened factors are scaled to be unbiased, so that |decoded|^2 = |gradient|^2 / cos^2,
with cos the cosine between a gradient and its code; least-squares codes have |decoded|^2 = |gradient|^2 cos^2. The
cosine is not stored, and normalised scores rank as well without it (`benchmarks.self_influence`).

Shapes: B rows, c rank, d1 x d2 of a layer, D = d1 d2.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from lorif_core.curvature.metric import LayerMetric
from lorif_core.curvature.woodbury import LayerCurvature
from lorif_core.gradients.codes import CodeLayout, decode_rows

CodeBlocks = Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]


class LayerForm(Protocol):
    """A quadratic form on the stored gradients of one layer."""

    @property
    def bytes(self) -> int:
        """Its bytes in memory."""

    def of_rows(
        self, codes: torch.Tensor, scales_BS: torch.Tensor, layout: CodeLayout, index: int
    ) -> torch.Tensor:
        """The value of the form for each row, (B,) float64."""


@dataclass(frozen=True, slots=True)
class KroneckerForm:
    """G -> < left G right, G >, with symmetric (d1, d1) and (d2, d2) float64; None for the identity."""

    left: torch.Tensor | None = None
    right: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """Bytes of both matrices."""
        return sum(side.numel() * 8 for side in (self.left, self.right) if side is not None)

    def of_rows(
        self, codes: torch.Tensor, scales_BS: torch.Tensor, layout: CodeLayout, index: int
    ) -> torch.Tensor:
        """(B,) float64; for factors sum_jk s_j s_k (u_j^T left u_k) (v_j^T right v_k)."""
        slot = layout.slots[index]
        if layout.code.kind == "dense":
            decoded = layout.decode(codes, scales_BS, index)
            shaped = decoded.view(-1, slot.layer.d1, slot.layer.d2)
            return (_times(self.left, _times(self.right, shaped.mT).mT) * shaped).sum(
                dim=(1, 2), dtype=torch.float64
            )
        u, v = layout.factors(codes, slot)
        u = (u * scales_BS[:, None, slot.scales]).double()
        v = v.double()
        return ((u.mT @ _times(self.left, u)) * (v.mT @ _times(self.right, v))).sum(dim=(1, 2))


@dataclass(frozen=True, slots=True)
class CurvatureForm:
    """G -> < H^-1 G', G' > of a fitted curvature; G' is G in the whitening that the curvature was fitted in."""

    curvature: LayerCurvature
    translation: LayerMetric | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the eigenvectors."""
        return self.curvature.basis.numel() * 4

    def of_rows(
        self, codes: torch.Tensor, scales_BS: torch.Tensor, layout: CodeLayout, index: int
    ) -> torch.Tensor:
        """(B,) float64."""
        G_BD = layout.decode(codes, scales_BS, index)
        if self.translation is not None:
            G_BD = self.translation.fold(G_BD)
        return (self.curvature.fold(G_BD) * G_BD).sum(dim=1, dtype=torch.float64)


def layer_form(fold: LayerCurvature | LayerMetric, translation: LayerMetric | None = None) -> LayerForm:
    """The quadratic form of a layer that has the fold operator `fold`.

    Args:
        fold: curvature or metric.
        translation: operator that brings folded queries into the older whitening of the rows; None if the rows
            have the same whitening.
    """
    # < left W right, code > = < W, left^T code right^T >: the transposes translate rows
    rows = None if translation is None else LayerMetric(translation.left.T, translation.right.T)
    if isinstance(fold, LayerMetric):
        if rows is None:
            return KroneckerForm(fold.left, fold.right)
        return KroneckerForm(rows.left.T @ fold.left @ rows.left, rows.right @ fold.right @ rows.right.T)
    if fold.basis.shape[1] or fold.outside != 1.0:
        return CurvatureForm(fold, rows)
    return KroneckerForm() if rows is None else KroneckerForm(rows.left.T @ rows.left, rows.right @ rows.right.T)


def self_influences(
    blocks: CodeBlocks, layout: CodeLayout, forms: Iterable[LayerForm], memory_gb: float
) -> np.ndarray:
    """s(x, x) of all rows of a scan, (N,) float32, in its order.

    Args:
        blocks: a function that starts a scan: codes as they are stored and float32 scales (B, S).
        layout: layout of the rows.
        forms: one form per layer; a scan evaluates as many of them as fit into a quarter of the memory.
        memory_gb: memory in GiB.
    """
    total = None
    for group in _groups(forms, memory_gb * 2**30 / 4):
        by_block = [_block_values(codes, scales, layout, group) for codes, scales in blocks()]
        values = np.concatenate(by_block) if by_block else np.zeros(0)
        total = values if total is None else total + values
    return np.zeros(0, np.float32) if total is None else total.astype(np.float32)


def _groups(forms: Iterable[LayerForm], budget: float) -> Iterator[dict[int, LayerForm]]:
    group: dict[int, LayerForm] = {}
    used = 0
    for index, form in enumerate(forms):
        if group and used + form.bytes > budget:
            yield group
            group, used = {}, 0
        group[index] = form
        used += form.bytes
    if group:
        yield group


def _block_values(
    codes: torch.Tensor, scales_BS: torch.Tensor, layout: CodeLayout, group: dict[int, LayerForm]
) -> np.ndarray:
    values = torch.zeros(len(codes), dtype=torch.float64)
    rows = decode_rows(max(layout.slots[index].layer.dim for index in group))
    for start in range(0, len(codes), rows):
        chunk = slice(start, start + rows)
        for index, form in group.items():
            values[chunk] += form.of_rows(codes[chunk], scales_BS[chunk], layout, index)
    return values.numpy()


def _times(side: torch.Tensor | None, x_Bdc: torch.Tensor) -> torch.Tensor:
    return x_Bdc if side is None else side.to(x_Bdc) @ x_Bdc
