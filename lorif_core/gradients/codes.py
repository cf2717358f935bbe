"""Codes: the stored form of an example's projected gradients, its layout in a row, and its decoding.

A projected gradient is G = A^T E with A = X P_in (T x d1) and E = D P_out (T x d2). `rank` stores
sum_k s_k u_k v_k^T ~ G from block power iteration (LoRIF section 3.2). `cut` optimises u_k and v_k over +-1
(`cut.py`). `dense` stores s G. The stored numbers are levels, of unit RMS in a float dtype and
integers otherwise (`quantise`), and one scale s_k per term.

Least-squares scales give <G, decoded> = |decoded|^2, so that an example whose gradient is far from low rank would
score too low. Where the dot product is the influence itself (whitened projections), scales are multiplied by a
factor that makes them unbiased, <G, decoded> = |G|^2, as RaBitQ does for vectors (arXiv 2405.12497).

Shapes: B batch, T tokens, c rank, W levels of a row over all layers, S scales of a row over all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorif_core.gradients.cut import MIN_CAPTURED, cut_factors, thin_rows
from lorif_core.gradients.low_rank import low_rank_factors
from lorif_core.gradients.quantisation import LEVELS_PER_BYTE, TINY, is_float, packed_bytes, quantise, unpack
from lorif_core.gradients.whitened_product import (
    LayerRoots,
    WhitenedProduct,
    bounded,
    whitened_gradients,
    whitened_tokens,
)
from lorif_core.spec import CodeSpec, LayerSpec


@dataclass(frozen=True, slots=True)
class LayerSlot:
    """Position of one layer in a row: levels of U (or G) in [start, middle) and of V in [middle, stop); scales.

    `terms` is the number of terms (1 for `dense`), `packed` the range of bytes of the levels in a packed row.
    """

    layer: LayerSpec
    terms: int
    start: int
    middle: int
    stop: int
    scales: slice
    packed: slice


class CodeLayout:
    """The row layout of the codes of all layers, concatenated in layer order.

    A slot of `rank` or `cut` contains the c columns of U (d1 each), then those of V (d2 each), and c scales, where
    c = min(rank, d1, d2) differs between layers. A slot of `dense` contains G (d1 x d2, row-major) and one scale.
    Levels smaller than a byte are packed, and every slot starts at a byte boundary.
    """

    def __init__(self, layers: Sequence[LayerSpec], code: CodeSpec) -> None:
        self.code = code
        self.slots: list[LayerSlot] = []
        start = byte = scale = 0
        for layer in layers:
            terms = 1 if code.kind == "dense" else layer_rank(code.rank, layer.d1, layer.d2)
            middle = start + (layer.dim if code.kind == "dense" else layer.d1 * terms)
            stop = middle + (0 if code.kind == "dense" else layer.d2 * terms)
            size = packed_bytes(stop - start, code.dtype)
            scales, packed = slice(scale, scale + terms), slice(byte, byte + size)
            self.slots.append(LayerSlot(layer, terms, start, middle, stop, scales, packed))
            start, byte, scale = stop, byte + size, scale + terms
        self.width = start
        self.scales = scale
        self.stored_width = byte if code.dtype in LEVELS_PER_BYTE else start

    @property
    def bytes_per_example(self) -> int:
        """Bytes of one row: stored levels and scales.

        Float codes have float32 scales; the others have float16 scales and one float32 per row.
        """
        item = {"float32": 4, "float16": 2}.get(self.code.dtype, 1)
        return item * self.stored_width + (4 * self.scales if is_float(self.code.dtype) else 2 * self.scales + 4)

    def dense_bytes_per_example(self) -> int:
        """Bytes of one row that stores G itself in float16, as LoGRA does."""
        dense = CodeSpec(kind="dense", dtype="float16")
        return CodeLayout([slot.layer for slot in self.slots], dense).bytes_per_example

    def levels(self, codes: torch.Tensor, slot: LayerSlot) -> torch.Tensor:
        """Levels (B, width of the slot) of one layer as floats, from codes (B, W), or (B, bytes) if packed."""
        if codes.dtype == torch.uint8:
            return unpack(codes[:, slot.packed], self.code.dtype, slot.stop - slot.start)
        levels = codes[:, slot.start : slot.stop]
        return levels if levels.dtype in (torch.float32, torch.float64) else levels.float()

    def factors(self, codes: torch.Tensor, slot: LayerSlot) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors (B, d1, c) and (B, d2, c) of a slot that is not dense, without the scales."""
        levels, left = self.levels(codes, slot), slot.middle - slot.start
        shape = len(levels), slot.terms, -1
        u, v = levels[:, :left].view(shape), levels[:, left:].view(shape)
        return u.transpose(1, 2), v.transpose(1, 2)

    def decode(
        self, codes: torch.Tensor, scales_BS: torch.Tensor, index: int, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, d1 d2): the stored gradients of layer number `index`, scales included; written to `out` if given."""
        slot = self.slots[index]
        scales = scales_BS[:, slot.scales]
        if self.code.kind == "dense":
            return torch.mul(self.levels(codes, slot), scales, out=out)
        u, v = self.factors(codes, slot)
        shaped = None if out is None else out.view(len(u), slot.layer.d1, slot.layer.d2)
        multiply = torch.mul if slot.terms == 1 else torch.bmm  # one term is an outer product, without a GEMM
        return multiply(u * scales[:, None, :], v.transpose(1, 2), out=shaped).view(len(u), slot.layer.dim)


def layer_rank(rank: int, d1: int, d2: int) -> int:
    """Number of terms of a layer: a gradient of d1 x d2 has at most min(d1, d2)."""
    return min(rank, d1, d2)


def decode_rows(dim: int) -> int:
    """Rows to decode at once: from 8 to 512, and up to 64 MiB of float32, so that a block stays near the cache."""
    return max(8, min(512, 2**24 // dim))


@dataclass(frozen=True, slots=True)
class LayerCode:
    """Levels (B, width of the slot) and scales (B, terms) of one layer, in float32 or float64."""

    codes: torch.Tensor
    scales: torch.Tensor


def encode(
    A_BTd: torch.Tensor,
    E_BTd: torch.Tensor,
    code: CodeSpec,
    *,
    unbiased: bool = False,
    roots: Sequence[LayerRoots] | None = None,
) -> LayerCode:
    """Codes of G = W_a A^T E W_b for a batch of examples of one or more layers of one shape.

    A zero gradient gets scale zero; a gradient that is not finite gets scale NaN.

    Args:
        A_BTd: (B, T, d1) projected activations; arbitrary at masked tokens, where E is zero.
        E_BTd: (B, T, d2) projected output gradients.
        code: kind, rank, and the dtype of the levels; the caller packs them.
        unbiased: multiply the scales so that <G, decoded> = |G|^2.
        roots: W_a and W_b of each layer, whose examples follow one another; None means the identity.
    """
    rank = layer_rank(code.rank, A_BTd.shape[2], E_BTd.shape[2])
    if code.kind == "cut":
        product = WhitenedProduct(A_BTd, E_BTd, roots, thin_rows(rank))
        u, v, scales = cut_factors(product, rank, unbiased=unbiased)
        return LayerCode(torch.cat([u.flatten(1), v.flatten(1)], dim=1), scales * product.magnitude)
    pair = bounded(A_BTd, E_BTd)
    A, E, magnitude = pair.A / pair.divisors[0], pair.E / pair.divisors[1], pair.magnitude
    if code.kind == "dense":
        G = A.transpose(1, 2) @ E if roots is None else whitened_gradients(A, E, roots)
        levels, scales = quantise(G.flatten(1)[:, :, None], code.dtype)
        return LayerCode(levels.flatten(1), scales * magnitude)
    if roots is not None:
        A, E = whitened_tokens(A, E, roots)
    U, V = low_rank_factors(A, E, rank)
    u, u_scale = quantise(U, code.dtype)
    v, v_scale = quantise(V, code.dtype)
    scales = u_scale * v_scale
    if unbiased:
        scales = scales * _unbiasing_factor(A, E, u, v, scales)
    columns = [factor.transpose(1, 2).flatten(1) for factor in (u, v)]
    return LayerCode(torch.cat(columns, dim=1), scales * magnitude)


def _unbiasing_factor(
    A: torch.Tensor, E: torch.Tensor, u: torch.Tensor, v: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """(B, 1): |G|^2 / <G, sum_k s_k u_k v_k^T>, at most 1,000; 1 for a zero gradient."""
    captured = (((A @ u) * (E @ v)).sum(dim=1) * scales).sum(dim=1, keepdim=True)
    tokens, small, large = A.shape[1], *sorted((A.shape[2], E.shape[2]))
    if tokens * (small + large) < small * large:  # |A^T E|^2 = <A A^T, E E^T>
        energy = ((A @ A.transpose(1, 2)) * (E @ E.transpose(1, 2))).sum(dim=(1, 2))[:, None]
    else:
        energy = (A.transpose(1, 2) @ E).square().sum(dim=(1, 2))[:, None]
    bounded = torch.maximum(captured, MIN_CAPTURED * energy).clamp_min(TINY)
    return torch.where(captured > 0, energy / bounded, 1.0)
