"""Prefilter scores in bfloat16, for processors that multiply it several times as fast as float32.

Queries and decoded rows are rounded to eight bits of mantissa; matrix products accumulate in float32. For few
queries factors are contracted, u^T W v. For many queries a row is decoded once for all of them, in pieces that
stay in the cache.

Shapes: Q queries, B rows, c terms, D = d1 d2, S scales of a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch

from lorif_core.gradients.codes import CodeLayout, LayerSlot
from lorif_core.gradients.quantisation import LEVELS_PER_BYTE, byte_levels
from lorif_core.gradients.shared_tensor import shared_tensor
from lorif_core.search.scoring import FoldedQueries

_BFLOAT16 = torch.bfloat16
_DECODE_FROM = 32  # queries x terms; from here on, decoding a row once is cheaper than contractions
_GPU_SCRATCH = 2**30  # bytes


@dataclass(frozen=True, slots=True)
class _Block:
    """What is computed at once: rows to contract, rows to decode, and numbers of a piece of decoded rows."""

    contracted_rows: int
    decoded_rows: int
    piece_numbers: int


_BLOCKS = {"cpu": _Block(1024, 256, 2**22), "cuda": _Block(2**15, 2**12, 2**27)}
"""A piece stays in the cache of a CPU; on a GPU it is worth the launch of its kernels."""


@dataclass(frozen=True, slots=True)
class BFloat16Queries:
    """Folded queries per layer, (Q, D) bfloat16."""

    weights: tuple[torch.Tensor, ...]

    relative_error: ClassVar[float] = 2.0**-7  # twice the error of rounding the result of a product

    def __reduce__(self) -> tuple[Any, ...]:
        """As int16 arrays, for the reason of `FoldedQueries`; numpy has no bfloat16."""
        return _bfloat16_of, ([weight_QD.view(torch.int16).numpy() for weight_QD in self.weights],)


def _bfloat16_of(arrays: Sequence[np.ndarray]) -> BFloat16Queries:
    return BFloat16Queries(tuple(shared_tensor(array).view(_BFLOAT16) for array in arrays))


@cache
def has_fast_bfloat16() -> bool:
    """Whether this machine's CPU multiplies matrices in bfloat16 faster than in float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _device_and_dtype(query_bytes: int) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the products with queries of a given size.

    A GPU is used if the queries take less than half of its free memory. A machine without fast bfloat16 may
    receive queries from a machine that has it: it multiplies the same numbers in float32.
    """
    if torch.cuda.is_available() and 2 * query_bytes + _GPU_SCRATCH < torch.cuda.mem_get_info()[0]:
        return torch.device("cuda"), _BFLOAT16
    return torch.device("cpu"), _BFLOAT16 if has_fast_bfloat16() else torch.float32


def to_bfloat16(folded: FoldedQueries) -> BFloat16Queries:
    """Folded queries in bfloat16."""
    return BFloat16Queries(tuple(weight_QD.to("cpu", _BFLOAT16) for weight_QD in folded.weights))


class BFloat16Scorer:
    """Prefilter scores of rows of any code."""

    def __init__(self, layout: CodeLayout, queries: BFloat16Queries) -> None:
        self._layout, self._count = layout, len(queries.weights[0])
        self._device, self._dtype = _device_and_dtype(sum(weight_QD.nbytes for weight_QD in queries.weights))
        self._block = _BLOCKS[self._device.type]
        most_terms = max(slot.terms for slot in layout.slots)
        self._uses_contraction = layout.code.kind != "dense" and self._count * most_terms < _DECODE_FROM
        self._weights = [
            self._arrange(weight_QD.to(self._device, self._dtype), slot)
            for weight_QD, slot in zip(queries.weights, layout.slots, strict=True)
        ]
        self._table = None
        if layout.code.dtype in LEVELS_PER_BYTE:
            self._table = byte_levels(layout.code.dtype).to(self._device, self._dtype)
        # reused, since the kernel allocates and clears every page of a new large tensor
        self._float_scratch = torch.empty(0, device=self._device)
        self._scratch = torch.empty(0, device=self._device, dtype=self._dtype)

    def _arrange(self, weight_QD: torch.Tensor, slot: LayerSlot) -> torch.Tensor:
        """(d1, Q d2) if factors are contracted, else (Q, D)."""
        if not self._uses_contraction:
            return weight_QD
        return weight_QD.view(-1, slot.layer.d1, slot.layer.d2).transpose(0, 1).flatten(1)

    def scores(self, codes: torch.Tensor, scales_BS: torch.Tensor) -> torch.Tensor:
        """(Q, B) float32 on the CPU; codes and scales as in `scoring.score_rows`."""
        scores_QB = torch.zeros(self._count, len(codes), device=self._device)
        size = self._contracted_rows() if self._uses_contraction else self._block.decoded_rows
        for start in range(0, len(codes), size):
            chunk = slice(start, start + size)
            chunk_codes, chunk_scales = (part[chunk].to(self._device) for part in (codes, scales_BS))
            for number, slot in enumerate(self._layout.slots):
                scores_QB[:, chunk] += self._layer_scores(chunk_codes, chunk_scales[:, slot.scales], number)
        return scores_QB.cpu()

    def _contracted_rows(self) -> int:
        numbers_per_row = self._count * max(slot.terms * slot.layer.d2 for slot in self._layout.slots)
        return max(1, min(self._block.contracted_rows, self._block.piece_numbers // numbers_per_row))

    def _layer_scores(self, codes: torch.Tensor, scales_Bc: torch.Tensor, number: int) -> torch.Tensor:
        """(Q, B) of one layer."""
        slot, weight = self._layout.slots[number], self._weights[number]
        if self._layout.code.kind == "dense":
            return self._products(weight, self._dense_pieces(codes, slot)) * scales_Bc.T
        u, v = self._factors(codes, slot)
        if self._uses_contraction:
            return self._contracted(u, v, scales_Bc, weight)
        # the largest scale is not rounded: that would bias all numbers of a row in the same direction
        largest_B1 = scales_Bc.abs().amax(dim=1, keepdim=True)
        relative_Bc = (scales_Bc / torch.where(largest_B1 > 0, largest_B1, 1.0)).to(self._dtype)
        return self._products(weight, self._decoded_pieces(u * relative_Bc[:, :, None], v)) * largest_B1.T

    def _contracted(
        self, u: torch.Tensor, v: torch.Tensor, scales_Bc: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """(Q, B) float32 of one layer: sum_k s_k u_k^T W v_k; `weight` is (d1, Q d2)."""
        left = u.reshape(-1, u.shape[2]) @ weight  # (B c, Q d2)
        right = v.reshape(-1, 1, v.shape[2])
        per_term = left.view(len(right), self._count, -1).mul_(right).sum(dim=2, dtype=torch.float32)
        return (per_term.view(len(u), -1, self._count) * scales_Bc[:, :, None]).sum(dim=1).T

    def _products(self, weight_QD: torch.Tensor, pieces: Iterator[torch.Tensor]) -> torch.Tensor:
        """(Q, B) float32 products with decoded rows; a piece is (B, numbers) of consecutive numbers."""
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
        else:  # a direct conversion from float16 to bfloat16 is slow
            levels = codes[:, slot.start : slot.stop].float().to(self._dtype)
        left, terms = slot.middle - slot.start, slot.terms
        return levels[:, :left].unflatten(1, (terms, -1)), levels[:, left:].unflatten(1, (terms, -1))

    def _decoded_pieces(self, u_Bcm: torch.Tensor, v_Bcn: torch.Tensor) -> Iterator[torch.Tensor]:
        """(B, numbers) of sum_k u_k v_k^T, in groups of consecutive rows of that matrix."""
        rows, terms, width = v_Bcn.shape
        for group_Bcm in u_Bcm.split(max(1, self._block.piece_numbers // (rows * width)), dim=2):
            out = self._scratch_of(rows * group_Bcm.shape[2] * width).view(rows, -1, width)
            multiply = torch.mul if terms == 1 else torch.bmm
            yield multiply(group_Bcm.mT, v_Bcn, out=out).view(rows, -1)

    def _dense_pieces(self, codes: torch.Tensor, slot: LayerSlot) -> Iterator[torch.Tensor]:
        """(B, numbers) of G, in groups of consecutive columns of the row layout."""
        per_byte = LEVELS_PER_BYTE.get(self._layout.code.dtype, 1)
        width = max(1, self._block.piece_numbers // len(codes) // per_byte) * per_byte
        for start in range(0, slot.layer.dim, width):
            stop = min(start + width, slot.layer.dim)
            if codes.dtype == torch.uint8:
                first = slot.packed.start
                packed = codes[:, first + start // per_byte : first - (-stop // per_byte)]
                yield self._unpacked(packed, self._scratch_of(packed.numel() * per_byte))[:, : stop - start]
            else:
                yield self._rounded(codes[:, slot.start + start : slot.start + stop])

    def _unpacked(self, packed: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        assert self._table is not None
        shaped = None if out is None else out.view(-1, self._table.shape[1])
        return torch.index_select(self._table, 0, packed.flatten().int(), out=shaped).view(len(packed), -1)

    def _rounded(self, levels: torch.Tensor) -> torch.Tensor:
        if len(self._float_scratch) < levels.numel():
            self._float_scratch = torch.empty(levels.numel(), device=self._device)
        floats = self._float_scratch[: levels.numel()].view(levels.shape).copy_(levels)
        return self._scratch_of(levels.numel()).view(levels.shape).copy_(floats)

    def _scratch_of(self, size: int) -> torch.Tensor:
        if len(self._scratch) < size:
            self._scratch = torch.empty(size, device=self._device, dtype=self._dtype)
        return self._scratch[:size]
