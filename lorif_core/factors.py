"""Codes: what is stored of one example's projected gradients, and back.

A projected gradient is G = A^T E with A = X P_in (T x d1) and E = D P_out (T x d2). `rank` stores
sum_k s_k u_k v_k^T ~ G by block power iteration (LoRIF section 3.2); `cut` begins there and ends with u_k and v_k
of +-1; `dense` stores s G. What is stored are levels: of unit RMS in a float dtype, else whole numbers
(`quantise`); every term has a scale s_k.

Scales of the least squares make <G, decoded> = |decoded|^2: an example whose gradient is far from low rank would
score too little. Where the dot product is the influence itself (whitened projections), factors are scaled to be
unbiased, <G, decoded> = |G|^2, as RaBitQ does for vectors (arXiv 2405.12497).

Shapes: B batch, T tokens, c rank, W levels of a row over all layers, S scales of a row over all layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from lorif_core.levels import PER_BYTE, is_float, packed_bytes, quantise, signs, unpack
from lorif_core.projection import counter_generator
from lorif_core.spec import CodeSpec, LayerSpec

# A matrix-vector product moves a matrix for every multiply-add; a product of matrices reuses it.
_MATVEC_PENALTY = 32
_TINY = 1e-30
_CUT_SWEEPS = 3
_CUT_RIDGE = 1e-5
_LEAST_KEPT = 1e-3


@dataclass(frozen=True, slots=True)
class LayerSlot:
    """Where one layer's levels lie in a row: U (or G) at [start, middle), V at [middle, stop); and its scales.

    `packed` is where they lie in bytes, if levels are packed several to a byte.
    """

    layer: LayerSpec
    start: int
    middle: int
    stop: int
    scales: slice
    packed: slice


class CodeLayout:
    """The row layout of the codes of all layers, concatenated in layer order.

    A slot of `rank` or `cut` holds the c columns of U (d1 each), then those of V (d2 each), and c scales; a
    `dense` one holds G (d1 x d2, row-major) and one scale. Levels of less than a byte are packed, every slot from
    a byte of its own.
    """

    def __init__(self, layers: Sequence[LayerSpec], code: CodeSpec) -> None:
        self.code = code
        self.slots: list[LayerSlot] = []
        self.terms = 1 if code.kind == "dense" else code.rank
        start = byte = 0
        for number, layer in enumerate(layers):
            middle = start + (layer.dim if code.kind == "dense" else layer.d1 * code.rank)
            stop = middle + (0 if code.kind == "dense" else layer.d2 * code.rank)
            size = packed_bytes(stop - start, code.dtype)
            scales = slice(number * self.terms, (number + 1) * self.terms)
            self.slots.append(LayerSlot(layer, start, middle, stop, scales, slice(byte, byte + size)))
            start, byte = stop, byte + size
        self.width = start
        self.scales = len(layers) * self.terms
        self.stored_width = byte if code.dtype in PER_BYTE else start

    @property
    def bytes_per_example(self) -> int:
        """Arithmetic size of one row: levels as they are stored, and scales.

        Float codes have float32 scales, the others float16 ones and one float32 for the row.
        """
        item = {"float32": 4, "float16": 2}.get(self.code.dtype, 1)
        return item * self.stored_width + (4 * self.scales if is_float(self.code.dtype) else 2 * self.scales + 4)

    def dense_bytes_per_example(self) -> int:
        """The same row with G itself in float16, as LoGRA stores it."""
        dense = CodeSpec(kind="dense", dtype="float16")
        return CodeLayout([slot.layer for slot in self.slots], dense).bytes_per_example

    def levels(self, codes: torch.Tensor, slot: LayerSlot) -> torch.Tensor:
        """Levels (B, width of the slot) of one layer as floats, from codes (B, W), or (B, bytes) if packed."""
        if codes.dtype == torch.uint8:
            return unpack(codes[:, slot.packed], self.code.dtype, slot.stop - slot.start)
        levels = codes[:, slot.start : slot.stop]
        return levels if levels.dtype in (torch.float32, torch.float64) else levels.float()

    def factors(self, codes: torch.Tensor, slot: LayerSlot) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, d1, c) and (B, d2, c) of a slot that is not dense, without the scales."""
        levels, left = self.levels(codes, slot), slot.middle - slot.start
        rows, rank = len(levels), self.code.rank
        u, v = levels[:, :left].view(rows, rank, -1), levels[:, left:].view(rows, rank, -1)
        return u.transpose(1, 2), v.transpose(1, 2)

    def decode(
        self, codes: torch.Tensor, scales_BS: torch.Tensor, index: int, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, d1 d2): the stored gradients of layer number `index`, scales included."""
        slot = self.slots[index]
        scales = scales_BS[:, slot.scales]
        if self.code.kind == "dense":
            return torch.mul(self.levels(codes, slot), scales, out=out)
        u, v = self.factors(codes, slot)
        shaped = None if out is None else out.view(len(u), slot.layer.d1, slot.layer.d2)
        multiply = torch.mul if self.code.rank == 1 else torch.bmm  # an outer product needs no GEMM
        return multiply(u * scales[:, None, :], v.transpose(1, 2), out=shaped).view(len(u), slot.layer.dim)


def decode_rows(dim: int) -> int:
    """Rows to decode at once: at most 512, and at most 64 MiB of float32, so that a block stays near the cache."""
    return max(8, min(512, 2**24 // dim))


@dataclass(frozen=True, slots=True)
class LayerCode:
    """Levels (B, width of the slot) and scales (B, terms) of one layer, in float32 or float64."""

    codes: torch.Tensor
    scales: torch.Tensor


def encode(A_BTd: torch.Tensor, E_BTd: torch.Tensor, code: CodeSpec, *, unbiased: bool = False) -> LayerCode:
    """Codes of G = A^T E for a batch of examples of one layer shape.

    Args:
        A_BTd: (B, T, d1) projected activations; rows of masked tokens may hold anything where E is zero.
        E_BTd: (B, T, d2) projected output gradients.
        code: kind, rank, and the dtype whose levels are taken; packing is the caller's.
        unbiased: scale factors so that <G, decoded> = |G|^2.

    A zero gradient gives a zero scale; one that is not finite, a NaN scale.
    """
    A, a_scale = _unit_largest(A_BTd)
    E, e_scale = _unit_largest(E_BTd)
    finite = torch.isfinite(a_scale * e_scale)
    if not finite.all():  # one NaN would fail the eigensolver for the whole batch; the scale tells it instead
        A, E = (torch.where(finite, x, 0.0) for x in (A, E))
    magnitude = torch.where(finite, a_scale * e_scale, torch.nan)[:, :, 0]
    if code.kind == "dense":
        G = torch.bmm(A.transpose(1, 2), E)
        levels, scales = quantise(G.flatten(1)[:, :, None], code.dtype)
        return LayerCode(levels.flatten(1), scales * magnitude)
    if code.kind == "cut":
        u, v, scales = cut_factors(A, E, code.rank)
    else:
        U, V = _low_rank(A, E, code.rank)
        u, u_scale = quantise(U, code.dtype)
        v, v_scale = quantise(V, code.dtype)
        scales = u_scale * v_scale
    if unbiased:
        scales = scales * _unbiasing(A, E, u, v, scales)
    columns = [factor.transpose(1, 2).flatten(1) for factor in (u, v)]
    return LayerCode(torch.cat(columns, dim=1), scales * magnitude)


def _unbiasing(
    A: torch.Tensor, E: torch.Tensor, u: torch.Tensor, v: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """(B, 1): |G|^2 / <G, sum_k s_k u_k v_k^T>, at most 1,000; 1 for a zero gradient."""
    kept = (((A @ u) * (E @ v)).sum(dim=1) * scales).sum(dim=1, keepdim=True)
    tokens, small, large = A.shape[1], *sorted((A.shape[2], E.shape[2]))
    if tokens * (small + large) < small * large:  # |A^T E|^2 = <A A^T, E E^T>
        whole = ((A @ A.transpose(1, 2)) * (E @ E.transpose(1, 2))).sum(dim=(1, 2))[:, None]
    else:
        whole = (A.transpose(1, 2) @ E).square().sum(dim=(1, 2))[:, None]
    return torch.where(kept > 0, whole / torch.maximum(kept, _LEAST_KEPT * whole).clamp_min(_TINY), 1.0)


def power_rounds(rank: int) -> int:
    """8 rounds for rank 1, 16 above (DESIGN, section 2)."""
    return 8 if rank == 1 else 16


def _low_rank(A: torch.Tensor, E: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (B, d1, c), (B, d2, c) of G = A^T E; the smaller side's are orthonormal."""
    if A.shape[2] <= E.shape[2]:
        return _from_smaller(A, E, rank)
    V, U = _from_smaller(E, A, rank)
    return U, V


