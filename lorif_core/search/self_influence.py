"""Self-influence of stored rows, s(x, x) = sum_l < H_l^-1 G_l, G_l >, from their codes.

Per layer it is a quadratic form. Where H is the identity or a (newer) metric the form is a Kronecker product,
which factors meet without being multiplied out; a fitted curvature takes decoded rows.

G is what the code has kept. Whitened factors are scaled to be unbiased, so that |decoded|^2 = |G|^2 / cos^2, cos
that between a gradient and its code; codes of the least squares have |decoded|^2 = |G|^2 cos^2. The cosine is not
stored, and normalised scores rank as well without it (`benchmarks.self_influence`).

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
        """What it takes of memory."""

    def of_rows(
        self, codes: torch.Tensor, scales_BS: torch.Tensor, layout: CodeLayout, index: int
    ) -> torch.Tensor:
        """Its value for each row, (B,) float64."""


@dataclass(frozen=True, slots=True)
class KroneckerForm:
    """G -> < left G right, G >, both symmetric, (d1, d1) and (d2, d2) float64; None for the identity."""

    left: torch.Tensor | None = None
    right: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """Of both sides."""
        return sum(side.numel() * 8 for side in (self.left, self.right) if side is not None)

    def of_rows(
        self, codes: torch.Tensor, scales_BS: torch.Tensor, layout: CodeLayout, index: int
    ) -> torch.Tensor:
        """(B,) float64; of factors sum_jk s_j s_k (u_j^T left u_k) (v_j^T right v_k)."""
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
    """G -> < H^-1 G', G' > of a fitted curvature; G' are the rows in the whitening of those it was fitted to."""

    curvature: LayerCurvature
    translation: LayerMetric | None = None

    @property
    def bytes(self) -> int:
        """Of the eigenvectors."""
        return self.curvature.basis.numel() * 4

    def of_rows(
        self, codes: torch.Tensor, scales_BS: torch.Tensor, layout: CodeLayout, index: int
    ) -> torch.Tensor:
        """(B,) float64."""
        G_BD = layout.decode(codes, scales_BS, index)
        if self.translation is not None:
            G_BD = self.translation.fold(G_BD)
        return (self.curvature.fold(G_BD) * G_BD).sum(dim=1, dtype=torch.float64)


def layer_form(folds: LayerCurvature | LayerMetric, translation: LayerMetric | None = None) -> LayerForm:
    """The form of a layer whose queries `folds` folds.

    Args:
        folds: curvature or metric.
        translation: what brings folded queries into the rows' own, older whitening; None where it is the same.
    """
    # < W, code > = < left^T code right^T, ... > reaches a row from the other side
    rows = None if translation is None else LayerMetric(translation.left.T, translation.right.T)
    if isinstance(folds, LayerMetric):
        if rows is None:
            return KroneckerForm(folds.left, folds.right)
        return KroneckerForm(rows.left.T @ folds.left @ rows.left, rows.right @ folds.right @ rows.right.T)
    if folds.basis.shape[1] or folds.outside != 1.0:
        return CurvatureForm(folds, rows)
    return KroneckerForm() if rows is None else KroneckerForm(rows.left.T @ rows.left, rows.right @ rows.right.T)


def self_influences(
    blocks: CodeBlocks, layout: CodeLayout, forms: Iterable[LayerForm], memory_gb: float
) -> np.ndarray:
    """s(x, x) of all rows of a scan, (N,) float32, in its order.

    Args:
        blocks: opens the scan anew: codes as they are stored and float32 scales (B, S).
        layout: of the rows.
        forms: one per layer; as many are held, and met in one scan, as take a quarter of the memory.
        memory_gb: GiB.
    """
    total = None
    for group in _groups(forms, memory_gb * 2**30 / 4):
        found = [_of_block(codes, scales, layout, group) for codes, scales in blocks()]
        values = np.concatenate(found) if found else np.zeros(0)
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


def _of_block(
    codes: torch.Tensor, scales_BS: torch.Tensor, layout: CodeLayout, group: dict[int, LayerForm]
) -> np.ndarray:
    found = torch.zeros(len(codes), dtype=torch.float64)
    rows = decode_rows(max(layout.slots[index].layer.dim for index in group))
    for start in range(0, len(codes), rows):
        chosen = slice(start, start + rows)
        for index, form in group.items():
            found[chosen] += form.of_rows(codes[chosen], scales_BS[chosen], layout, index)
    return found.numpy()


def _times(side: torch.Tensor | None, x_Bdc: torch.Tensor) -> torch.Tensor:
    return x_Bdc if side is None else side.to(x_Bdc) @ x_Bdc
