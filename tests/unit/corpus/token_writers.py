"""Writes files of token ids byte by byte, as the published formats of Megatron-LM and MosaicML Streaming say.

Both libraries need packages that contradict those of this project. The files are equal to theirs, byte for byte:
`IndexedDatasetBuilder` of megatron-core 0.16.1, and `MDSWriter` of mosaicml-streaming 0.13.0.
"""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

MEGATRON_CODES = {
    "uint8": 1,
    "int8": 2,
    "int16": 3,
    "int32": 4,
    "int64": 5,
    "float64": 6,
    "float32": 7,
    "uint16": 8,
}
Documents = Sequence[Sequence[Sequence[int]]]


def write_megatron(path: Path, documents: Documents, dtype: str = "uint16") -> Path:
    """`path` ends in .bin; each document is a list of sequences."""
    sequences = [np.array(sequence, dtype) for document in documents for sequence in document]
    path.write_bytes(b"".join(sequence.tobytes() for sequence in sequences))
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    places = np.r_[0, np.cumsum(lengths, dtype=np.int64)[:-1]][: len(sequences)] * np.dtype(dtype).itemsize
    borders = np.cumsum([0, *map(len, documents)])
    head = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, MEGATRON_CODES[dtype], len(sequences), len(borders))
    parts = [head, lengths.tobytes(), places.astype(np.int64).tobytes(), borders.astype(np.int64).tobytes()]
    path.with_suffix(".idx").write_bytes(b"".join(parts))
    return path


def write_mds(path: Path, columns: dict[str, str], rows: Sequence[dict[str, Any]]) -> Path:
    """One shard; `path` ends in .mds or .mds.zstd, `columns` has the encoding of each column."""
    names = sorted(columns)
    sizes = [8 if columns[name] == "int" else _own_size(columns[name]) for name in names]
    settings = {
        "column_encodings": [columns[name] for name in names], "column_names": names, "column_sizes": sizes,
        "compression": "zstd" if path.suffix == ".zstd" else None, "format": "mds", "hashes": [],
        "size_limit": 2**26, "version": 2,
    }  # fmt: skip
    config = json.dumps(settings, sort_keys=True).encode()
    samples = []
    for row in rows:
        values = [_encoded(columns[name], row[name]) for name in names]
        free = [len(value) for value, size in zip(values, sizes, strict=True) if size is None]
        samples.append(np.array(free, np.uint32).tobytes() + b"".join(values))
    offsets = np.cumsum([4 + 4 * (len(rows) + 1) + len(config), *map(len, samples)]).astype(np.uint32)
    shard = np.uint32(len(rows)).tobytes() + offsets.tobytes() + config + b"".join(samples)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.compress(shard) if path.suffix == ".zstd" else shard)
    return path


def _own_size(encoding: str) -> int | None:
    base, dtype, shape = (*encoding.split(":"), "", "")[:3]
    if base != "ndarray" or not (dtype and shape):
        return None
    return int(np.prod([int(size) for size in shape.split(",")])) * np.dtype(dtype).itemsize


def _encoded(encoding: str, value: Any) -> bytes:
    if encoding in ("str", "bytes", "int"):
        return {"str": str.encode, "bytes": bytes, "int": lambda number: np.int64(number).tobytes()}[encoding](
            value
        )
    base, dtype, shape = (*encoding.split(":"), "", "")[:3]
    assert base == "ndarray"
    codes = {"uint8": 8, "uint16": 16, "uint32": 32, "int32": 33, "int64": 65}
    parts = b"" if dtype else bytes([codes[value.dtype.name]])
    if not shape:
        logarithm = 0 if value.size < 2**8 else 1
        parts += bytes([value.ndim << 2 | logarithm])
        parts += np.array(value.shape, np.uint8 if logarithm == 0 else np.uint16).tobytes()
    return parts + value.tobytes()
