"""Reader of flat files of token ids: `.npy`, or `.bin` with nothing but ids.

Rows are those of an array of two dimensions. A flat sequence of ids is cut into rows of `corpus.binary.length`
tokens, or at the offsets of the file beside it.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lorif_core.config_sections import BinaryConfig
from lorif_core.corpus.token_bytes import COLUMN, beside, read_array, token_record
from lorif_core.errors import DamagedFileError, UserError
from lorif_core.storage.filesystem import SourceFile

_MAGIC = b"\x93NUMPY"
_OFFSET_TYPE = np.dtype("<i8")  # of a file of offsets that is not .npy
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class _Array:
    """Integers in a file: their type, the byte of the first, how many, and how many a row has, if it says so."""

    dtype: np.dtype
    start: int
    total: int
    width: int | None


class FlatReader:
    """Reads the rows of a flat file."""

    def __init__(self, file: SourceFile, binary: BinaryConfig) -> None:
        self._file, self._binary = file, binary

    @property
    def revision(self) -> str:
        """The tag of the file and that of its offsets, and the layout."""
        binary = self._binary
        offsets = "" if binary.offsets is None else f"+{beside(self._file, binary.offsets).etag}"
        return f"{self._file.etag}{offsets}+{binary.dtype or 'npy'}x{binary.length or 'row'}"

    def kinds(self) -> dict[str, str]:
        """One column of tokens."""
        return {COLUMN: "integers"}

    def count(self) -> int:
        """Number of rows; the last one may be shorter."""
        with self._file.open() as raw:
            array = self._array(raw)
        if self._binary.offsets is not None:
            return self._offsets(array, 0, None)[0]
        return -(-array.total // self._length(array))

    def read(self, columns: Sequence[str], start: int, rows: int | None) -> Iterator[dict[str, Any]]:
        """The rows, each with all of its tokens."""
        with self._file.open() as raw:
            array = self._array(raw)
            for left, right in self._bounds(array, start, rows):
                place = array.start + left * array.dtype.itemsize
                yield token_record(read_array(raw, place, array.dtype, right - left, self._file), tuple(columns))

    def _bounds(self, array: _Array, start: int, rows: int | None) -> Iterator[tuple[int, int]]:
        """First token of each row, and the one after its last."""
        count = self.count()
        stop = count if rows is None else min(start + rows, count)
        if self._binary.offsets is None:
            length = self._length(array)
            yield from ((row * length, min((row + 1) * length, array.total)) for row in range(start, stop))
            return
        for first in range(start, stop, _ROWS_AT_ONCE):
            _, borders = self._offsets(array, first, min(_ROWS_AT_ONCE, stop - first))
            yield from pairwise(borders)

    def _length(self, array: _Array) -> int:
        length = array.width or self._binary.length
        if length is None:
            raise UserError(
                f"{self._file.uri} is one sequence of {array.total:,} tokens; set corpus.binary.length to the "
                f"tokens of a row, or corpus.binary.offsets to the ending of the file that says where they begin"
            )
        return length

    def _offsets(self, array: _Array, first: int, rows: int | None) -> tuple[int, list[int]]:
        """Number of rows, and with `rows` the borders of that many rows from row `first`."""
        assert self._binary.offsets is not None
        file = beside(self._file, self._binary.offsets)
        with file.open() as raw:
            offsets = _read_header(raw, file, _OFFSET_TYPE)
            if not offsets.total:
                return 0, []

            def values(begin: int, count: int) -> list[int]:
                place = offsets.start + begin * offsets.dtype.itemsize
                return [int(value) for value in read_array(raw, place, offsets.dtype, count, file)]

            ((zero,), (end,)) = values(0, 1), values(offsets.total - 1, 1)
            # both forms are common: with the end of the last row, and without
            count = offsets.total - 1 if end == array.total else offsets.total
            borders = [] if rows is None else values(first, min(rows + 1, offsets.total - first))
            if len(borders) == rows:
                borders.append(array.total)
        if zero != 0 or end > array.total or any(b < a for a, b in pairwise(borders)):
            raise UserError(
                f"{file.uri} does not fit {self._file.uri} of {array.total:,} tokens: its offsets must begin with "
                f"0, ascend, and count tokens; correct it"
            )
        return count, borders

    def _array(self, raw: Any) -> _Array:
        dtype = None if self._binary.dtype is None else np.dtype(self._binary.dtype).newbyteorder("<")
        return _read_header(raw, self._file, dtype)


def _read_header(raw: Any, file: SourceFile, dtype: np.dtype | None) -> _Array:
    """The array of a file: as its header says, or without a header values of `dtype` only."""
    raw.seek(0)
    if raw.read(len(_MAGIC)) == _MAGIC:
        raw.seek(0)
        try:
            read_header = {
                1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0,
            }[np.lib.format.read_magic(raw)[0]]  # fmt: skip
            shape, by_columns, dtype = read_header(raw)
        except (ValueError, KeyError, struct.error) as error:
            raise DamagedFileError(f"{file.uri} has a damaged header ({error}); restore it") from None
        if dtype.kind not in "iu" or len(shape) not in (1, 2) or (by_columns and len(shape) == 2):
            raise UserError(
                f"{file.uri} holds {dtype} of shape {shape}{' by columns' if by_columns else ''}; save integers "
                f"in one dimension, or in two by rows"
            )
        array = _Array(dtype, raw.tell(), int(np.prod(shape)), int(shape[1]) if len(shape) == 2 else None)
        needed = array.start + array.total * dtype.itemsize
        if file.size < needed:
            raise DamagedFileError(f"{file.uri} is cut off: it has {file.size} of {needed} bytes; restore it")
        return array
    if dtype is None:
        raise UserError(f"{file.uri} has no header that says its type; set corpus.binary.dtype")
    if file.size % dtype.itemsize:
        raise DamagedFileError(
            f"{file.uri} has {file.size} bytes, which is not a multiple of the {dtype.itemsize} of {dtype.name}; "
            f"restore it, or correct corpus.binary.dtype"
        )
    return _Array(dtype, 0, file.size // dtype.itemsize, None)
