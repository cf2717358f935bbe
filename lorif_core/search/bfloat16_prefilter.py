"""Quick scores in bfloat16, where processors multiply it several times as fast as float32.

Queries and decoded rows are rounded to eight bits of mantissa, and every product of matrices adds in float32. Of
few queries factors are contracted, u^T W v; for many, rows are decoded once for all of them, a piece that stays in
the cache at a time.

Shapes: Q queries, B rows, c terms, D = d1 d2, S scales of a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch

from lorif_core.gradients.codes import CodeLayout, LayerSlot
from lorif_core.gradients.quantisation import PER_BYTE, byte_levels
from lorif_core.search.scoring import FoldedQueries, shared_tensor

_HALF = torch.bfloat16
_DECODE_FROM = 32  # terms of all queries, from where decoding a row is less work than contracting it for each
_ROWS = 1024  # contracted at once
_PIECE_ROWS = 256
_PIECE = 2**22  # numbers of decoded rows at once
_GPU_SCRATCH = 2**28  # bytes


@dataclass(frozen=True, slots=True)
class HalfQueries:
    """Folded queries per layer, (Q, D) bfloat16."""

    weights: tuple[torch.Tensor, ...]

    relative_error: ClassVar[float] = 2.0**-7  # twice that of a sum that comes out of a product rounded

    def __reduce__(self) -> tuple[Any, ...]:
        """As numpy arrays, as `FoldedQueries`; numpy has no bfloat16."""
        return _half_of, ([weight_QD.view(torch.int16).numpy() for weight_QD in self.weights],)


def _half_of(arrays: Sequence[np.ndarray]) -> HalfQueries:
    return HalfQueries(tuple(shared_tensor(array).view(_HALF) for array in arrays))


@cache
def is_fast() -> bool:
    """Whether this machine's CPU multiplies matrices in bfloat16 faster than in float32."""
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _place(size: int) -> tuple[torch.device, torch.dtype]:
    """Where and in what rows are multiplied with queries of so many bytes.

    On a GPU if they leave half of what is free there. Queries may come from a machine that is quick at bfloat16 to
    one that is not: it multiplies the same numbers in float32.
    """
    if torch.cuda.is_available() and 2 * size + _GPU_SCRATCH < torch.cuda.mem_get_info()[0]:
        return torch.device("cuda"), _HALF
    return torch.device("cpu"), _HALF if is_fast() else torch.float32


def halved(folded: FoldedQueries) -> HalfQueries:
    """Folded queries in bfloat16."""
    return HalfQueries(tuple(weight_QD.to("cpu", _HALF) for weight_QD in folded.weights))


