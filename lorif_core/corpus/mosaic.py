"""Reader of MDS, the shards of MosaicML Streaming, without compression or with zstd.

A shard is the number of samples (u32), where they begin and where the last one ends (u32 each), the columns as
JSON, and the samples. A sample is the sizes (u32) of its columns without a fixed size, and the bytes of all.
"""

import json
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from lorif_core.config_sections import BinaryConfig
from lorif_core.corpus.token_bytes import read_array, read_exactly
from lorif_core.errors import DamagedFileError, UserError
from lorif_core.storage.filesystem import SourceFile

MDS_ENDING = ".mds"
COMPRESSED_ENDINGS = tuple(f"{MDS_ENDING}.{kind}" for kind in ("zstd", "br", "bz2", "gz", "snappy"))

_NUMBER = np.dtype("<u4")
_TYPES = {8: "<u1", 9: "<i1", 16: "<u2", 17: "<i2", 32: "<u4", 33: "<i4", 64: "<u8", 65: "<i8"}
_INTEGERS = {np.dtype(code).name: code for code in _TYPES.values()}


@dataclass(frozen=True, slots=True)
class _Shard:
    """Where samples begin and end, (samples + 1,), and (name, encoding, own size or None) of each column."""

    offsets: np.ndarray
    columns: list[tuple[str, str, int | None]]


class MdsReader:
    """Reads the samples of a shard, each as a row.

    Args:
        file: the shard.
        binary: its `dtype` is that of ids in columns of bytes; int64 if it is not set.
    """

    def __init__(self, file: SourceFile, binary: BinaryConfig) -> None:
        self._file, self._dtype = file, binary.dtype

    @property
    def revision(self) -> str:
        """The tag of the file, and the type of ids in bytes if it is set."""
        return self._file.etag if self._dtype is None else f"{self._file.etag}+{self._dtype}"

    def kinds(self) -> dict[str, str]:
        """Kind of each column."""
        with self._open() as raw:
            return {name: _kind(encoding) for name, encoding, _ in self._shard(raw).columns}

    def count(self) -> int:
        """Number of samples."""
        with self._open() as raw:
            return len(self._shard(raw).offsets) - 1

    def read(self, columns: Sequence[str], start: int, rows: int | None) -> Iterator[dict[str, Any]]:
        """The samples, with the columns that the shard has."""
        with self._open() as raw:
            shard = self._shard(raw)
            ends = shard.offsets[start:] if rows is None else shard.offsets[start : start + rows + 1]
            for row, (left, right) in enumerate(zip(ends.tolist(), ends[1:].tolist(), strict=False), start):
                sample = read_exactly(raw, left, right - left, self._file)
                yield self._decode(sample, shard, columns, row)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        compression = posixpath.splitext(self._file.name.lower())[1]
        if compression not in (MDS_ENDING, ".zstd"):
            raise UserError(
                f"{self._file.uri} is compressed, but not with zstd; decompress it, or write it with zstd"
            )
        with self._file.open() as raw:
            if compression == MDS_ENDING:
                yield raw
                return
            with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
                yield stream

    def _shard(self, raw: Any) -> _Shard:
        (samples,) = read_array(raw, 0, _NUMBER, 1, self._file).tolist()
        is_plain, head = self._file.name.lower().endswith(MDS_ENDING), _NUMBER.itemsize * (samples + 2)
        if is_plain and head > self._file.size:
            raise self._not_a_shard()
        offsets = read_array(raw, _NUMBER.itemsize, _NUMBER, samples + 1, self._file).astype(np.int64)
        if offsets[0] < head or (np.diff(offsets) < 0).any():
            raise self._not_a_shard()
        if is_plain and offsets[-1] > self._file.size:
            raise DamagedFileError(
                f"{self._file.uri} is cut off: it has {self._file.size} bytes and needs {offsets[-1]}; restore it"
            )
        text = read_exactly(raw, head, int(offsets[0]) - head, self._file)
        try:
            config = json.loads(text)
            names = zip(config["column_names"], config["column_encodings"], config["column_sizes"], strict=True)
            return _Shard(offsets, list(names))
        except (ValueError, KeyError, TypeError):
            raise self._not_a_shard() from None

    def _not_a_shard(self) -> UserError:
        return UserError(f"{self._file.uri} is not an MDS shard although its name says so; restore or remove it")

    def _decode(self, sample: bytes, shard: _Shard, columns: Sequence[str], row: int) -> dict[str, Any]:
        place, values = _NUMBER.itemsize * sum(size is None for *_, size in shard.columns), dict[str, Any]()
        sizes = iter(np.frombuffer(sample[:place], _NUMBER, len(sample[:place]) // _NUMBER.itemsize).tolist())
        for name, encoding, own_size in shard.columns:
            size = next(sizes, 0) if own_size is None else own_size
            if name in columns:
                try:
                    values[name] = self._value(encoding, sample[place : place + size])
                except (ValueError, IndexError, KeyError):
                    raise UserError(
                        f"row {row} of {self._file.uri} has {size} bytes in the column {name!r}, which are no "
                        f"{self._dtype or encoding}; correct it, or set corpus.binary.dtype"
                    ) from None
            place += size
        if place != len(sample):
            raise DamagedFileError(f"{self._file.uri} is damaged in row {row}; restore it")
        return values

    def _value(self, encoding: str, value: bytes) -> Any:
        if encoding == "str":
            return value.decode()
        if encoding == "bytes":
            return np.frombuffer(value, np.dtype(self._dtype or "int64").newbyteorder("<"))
        base, dtype, shape = (*encoding.split(":"), "", "")[:3]
        if base != "ndarray":
            return int(np.frombuffer(value, _INTEGERS.get(encoding, "<i8"))[0])
        code, rest = (_INTEGERS[dtype], value) if dtype else (_TYPES[value[0]], value[1:])
        if not shape:  # number of dimensions times 4, plus the logarithm of the bytes of each size
            rest = rest[1 + (rest[0] >> 2) * (1 << rest[0] % 4) :]
        return np.frombuffer(rest, code)


def _kind(encoding: str) -> str:
    if encoding in ("str", "bytes"):
        return "text" if encoding == "str" else "integers"
    if encoding == "int" or encoding in _INTEGERS:
        return "integer"
    base, dtype, _ = (*encoding.split(":"), "", "")[:3]
    return "integers" if base == "ndarray" and (not dtype or dtype in _INTEGERS) else encoding
