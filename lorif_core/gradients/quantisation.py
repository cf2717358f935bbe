"""Quantisation of codes to levels of a stored dtype, and packing of levels into bytes.

Levels of a float dtype have unit RMS, so that float16 neither underflows nor overflows. Levels of `int8` and
`int4` are integers in [-127, 127] and [-7, 7], those of `sign` are +-1. Each column has one scale, fitted by least
squares.
"""

from functools import cache

import numpy as np
import torch

LEVELS_PER_BYTE = {"int4": 2, "sign": 8}  # levels of the other dtypes are not packed
_LARGEST = {"int8": 127, "int4": 7}
_CLIP_RMS = {"int8": 12.0, "int4": 3.0}  # clipping an outlier costs less than coarser steps for all other levels
TINY = 1e-30  # lower bound of divisors
_CPU = torch.device("cpu")


def is_float(dtype: str) -> bool:
    """Whether levels are stored as floats, exact up to rounding."""
    return dtype.startswith("float")


def quantise(x_Bnc: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels (B, n, c) and scales (B, c) >= 0 with levels * scale ~ x per column; a zero column has scale 0."""
    if dtype == "sign":
        return signs(x_Bnc), x_Bnc.abs().mean(dim=1)
    largest = x_Bnc.abs().amax(dim=1, keepdim=True)
    unit = x_Bnc / largest.clamp_min(TINY)  # squares of small numbers would underflow
    rms = unit.square().mean(dim=1, keepdim=True).sqrt()
    if is_float(dtype):
        return torch.where(rms > 0, unit / rms.clamp_min(TINY), 0.0), (rms * largest)[:, 0]
    limit = torch.minimum(unit.abs().amax(dim=1, keepdim=True), _CLIP_RMS[dtype] * rms).clamp_min(TINY)
    levels = (unit * (_LARGEST[dtype] / limit)).round().clamp(-_LARGEST[dtype], _LARGEST[dtype])
    fitted = (unit * levels).sum(dim=1, keepdim=True) / levels.square().sum(dim=1, keepdim=True).clamp_min(1.0)
    return levels, (fitted * largest)[:, 0]


def signs(x: torch.Tensor) -> torch.Tensor:
    """+-1, +1 for zero."""
    return torch.ones((), dtype=x.dtype, device=x.device).copysign(x + 0.0)  # -0.0 + 0.0 is 0.0


def packed_bytes(levels: int, dtype: str) -> int:
    """Bytes of so many levels of one slot if the dtype is packed; else the number of levels."""
    return -(-levels // LEVELS_PER_BYTE.get(dtype, 1))


def pack(levels_Bn: torch.Tensor, dtype: str) -> torch.Tensor:
    """(B, packed_bytes) uint8, lowest bits first: `sign` as one bit, 1 for +1; `int4` as four bits, level + 8."""
    per_byte = LEVELS_PER_BYTE[dtype]
    if dtype == "sign" and levels_Bn.device.type == "cpu":
        return torch.from_numpy(np.packbits(levels_Bn.numpy() > 0, axis=1, bitorder="little"))
    bits = 8 // per_byte
    unsigned = (levels_Bn > 0).to(torch.uint8) if dtype == "sign" else (levels_Bn + 8).to(torch.uint8)
    padding = -unsigned.shape[1] % per_byte
    padded = torch.nn.functional.pad(unsigned, (0, padding)).view(len(unsigned), -1, per_byte)
    packed = torch.zeros_like(padded[:, :, 0])
    for position in range(per_byte):
        packed |= padded[:, :, position] << (bits * position)
    return packed


def unpack(packed_Bm: torch.Tensor, dtype: str, levels: int) -> torch.Tensor:
    """(B, levels) float32 from packed bytes, by one look-up per byte in a table of all 256 bytes."""
    table = byte_levels(dtype, packed_Bm.device)
    return torch.nn.functional.embedding(packed_Bm.int(), table).flatten(1)[:, :levels]


@cache
def byte_levels(dtype: str, device: torch.device = _CPU) -> torch.Tensor:
    """(256, levels per byte) float32: the levels that each byte encodes."""
    bits = 8 // LEVELS_PER_BYTE[dtype]
    fields = torch.stack([(torch.arange(256) >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], dim=1)
    return (fields * 2 - 1 if dtype == "sign" else fields - 8).float().to(device)
