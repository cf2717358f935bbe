"""Reader of JSON lines, plain or compressed: finds where rows begin, and reads them. A blank line is not a row.

Memory use is one block of lines, never a whole file.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from lorif_core.errors import UserError
from lorif_core.storage.faults import one_line
from lorif_core.storage.filesystem import SourceFile

_SCAN_BYTES = 8 * 2**20
_READ_BYTES = 2**20
_LONGEST_LINE = 256 * 2**20
_NEWLINE = 10
_SPACE = 32  # a line that begins with a byte above it is not blank
_CODECS = {".gz": "gzip", ".zst": "zstd"}


def is_compressed(name: str) -> bool:
    """Whether a file of this name can only be read from its start."""
    return name.lower().endswith(tuple(_CODECS))


def index_rows(file: SourceFile, every: int) -> tuple[int, list[int]]:
    """The number of rows, and the byte offsets (in the decompressed text) of rows 0, every, 2 every, and so on.

    Raises:
        UserError: a line is longer than 256 MiB.
        OSError: a compressed file is damaged or cut off.
    """
    rows = 0
    offsets: list[int] = []
    for position, lines in _line_blocks(file, 0, _SCAN_BYTES):
        starts = _row_starts(lines)
        offsets.extend((starts[-rows % every :: every] + position).tolist())
        rows += len(starts)
    return rows, offsets


def read_records(
    file: SourceFile, start: int = 0, rows: int | None = None, offset: int | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number in the file, record) of `rows` rows from row `start`; None reads to the end.

    Args:
        file: plain or compressed.
        start: first row.
        rows: number of rows.
        offset: byte at which row `start` begins, so that reading starts there.

    Raises:
        UserError: a line is not a JSON object; file and line are named.
    """
    row = 0 if offset is None else start
    stop = None if rows is None else start + rows
    for block_position, lines in _line_blocks(file, offset or 0, _READ_BYTES):
        position = block_position
        for line in lines.split(b"\n"):
            if row == stop:
                return
            if line and not line.isspace():
                if row >= start:
                    yield row, _parse(file, line, position)
                row += 1
            position += len(line) + 1


def column_kinds(file: SourceFile) -> dict[str, str] | None:
    """Kind of each value of the first row: text, integer, integers or another type; None if there is no row."""
    for _, record in read_records(file, rows=1):
        return {key: _kind(value) for key, value in record.items()}
    return None


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, int) and not isinstance(value, bool):
        return "integer"
    if isinstance(value, list) and all(_kind(item) == "integer" for item in value):
        return "integers"
    return "null" if value is None else type(value).__name__


def _line_blocks(file: SourceFile, offset: int, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines, each with its byte offset; the last line may lack its newline."""
    position, tail = offset, b""
    with _stream(file, block_bytes) as stream:
        if offset:
            stream.seek(offset)
        while data := stream.read(block_bytes):
            cut = data.rfind(b"\n") + 1
            if not cut:
                tail += data
                if len(tail) > _LONGEST_LINE:
                    raise UserError(
                        f"{file.uri} has a line of more than {_LONGEST_LINE >> 20} MiB; write one JSON record per "
                        f"line"
                    )
                continue
            lines = tail + data[:cut]
            yield position, lines
            position += len(lines)
            tail = data[cut:]
    if tail:
        yield position, tail


@contextmanager
def _stream(file: SourceFile, block_bytes: int) -> Iterator[BinaryIO]:
    codec = next((codec for ending, codec in _CODECS.items() if file.name.lower().endswith(ending)), None)
    with file.open(block_bytes) as raw:
        # Arrow's decompressor reports a truncated stream; the reader of the zstandard package ends without error
        yield raw if codec is None else pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)


def _row_starts(lines: bytes) -> np.ndarray:
    """Offsets in the block of the lines that are not blank, int64."""
    data = np.frombuffer(lines, dtype=np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends + 1])
    stops = np.append(ends, len(lines))
    if starts[-1] == len(lines):
        starts, stops = starts[:-1], stops[:-1]
    maybe_blank = np.flatnonzero(data[starts] <= _SPACE)
    blank = [line for line in maybe_blank if not lines[starts[line] : stops[line]].strip()]
    return np.delete(starts, blank) if blank else starts


def _parse(file: SourceFile, line: bytes, position: int) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))  # some editors begin a file with a byte-order mark
    except (ValueError, RecursionError) as error:
        number = _line_number(file, position)
        raise UserError(f"line {number} of {file.uri} is not valid JSON: {one_line(error)}") from None
    if not isinstance(record, dict):
        raise UserError(
            f"line {_line_number(file, position)} of {file.uri} is not a JSON object; each line must be one, "
            f'such as {{"text": "..."}}'
        )
    return record


def _line_number(file: SourceFile, position: int) -> int:
    """Number, from 1, of the line at a byte offset; counted only when an error message needs it."""
    number = 1
    for begin, lines in _line_blocks(file, 0, _SCAN_BYTES):
        if begin >= position:
            break
        number += lines.count(b"\n", 0, position - begin)
    return number