def _from_smaller(S: torch.Tensor, L: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, m, c), (B, n, c) of S^T L, m <= n: Q and G^T Q, Q from power iteration on G G^T.

    The largest entries of S and L are 1, so the squaring in G G^T neither under- nor overflows.
    """
    St, Lt = S.transpose(1, 2), L.transpose(1, 2)
    start = _start_basis(S.shape[2], rank).to(S).expand(len(S), -1, -1)
    if _is_implicit_cheaper(S.shape[1], S.shape[2], L.shape[2], rank):
        basis = _leading_basis(lambda Q: St @ (L @ (Lt @ (S @ Q))), start, rank)
        other = Lt @ (S @ basis)
    else:
        G = St @ L
        gram = G @ G.transpose(1, 2)
        basis = _leading_basis(lambda Q: gram @ Q, start, rank)
        other = G.transpose(1, 2) @ basis
    return basis, other


def cut_factors(
    A_BTd: torch.Tensor, E_BTd: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signs U (B, d1, c) and V (B, d2, c), and scales (B, c) >= 0, with sum_k s_k u_k v_k^T ~ G = A^T E.

    It begins with the signs of the low-rank factors; then each side in turn takes, column by column, the best
    signs for the other side and the scales, which are those of the least squares.
    """
    G = A_BTd.transpose(1, 2) @ E_BTd
    U, V = (signs(factor) for factor in _low_rank(A_BTd, E_BTd, rank))
    seen = G @ V
    scales = _joint_scales(seen, U, V)
    for _ in range(_CUT_SWEEPS):
        U = _best_signs(seen, U, V, scales)
        seen = G.transpose(1, 2) @ U
        scales = _joint_scales(seen, V, U)
        V = _best_signs(seen, V, U, scales)
        seen = G @ V
        scales = _joint_scales(seen, U, V)
    return U, V * signs(scales)[:, None], scales.abs()


