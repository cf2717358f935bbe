"""Sums over packed signs by counting bits; needs numba (the extra `fast`).

Sums are integers, so they equal the matrix products of `sign_prefilter` exactly.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import intrinsic

from lorif_core.gradients.quantisation import packed_bytes

_PLANES = 4
_WORD_BYTES = 8
_ROWS_PER_STEP = 4
_ROWS_PER_BLOCK = 16  # their words of one layer stay in the cache while all queries are counted


class BitCounter:
    """Sums of the queries' integers over the signs of stored rows.

    Args:
        levels: integers (Q, D) int8 of each layer, from -8 to 7.
        starts: first byte of each layer within a row.
    """

    def __init__(self, levels: Sequence[torch.Tensor], starts: Sequence[int]) -> None:
        layers = [_Planes(integers.numpy(), start) for integers, start in zip(levels, starts, strict=True)]
        self._planes = np.concatenate([layer.words for layer in layers], axis=2)  # (Q, 4, words of all layers)
        sizes = [layer.words.shape[2] for layer in layers]
        # per layer: its first word in a row, its first word in a plane, its number of words
        firsts = [layer.first_word for layer in layers]
        self._spans = np.stack([firsts, np.cumsum([0, *sizes[:-1]]), sizes], axis=1).astype(np.int64)
        self._totals = [layer.totals_Q for layer in layers]

    def sums(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """< n, row > of each layer, (Q, B) int64; codes (B, bytes) uint8 as stored."""
        words = _as_words(codes)
        sums = np.empty((len(self._totals), len(self._planes), len(words)), np.int64)
        parts = max(1, min(torch.get_num_threads(), len(words) // _ROWS_PER_BLOCK))
        edges = np.linspace(0, len(words), parts + 1).astype(int).tolist()

        def count(start: int, stop: int) -> None:
            _count(words, self._spans, self._planes, sums, start, stop)

        if parts == 1:
            count(0, len(words))
        else:
            list(_threads().map(count, edges, edges[1:]))
        pairs = zip(sums, self._totals, strict=True)
        return [torch.from_numpy(2 * sums_QB - totals_Q[:, None]) for sums_QB, totals_Q in pairs]


class _Planes:
    """Bit planes (Q, 4, words) of integers, aligned with the words of a row that the layer spans."""

    def __init__(self, levels_QD: np.ndarray, first_byte: int) -> None:
        self.first_word, offset = divmod(first_byte, _WORD_BYTES)
        size = packed_bytes(levels_QD.shape[1], "sign")
        packed = np.zeros((len(levels_QD), _PLANES, -(-(offset + size) // _WORD_BYTES) * _WORD_BYTES), np.uint8)
        for plane in range(_PLANES):
            bits = (levels_QD >> plane) & 1
            packed[:, plane, offset : offset + size] = np.packbits(bits, axis=1, bitorder="little")
        self.words = packed.view("<u8")
        self.totals_Q = levels_QD.sum(axis=1, dtype=np.int64)


@cache
def _threads() -> ThreadPoolExecutor:
    """A pool of our own: some threading layers of numba are not safe to enter from two threads."""
    return ThreadPoolExecutor(torch.get_num_threads())


def _as_words(codes: torch.Tensor) -> np.ndarray:
    """(B, words) uint64: a view if rows are aligned whole words, else a copy padded with zeros."""
    array = codes.numpy()
    if array.flags.c_contiguous and array.shape[1] % _WORD_BYTES == 0 and array.ctypes.data % _WORD_BYTES == 0:
        return array.view("<u8")
    padded = np.zeros((len(array), -(-array.shape[1] // _WORD_BYTES) * _WORD_BYTES), np.uint8)
    padded[:, : array.shape[1]] = array
    return padded.view("<u8")


@intrinsic
def _popcount(typing_context: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return numba.types.uint64(numba.types.uint64), generate


@numba.njit(nogil=True, boundscheck=False)
def _count_layer_bits(words, first, p0, p1, p2, p3, sums, start, stop):  # type: ignore[no-untyped-def]
    """Count for one layer and one query, four rows per step, so that a plane is read once for four rows."""
    size = len(p0)
    for row in range(start, stop, _ROWS_PER_STEP):
        # the last step may count a row several times, with the same result
        r0, r1, r2, r3 = row, min(row + 1, stop - 1), min(row + 2, stop - 1), min(row + 3, stop - 1)
        x0, x1 = words[r0, first : first + size], words[r1, first : first + size]
        x2, x3 = words[r2, first : first + size], words[r3, first : first + size]
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.uint64(0)
        c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = np.uint64(0)
        for word_index in range(size):
            q0, q1, q2, q3 = p0[word_index], p1[word_index], p2[word_index], p3[word_index]
            word = x0[word_index]
            a0 += _popcount(word & q0)
            a1 += _popcount(word & q1)
            a2 += _popcount(word & q2)
            a3 += _popcount(word & q3)
            word = x1[word_index]
            b0 += _popcount(word & q0)
            b1 += _popcount(word & q1)
            b2 += _popcount(word & q2)
            b3 += _popcount(word & q3)
            word = x2[word_index]
            c0 += _popcount(word & q0)
            c1 += _popcount(word & q1)
            c2 += _popcount(word & q2)
            c3 += _popcount(word & q3)
            word = x3[word_index]
            d0 += _popcount(word & q0)
            d1 += _popcount(word & q1)
            d2 += _popcount(word & q2)
            d3 += _popcount(word & q3)
        sums[r0] = np.int64(a0 + 2 * a1 + 4 * a2) - 8 * np.int64(a3)
        sums[r1] = np.int64(b0 + 2 * b1 + 4 * b2) - 8 * np.int64(b3)
        sums[r2] = np.int64(c0 + 2 * c1 + 4 * c2) - 8 * np.int64(c3)
        sums[r3] = np.int64(d0 + 2 * d1 + 4 * d2) - 8 * np.int64(d3)


@numba.njit(
    "void(uint64[:, ::1], int64[:, ::1], uint64[:, :, ::1], int64[:, :, ::1], int64, int64)",
    nogil=True,
    boundscheck=False,
)
def _count(words, spans, planes, sums, start, stop):  # type: ignore[no-untyped-def]
    """Sums over the set bits of rows [start, stop): blocks of rows, then layers, then queries."""
    block_rows = _ROWS_PER_STEP if len(planes) == 1 else _ROWS_PER_BLOCK
    for block in range(start, stop, block_rows):
        end = min(block + block_rows, stop)
        for layer in range(len(spans)):
            first, plane, size = spans[layer]
            for query in range(len(planes)):
                p0, p1 = planes[query, 0, plane : plane + size], planes[query, 1, plane : plane + size]
                p2, p3 = planes[query, 2, plane : plane + size], planes[query, 3, plane : plane + size]
                _count_layer_bits(words, first, p0, p1, p2, p3, sums[layer, query], block, end)