class HalfScorer:
    """Quick scores of rows of any code."""

    def __init__(self, layout: CodeLayout, half: HalfQueries) -> None:
        self._layout, self._count = layout, len(half.weights[0])
        self._device, self._dtype = _place(sum(weight_QD.nbytes for weight_QD in half.weights))
        self._contracts = layout.code.kind != "dense" and self._count * layout.terms < _DECODE_FROM
        self._weights = [
            self._arranged(weight_QD.to(self._device, self._dtype), slot)
            for weight_QD, slot in zip(half.weights, layout.slots, strict=True)
        ]
        self._table = None
        if layout.code.dtype in PER_BYTE:
            self._table = byte_levels(layout.code.dtype).to(self._device, self._dtype)
        # kept, as the kernel hands out and clears every page of a large tensor that is new
        self._floats = torch.empty(0, device=self._device)
        self._halves = torch.empty(0, device=self._device, dtype=self._dtype)

    def _arranged(self, weight_QD: torch.Tensor, slot: LayerSlot) -> torch.Tensor:
        """(d1, Q d2) for contractions."""
        if not self._contracts:
            return weight_QD
        return weight_QD.view(-1, slot.layer.d1, slot.layer.d2).transpose(0, 1).flatten(1)

    def scores(self, codes: torch.Tensor, scales_BS: torch.Tensor) -> torch.Tensor:
        """(Q, B) float32 on the CPU; codes and scales as `scoring.score_rows` takes them."""
        scores_QB = torch.zeros(self._count, len(codes), device=self._device)
        size = self._contracted_rows() if self._contracts else _PIECE_ROWS
        for start in range(0, len(codes), size):
            some = slice(start, start + size)
            rows, scales = (part[some].to(self._device) for part in (codes, scales_BS))
            for number, slot in enumerate(self._layout.slots):
                scores_QB[:, some] += self._of_layer(rows, scales[:, slot.scales], number)
        return scores_QB.cpu()

    def _contracted_rows(self) -> int:
        a_row = self._count * self._layout.terms * max(slot.layer.d2 for slot in self._layout.slots)
        return max(1, min(_ROWS, _PIECE // a_row))

    def _of_layer(self, codes: torch.Tensor, scales_Bc: torch.Tensor, number: int) -> torch.Tensor:
        """(Q, B) of one layer."""
        slot, weight = self._layout.slots[number], self._weights[number]
        if self._layout.code.kind == "dense":
            return self._products(weight, self._dense_pieces(codes, slot)) * scales_Bc.T
        u, v = self._factors(codes, slot)
        if self._contracts:
            return self._contracted(u, v, scales_Bc, weight)
        # the largest scale is not rounded, as that would move all numbers of a row the same way
        largest_B1 = scales_Bc.abs().amax(dim=1, keepdim=True)
        relative_Bc = (scales_Bc / torch.where(largest_B1 > 0, largest_B1, 1.0)).to(self._dtype)
        return self._products(weight, self._decoded_pieces(u * relative_Bc[:, :, None], v)) * largest_B1.T

    def _contracted(
        self, u: torch.Tensor, v: torch.Tensor, scales_Bc: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        left = u.reshape(-1, u.shape[2]) @ weight  # (B c, Q d2)
        right = v.reshape(-1, 1, v.shape[2])
        per_term = left.view(len(right), self._count, -1).mul_(right).sum(dim=2, dtype=torch.float32)
        return (per_term.view(len(u), -1, self._count) * scales_Bc[:, :, None]).sum(dim=1).T

    def _products(self, weight_QD: torch.Tensor, pieces: Iterator[torch.Tensor]) -> torch.Tensor:
        """(Q, B) float32 of rows whose numbers come in pieces."""
        total, start = torch.zeros((), device=self._device), 0
        for piece in pieces:
            stop = start + piece.shape[1]
            total = total + (weight_QD[:, start:stop] @ piece.T).float()
            start = stop
        return total

    def _factors(self, codes: torch.Tensor, slot: LayerSlot) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, c, d1) and (B, c, d2)."""
        if codes.dtype == torch.uint8:
            levels = self._unpacked(codes[:, slot.packed], None)[:, : slot.stop - slot.start]
        else:  # float16 to bfloat16 at once is slow
            levels = codes[:, slot.start : slot.stop].float().to(self._dtype)
        left, terms = slot.middle - slot.start, self._layout.terms
        return levels[:, :left].unflatten(1, (terms, -1)), levels[:, left:].unflatten(1, (terms, -1))

    def _decoded_pieces(self, u_Bcm: torch.Tensor, v_Bcn: torch.Tensor) -> Iterator[torch.Tensor]:
        """(B, numbers) of sum_k u_k v_k^T, some rows of the matrix after the others."""
        rows, terms, width = v_Bcn.shape
        for some in u_Bcm.split(max(1, _PIECE // (rows * width)), dim=2):
            out = self._room(rows * some.shape[2] * width).view(rows, -1, width)
            multiply = torch.mul if terms == 1 else torch.bmm
            yield multiply(some.mT, v_Bcn, out=out).view(rows, -1)

    def _dense_pieces(self, codes: torch.Tensor, slot: LayerSlot) -> Iterator[torch.Tensor]:
        """(B, numbers) of G, one column after the other."""
        per_byte = PER_BYTE.get(self._layout.code.dtype, 1)
        width = max(1, _PIECE // len(codes) // per_byte) * per_byte
        for start in range(0, slot.layer.dim, width):
            stop = min(start + width, slot.layer.dim)
            if codes.dtype == torch.uint8:
                first = slot.packed.start
                packed = codes[:, first + start // per_byte : first - (-stop // per_byte)]
                yield self._unpacked(packed, self._room(packed.numel() * per_byte))[:, : stop - start]
            else:
                yield self._rounded(codes[:, slot.start + start : slot.start + stop])

    def _unpacked(self, packed: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        assert self._table is not None
        shaped = None if out is None else out.view(-1, self._table.shape[1])
        return torch.index_select(self._table, 0, packed.flatten().int(), out=shaped).view(len(packed), -1)

    def _rounded(self, levels: torch.Tensor) -> torch.Tensor:
        if len(self._floats) < levels.numel():
            self._floats = torch.empty(levels.numel(), device=self._device)
        floats = self._floats[: levels.numel()].view(levels.shape).copy_(levels)
        return self._room(levels.numel()).view(levels.shape).copy_(floats)

    def _room(self, size: int) -> torch.Tensor:
        if len(self._halves) < size:
            self._halves = torch.empty(size, device=self._device, dtype=self._dtype)
        return self._halves[:size]