def _best_signs(
    seen_Bnc: torch.Tensor, x_Bnc: torch.Tensor, other_Bmc: torch.Tensor, scales_Bc: torch.Tensor
) -> torch.Tensor:
    """x with each column in turn the signs that leave the least of G; `seen` is G times the other side."""
    x = x_Bnc.clone()
    overlap_Bcc = scales_Bc[:, :, None] * (other_Bmc.transpose(1, 2) @ other_Bmc)
    for k in range(x.shape[2]):
        rest = (
            seen_Bnc[:, :, k]
            - (x @ overlap_Bcc[:, :, k : k + 1])[:, :, 0]
            + x[:, :, k] * overlap_Bcc[:, k, k : k + 1]
        )
        x[:, :, k] = signs(rest * signs(scales_Bc[:, k : k + 1]))
    return x


def _joint_scales(seen_Bnc: torch.Tensor, x_Bnc: torch.Tensor, other_Bmc: torch.Tensor) -> torch.Tensor:
    """(B, c) scales of the least squares over all terms; `seen` is G times the other side."""
    products = (x_Bnc.transpose(1, 2) @ x_Bnc) * (other_Bmc.transpose(1, 2) @ other_Bmc)
    size = x_Bnc.shape[1] * other_Bmc.shape[1]
    ridge = _CUT_RIDGE * size * torch.eye(products.shape[2]).to(products)  # terms may be equal
    return torch.linalg.solve(products + ridge, (x_Bnc * seen_Bnc).sum(dim=1))


