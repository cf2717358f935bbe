"""Sums over packed signs by counting bits; needs numba (the extra `fast`).

Sums are whole numbers, so they equal those of the product of matrices in `coarse`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import intrinsic

from lorif_core.levels import packed_bytes

_PLANES = 4
_WORD = 8  # bytes
_ROWS_AT_ONCE = 16  # stay in the cache while every query sees them


class BitCounter:
    """Sums of the layers' whole numbers over the signs of stored rows.

    Args:
        levels: per layer (Q, D) int8, from -8 to 7.
        starts: first byte of every layer within a row.
    """

    def __init__(self, levels: Sequence[torch.Tensor], starts: Sequence[int]) -> None:
        self._layers = [_Planes(one.numpy(), start) for one, start in zip(levels, starts, strict=True)]

    def sums(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """Per layer (Q, B) int64; codes (B, bytes) uint8 as they are stored."""
        words = _as_words(codes)
        found = [np.empty((len(layer.totals_Q), len(words)), np.int64) for layer in self._layers]
        parts = max(1, min(torch.get_num_threads(), len(words) // _ROWS_AT_ONCE))
        edges = np.linspace(0, len(words), parts + 1).astype(int).tolist()

        def count(start: int, stop: int) -> None:
            for layer, sums in zip(self._layers, found, strict=True):
                _count(words, layer.first_word, layer.words, sums, start, stop)

        if parts == 1:
            count(0, len(words))
        else:
            list(_threads().map(count, edges, edges[1:]))
        pairs = zip(found, self._layers, strict=True)
        return [torch.from_numpy(2 * sums - layer.totals_Q[:, None]) for sums, layer in pairs]


class _Planes:
    """Bit planes (Q, 4, words) of whole numbers, as their bits lie below those of the words of a row."""

    def __init__(self, levels_QD: np.ndarray, first_byte: int) -> None:
        self.first_word, before = divmod(first_byte, _WORD)
        size = packed_bytes(levels_QD.shape[1], "sign")
        packed = np.zeros((len(levels_QD), _PLANES, -(-(before + size) // _WORD) * _WORD), np.uint8)
        for plane in range(_PLANES):
            bits = (levels_QD >> plane) & 1
            packed[:, plane, before : before + size] = np.packbits(bits, axis=1, bitorder="little")
        self.words = packed.view("<u8")
        self.totals_Q = levels_QD.sum(axis=1, dtype=np.int64)


@cache
def _threads() -> ThreadPoolExecutor:
    """Ours: of numba's own layers of threads some may not be entered by two at once."""
    return ThreadPoolExecutor(torch.get_num_threads())


def _as_words(codes: torch.Tensor) -> np.ndarray:
    """(B, words) uint64: the rows as they are if they are whole words, else padded with zeros."""
    array = codes.numpy()
    if array.flags.c_contiguous and array.shape[1] % _WORD == 0 and array.ctypes.data % _WORD == 0:
        return array.view("<u8")
    padded = np.zeros((len(array), -(-array.shape[1] // _WORD) * _WORD), np.uint8)
    padded[:, : array.shape[1]] = array
    return padded.view("<u8")


@intrinsic
def _popcount(typing_context: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return numba.types.uint64(numba.types.uint64), generate


@numba.njit(
    "void(uint64[:, ::1], int64, uint64[:, :, ::1], int64[:, ::1], int64, int64)",
    nogil=True,
    boundscheck=False,
)
def _count(words, first, planes, sums, start, stop):  # type: ignore[no-untyped-def]
    """Sums over the bits that are set, for rows [start, stop), four at a time: a plane is read once for four."""
    size = planes.shape[2]
    for block in range(start, stop, _ROWS_AT_ONCE):
        end = min(block + _ROWS_AT_ONCE, stop)
        for query in range(planes.shape[0]):
            p0, p1, p2, p3 = planes[query, 0], planes[query, 1], planes[query, 2], planes[query, 3]
            for row in range(block, end, 4):
                # of the last rows some are counted again, to the same numbers
                r0, r1, r2, r3 = row, min(row + 1, end - 1), min(row + 2, end - 1), min(row + 3, end - 1)
                x0, x1 = words[r0, first : first + size], words[r1, first : first + size]
                x2, x3 = words[r2, first : first + size], words[r3, first : first + size]
                a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.uint64(0)
                c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = np.uint64(0)
                for place in range(size):
                    q0, q1, q2, q3 = p0[place], p1[place], p2[place], p3[place]
                    word = x0[place]
                    a0 += _popcount(word & q0)
                    a1 += _popcount(word & q1)
                    a2 += _popcount(word & q2)
                    a3 += _popcount(word & q3)
                    word = x1[place]
                    b0 += _popcount(word & q0)
                    b1 += _popcount(word & q1)
                    b2 += _popcount(word & q2)
                    b3 += _popcount(word & q3)
                    word = x2[place]
                    c0 += _popcount(word & q0)
                    c1 += _popcount(word & q1)
                    c2 += _popcount(word & q2)
                    c3 += _popcount(word & q3)
                    word = x3[place]
                    d0 += _popcount(word & q0)
                    d1 += _popcount(word & q1)
                    d2 += _popcount(word & q2)
                    d3 += _popcount(word & q3)
                sums[query, r0] = np.int64(a0 + 2 * a1 + 4 * a2) - 8 * np.int64(a3)
                sums[query, r1] = np.int64(b0 + 2 * b1 + 4 * b2) - 8 * np.int64(b3)
                sums[query, r2] = np.int64(c0 + 2 * c1 + 4 * c2) - 8 * np.int64(c3)
                sums[query, r3] = np.int64(d0 + 2 * d1 + 4 * d2) - 8 * np.int64(d3)
