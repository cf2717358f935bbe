"""Codes: what is stored of one example's projected gradients, and back.

A projected gradient is G = A^T E with A = X P_in (T x d1) and E = D P_out (T x d2). `rank` stores U V^T ~ G by
block power iteration (LoRIF section 3.2); `dense` stores G. Every code is scaled to unit RMS so that float16
neither under- nor overflows; the scale is kept in float32, one per row and layer.

Shapes: B batch, T tokens, c rank, W = code width over all layers, L layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from lorif_core.projection import counter_generator
from lorif_core.spec import CodeSpec, LayerSpec

# A matrix-vector product moves a matrix for every multiply-add; a product of matrices reuses it.
_MATVEC_PENALTY = 32
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class LayerSlot:
    """Where one layer's code lies in a row: U (or G) at [start, middle), V at [middle, stop)."""

    layer: LayerSpec
    start: int
    middle: int
    stop: int


class CodeLayout:
    """The row layout of the codes of all layers, concatenated in layer order.

    A `rank` slot holds U (d1 x c, row-major) then V (d2 x c); a `dense` slot holds G (d1 x d2, row-major).
    """

    def __init__(self, layers: Sequence[LayerSpec], code: CodeSpec) -> None:
        self.code = code
        self.slots: list[LayerSlot] = []
        start = 0
        for layer in layers:
            middle = start + (layer.d1 * code.rank if code.kind == "rank" else layer.dim)
            stop = middle + (layer.d2 * code.rank if code.kind == "rank" else 0)
            self.slots.append(LayerSlot(layer, start, middle, stop))
            start = stop
        self.width = start

    @property
    def bytes_per_example(self) -> int:
        """Arithmetic size of one row: codes in their dtype and one float32 scale a layer."""
        return self.width * (2 if self.code.dtype == "float16" else 4) + 4 * len(self.slots)

    def dense_bytes_per_example(self) -> int:
        """The same row with G itself in the same dtype, as LoGRA stores it."""
        dense = CodeSpec(kind="dense", dtype=self.code.dtype)
        return CodeLayout([slot.layer for slot in self.slots], dense).bytes_per_example

    def factors(self, codes_BW: torch.Tensor, slot: LayerSlot) -> tuple[torch.Tensor, torch.Tensor]:
        """Views (B, d1, c), (B, d2, c) of a `rank` slot, without the scale."""
        rows, rank = codes_BW.shape[0], self.code.rank
        u = codes_BW[:, slot.start : slot.middle].view(rows, slot.layer.d1, rank)
        v = codes_BW[:, slot.middle : slot.stop].view(rows, slot.layer.d2, rank)
        return u, v

    def decode(
        self, codes_BW: torch.Tensor, scales_BL: torch.Tensor, index: int, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, d1 d2): the stored gradients of layer number `index`, scale included."""
        slot = self.slots[index]
        scale = scales_BL[:, index, None]
        if self.code.kind == "dense":
            return torch.mul(codes_BW[:, slot.start : slot.middle], scale, out=out)
        u, v = self.factors(codes_BW, slot)
        shaped = None if out is None else out.view(len(u), slot.layer.d1, slot.layer.d2)
        multiply = torch.mul if self.code.rank == 1 else torch.bmm  # an outer product needs no GEMM
        return multiply(u * scale[:, :, None], v.transpose(1, 2), out=shaped).view(len(u), slot.layer.dim)


def decode_rows(dim: int) -> int:
    """Rows to decode at once: at most 512, and at most 64 MiB of float32, so that a block stays near the cache."""
    return max(8, min(512, 2**24 // dim))


@dataclass(frozen=True, slots=True)
class LayerCode:
    """Codes (B, width of the slot) and scales (B,) of one layer, in float32 or float64."""

    codes: torch.Tensor
    scales: torch.Tensor


def encode(A_BTd: torch.Tensor, E_BTd: torch.Tensor, code: CodeSpec) -> LayerCode:
    """Codes of G = A^T E for a batch of examples of one layer shape.

    Args:
        A_BTd: (B, T, d1) projected activations; rows of masked tokens may hold anything where E is zero.
        E_BTd: (B, T, d2) projected output gradients.
        code: kind and rank; the dtype of storage is applied by the caller.

    A zero gradient gives zero codes and a zero scale; one that is not finite, zero codes and a NaN scale.
    """
    if code.kind == "dense":
        G = torch.bmm(A_BTd.transpose(1, 2), E_BTd)
        return LayerCode(*_unit_rms(G.flatten(1)))
    A, a_scale = _unit_largest(A_BTd)
    E, e_scale = _unit_largest(E_BTd)
    finite = torch.isfinite(a_scale * e_scale)
    if not finite.all():  # one NaN would fail the eigensolver for the whole batch; the scale tells it instead
        A, E = (torch.where(finite, x, 0.0) for x in (A, E))
    left_smaller = A.shape[2] <= E.shape[2]
    U, V = _low_rank(A, E, code.rank) if left_smaller else reversed(_low_rank(E, A, code.rank))
    u, u_scale = _unit_rms(U.flatten(1))
    v, v_scale = _unit_rms(V.flatten(1))
    magnitude = torch.where(finite, a_scale * e_scale, torch.nan).flatten()
    return LayerCode(torch.cat([u, v], dim=1), u_scale * v_scale * magnitude)


def power_rounds(rank: int) -> int:
    """8 rounds for rank 1, 16 above (DESIGN, section 2)."""
    return 8 if rank == 1 else 16


def _unit_rms(x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of unit RMS, and the RMS; by way of the largest entry, as squares of small numbers underflow."""
    largest = x_BD.abs().amax(dim=1).clamp_min(_TINY)
    unit = x_BD / largest[:, None]
    rms = unit.square().mean(dim=1).sqrt()
    return torch.where(rms[:, None] > 0, unit / rms.clamp_min(_TINY)[:, None], 0.0), rms * largest


def _low_rank(S: torch.Tensor, L: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank-c factors (B, m, c), (B, n, c) of G = S^T L, m <= n: Q and G^T Q, Q from power iteration on G G^T.

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