def _leading_basis(
    apply: Callable[[torch.Tensor], torch.Tensor], start_Bmp: torch.Tensor, rank: int
) -> torch.Tensor:
    """An orthonormal basis (B, m, c) of the leading eigenvectors; all zero where the operator is.

    The block is one column wider than the rank: a single start that happens to be nearly orthogonal to the
    leading vector would converge slowly and magnify rounding. Rayleigh-Ritz takes the best c of the block.
    """
    block = start_Bmp
    for _ in range(power_rounds(rank)):
        block = _orthonormal(apply(block))
    ritz = block.transpose(1, 2) @ apply(block)
    if rank > 1 or ritz.shape[2] == 1:
        _, vectors = torch.linalg.eigh(ritz)
        leading = vectors[:, :, -rank:].flip(2)  # eigh ascends; the smallest is the spare
        # eigenvectors come with either sign; codes must not depend on which
        largest = leading.gather(1, leading.abs().argmax(dim=1, keepdim=True))
        return block @ (leading * torch.where(largest < 0, -1.0, 1.0).to(leading))
    # the leading eigenvector of a symmetric 2 x 2 matrix, in closed form
    angle = 0.5 * torch.atan2(2 * ritz[:, 0, 1], ritz[:, 0, 0] - ritz[:, 1, 1])
    return block @ torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)[:, :, None]


def _orthonormal(x_Bmp: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the columns: Gram-Schmidt for two, which a batched QR is slow at."""
    if x_Bmp.shape[2] != 2:
        return torch.linalg.qr(x_Bmp).Q
    first, second = _unit_columns(x_Bmp[:, :, :1]), x_Bmp[:, :, 1:]
    rest = second - first * (first * second).sum(dim=1, keepdim=True)
    # what is left of a column that lies in the first is rounding, not a direction
    noise = 100 * torch.finfo(x_Bmp.dtype).eps * second.norm(dim=1, keepdim=True)
    rest = torch.where(rest.norm(dim=1, keepdim=True) > noise, _unit_columns(rest), 0.0)
    return torch.cat([first, rest], dim=2)


def _unit_columns(x_Bmp: torch.Tensor) -> torch.Tensor:
    return x_Bmp / x_Bmp.norm(dim=1, keepdim=True).clamp_min(_TINY)


def _unit_largest(x_BTd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Examples scaled so that the largest entry is 1, and (B, 1, 1) what it was."""
    largest = x_BTd.abs().amax(dim=(1, 2), keepdim=True)
    return x_BTd / largest.clamp_min(_TINY), largest


@cache
def _start_basis(size: int, rank: int) -> torch.Tensor:
    """A fixed random start: codes must not depend on what else is in the batch, nor on the worker."""
    width = min(size, rank + 1)
    normal = counter_generator(0, f"start/{size}x{rank}").standard_normal((size, width))
    return torch.linalg.qr(torch.from_numpy(normal)).Q


def _is_implicit_cheaper(tokens: int, small: int, large: int, rank: int) -> bool:
    """Whether iterating on S and L beats forming G and G G^T, in multiply-adds."""
    rounds = power_rounds(rank)
    formed = tokens * small * large + small * small * large + rounds * (rank + 1) * small * small
    implicit = rounds * (rank + 1) * 2 * tokens * (small + large)
    return implicit * _MATVEC_PENALTY < formed
