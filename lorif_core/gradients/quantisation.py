"""Levels: the numbers a code consists of, in the dtype that it is stored in, and how they lie in bytes.

A float dtype keeps levels of unit RMS, so that float16 neither under- nor overflows. `int8` and `int4` keep whole
numbers in [-127, 127] and [-7, 7], `sign` keeps +-1. Each column has one scale, the best in the least squares.
"""

import torch

PER_BYTE = {"int4": 2, "sign": 8}  # levels in a byte; the dtypes that are not here are not packed
_LARGEST = {"int8": 127, "int4": 7}
_CLIP_RMS = {"int8": 12.0, "int4": 3.0}  # beyond it an outlier costs less than coarser steps for all others
TINY = 1e-30  # no division by zero


def is_float(dtype: str) -> bool:
    """Whether levels are kept as they are, up to rounding."""
    return dtype.startswith("float")


def quantise(x_Bnc: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels (B, n, c) and scales (B, c) >= 0, levels * scale ~ x, column by column; of a zero column 0."""
    largest = x_Bnc.abs().amax(dim=1, keepdim=True)
    unit = x_Bnc / largest.clamp_min(TINY)  # squares of small numbers underflow
    if dtype == "sign":
        return signs(unit), (unit.abs().mean(dim=1, keepdim=True) * largest)[:, 0]
    rms = unit.square().mean(dim=1, keepdim=True).sqrt()
    if is_float(dtype):
        return torch.where(rms > 0, unit / rms.clamp_min(TINY), 0.0), (rms * largest)[:, 0]
    limit = torch.minimum(unit.abs().amax(dim=1, keepdim=True), _CLIP_RMS[dtype] * rms).clamp_min(TINY)
    levels = (unit * (_LARGEST[dtype] / limit)).round().clamp(-_LARGEST[dtype], _LARGEST[dtype])
    fitted = (unit * levels).sum(dim=1, keepdim=True) / levels.square().sum(dim=1, keepdim=True).clamp_min(1.0)
    return levels, (fitted * largest)[:, 0]


def signs(x: torch.Tensor) -> torch.Tensor:
    """+-1, +1 for zero."""
    return torch.where(x < 0, -1.0, 1.0).to(x)


def packed_bytes(levels: int, dtype: str) -> int:
    """Bytes that some levels of one slot take if they are packed; as many as levels if not."""
    return -(-levels // PER_BYTE.get(dtype, 1))


def pack(levels_Bn: torch.Tensor, dtype: str) -> torch.Tensor:
    """(B, packed_bytes) uint8: `sign` a bit each, 1 for +1; `int4` half a byte, level + 8; first ones lowest."""
    per_byte = PER_BYTE[dtype]
    bits = 8 // per_byte
    whole = (levels_Bn > 0).to(torch.uint8) if dtype == "sign" else (levels_Bn + 8).to(torch.uint8)
    padded = torch.nn.functional.pad(whole, (0, -whole.shape[1] % per_byte)).view(len(whole), -1, per_byte)
    packed = torch.zeros_like(padded[:, :, 0])
    for place in range(per_byte):
        packed |= padded[:, :, place] << (bits * place)
    return packed


def unpack(packed_Bm: torch.Tensor, dtype: str, levels: int) -> torch.Tensor:
    """(B, levels) float32 from packed bytes: one look-up a byte in a table of all 256 of them."""
    table = byte_levels(dtype).to(packed_Bm.device)
    return torch.nn.functional.embedding(packed_Bm.int(), table).flatten(1)[:, :levels]


def byte_levels(dtype: str) -> torch.Tensor:
    """(256, levels in a byte) float32: what each byte holds."""
    if dtype not in _TABLES:
        bits = 8 // PER_BYTE[dtype]
        parts = torch.stack([(torch.arange(256) >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], dim=1)
        _TABLES[dtype] = (parts * 2 - 1 if dtype == "sign" else parts - 8).float()
    return _TABLES[dtype]


_TABLES: dict[str, torch.Tensor] = {}
