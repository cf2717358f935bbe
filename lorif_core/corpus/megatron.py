"""Reader of Megatron-LM's indexed datasets: tokens in `.bin`, and in `.idx` where its documents begin.

The index is `MMIDIDX`, two zero bytes, version (u64, 1), code of the type of the ids (u8), number of sequences
(u64), number of borders of documents (u64), then the lengths of the sequences in tokens (int32), their places in
`.bin` in bytes (int64), and for each border the number of the first sequence after it (int64). Rows are documents.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorif_core.corpus.token_bytes import COLUMN, beside, read_array, read_exactly, token_record
from lorif_core.errors import DamagedFileError, UserError
from lorif_core.storage.filesystem import SourceFile

INDEX_ENDING = ".idx"

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_LENGTH, _PLACE = np.dtype("<i4"), np.dtype("<i8")
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class _Index:
    """Type of the ids, number of documents, and the bytes of the index at which its three lists begin."""

    dtype: np.dtype
    sequences: int
    documents: int

    @property
    def places(self) -> int:
        return _HEADER.size + self.sequences * _LENGTH.itemsize

    @property
    def borders(self) -> int:
        return self.places + self.sequences * _PLACE.itemsize

    @property
    def size(self) -> int:
        return self.borders + (self.documents + 1) * _PLACE.itemsize


class MegatronReader:
    """Reads the documents of a `.bin` file that has its `.idx` beside it."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file

    @property
    def revision(self) -> str:
        """The tags of both files."""
        return f"{self._file.etag}+{beside(self._file, INDEX_ENDING).etag}"

    def kinds(self) -> dict[str, str]:
        """One column of tokens."""
        return {COLUMN: "integers"}

    def count(self) -> int:
        """Number of documents. Raises DamagedFileError unless the index describes the whole of the file."""
        index_file = beside(self._file, INDEX_ENDING)
        with index_file.open() as raw:
            index = _read_index(raw, index_file)
            described = 0
            if index.sequences:
                last = index.sequences - 1
                (length,) = read_array(raw, _HEADER.size + last * _LENGTH.itemsize, _LENGTH, 1, index_file)
                (place,) = read_array(raw, index.places + last * _PLACE.itemsize, _PLACE, 1, index_file)
                described = int(place) + int(length) * index.dtype.itemsize
        if described != self._file.size:
            raise DamagedFileError(
                f"{self._file.uri} has {self._file.size} bytes, but {index_file.uri} describes {described}; "
                f"restore both files"
            )
        return index.documents

    def read(self, columns: Sequence[str], start: int, rows: int | None) -> Iterator[dict[str, Any]]:
        """The documents, each as one row."""
        index_file = beside(self._file, INDEX_ENDING)
        with index_file.open() as raw, self._file.open() as tokens:
            index = _read_index(raw, index_file)
            stop = index.documents if rows is None else min(start + rows, index.documents)
            for first in range(start, stop, _ROWS_AT_ONCE):
                count = min(_ROWS_AT_ONCE, stop - first)
                borders = read_array(raw, index.borders + first * _PLACE.itemsize, _PLACE, count + 1, index_file)
                if borders[0] < 0 or borders[-1] > index.sequences or (np.diff(borders) < 0).any():
                    raise DamagedFileError(f"{index_file.uri} has borders of documents out of order; restore it")
                begin, sequences = int(borders[0]), int(borders[-1] - borders[0])
                lengths = read_array(raw, _HEADER.size + begin * _LENGTH.itemsize, _LENGTH, sequences, index_file)
                places = read_array(raw, index.places + begin * _PLACE.itemsize, _PLACE, sequences, index_file)
                if (lengths < 0).any() or (places < 0).any():
                    raise DamagedFileError(f"{index_file.uri} has a negative length or place; restore it")
                for left, right in zip(borders - begin, borders[1:] - begin, strict=False):
                    parts = [
                        read_array(tokens, int(places[k]), index.dtype, int(lengths[k]), self._file)
                        for k in range(left, right)
                    ]
                    ids = np.concatenate(parts) if parts else np.zeros(0, index.dtype)
                    yield token_record(ids, tuple(columns))


def _read_index(raw: Any, file: SourceFile) -> _Index:
    """The header of an index. Raises UserError or DamagedFileError for another or a damaged file."""
    head = read_exactly(raw, 0, min(len(_MAGIC), file.size), file)
    if not _MAGIC.startswith(head):
        raise UserError(
            f"{file.uri} is not the index of a Megatron dataset, which begins with MMIDIDX; rename it, or set "
            f"corpus.binary.dtype to read the .bin beside it as a flat file"
        )
    _, version, code, sequences, borders = _HEADER.unpack(read_exactly(raw, 0, _HEADER.size, file))
    if version != 1:
        raise UserError(f"{file.uri} has version {version} of Megatron's format; only version 1 is supported")
    if code not in _TYPES:
        raise UserError(f"{file.uri} has values of type {code}, which is none of token ids; name another dataset")
    index = _Index(np.dtype(_TYPES[code]), sequences, max(borders - 1, 0))
    if borders and file.size < index.size:
        raise DamagedFileError(
            f"{file.uri} is cut off: it has {file.size} bytes and needs {index.size}; restore it"
        )
    return index
