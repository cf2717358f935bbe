"""Reader of JSON lines, plain or compressed: finds where rows begin, and reads them. A blank line is not a row.

Memory use is one block, or one line of at most 256 MiB, never a whole file. A byte-order mark is not content.
"""

import json
import re
from collections.abc import Iterator, Sequence, Set
from itertools import chain
from typing import Any

import numpy as np

from lorif_core.corpus.decompress import read_blocks
from lorif_core.corpus.paused import PausedReader, paused_readers
from lorif_core.errors import UserError
from lorif_core.storage.faults import one_line
from lorif_core.storage.filesystem import SourceFile

_SCAN_BYTES = 8 * 2**20
_READ_BYTES = 2**20
_LONGEST_LINE = 256 * 2**20
_MARK = b"\xef\xbb\xbf"  # the byte-order mark, with which some editors begin a file
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_FIRST_ROW = re.compile(rb"[^\S\n]*+(\S)")
_NEXT_ROW = re.compile(rb"\n[^\S\n]*+(\S)")


def index_rows(file: SourceFile, every: int) -> tuple[int, list[int]]:
    """The number of rows, and the byte offsets (in the decompressed text) of rows 0, every, 2 every, and so on.

    Raises:
        UserError: a line is longer than 256 MiB.
        DamagedFileError, OSError, zstandard.ZstdError: a compressed file is damaged or cut off.
    """
    rows, lines = 0, 1
    line_start, in_row = 0, False
    offsets: list[int] = []
    for position, block in _blocks(file, 0, _SCAN_BYTES):
        starts = _row_starts(block, in_row)
        offsets.extend((starts[-rows % every :: every] + position).tolist())
        rows += len(starts)
        last = block.rfind(b"\n")
        # only a line that begins in an earlier block can be too long
        first = len(block) if last < 0 else block.find(b"\n")
        if position + first - line_start > _LONGEST_LINE:
            raise _too_long(file, lines)
        in_row = bool(block[last + 1 :].strip()) or (last < 0 and in_row)
        if last >= 0:
            line_start = position + last + 1
            lines += block.count(b"\n")
    return rows, offsets


def read_records(
    file: SourceFile,
    start: int = 0,
    rows: int | None = None,
    offset: int | None = None,
    columns: Sequence[str] = (),
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number in the file, record) of `rows` rows from row `start`; None reads to the end.

    Args:
        file: plain or compressed.
        start: first row.
        rows: number of rows.
        offset: byte at which row `start` begins, so that reading starts there.
        columns: keys that a record must not have twice.

    Raises:
        UserError: a line is not a JSON object, has a key twice, or is too long; file and line are named.
    """
    stop = None if rows is None else start + rows
    keys = {json.dumps(key, ensure_ascii=is_ascii).encode() for key in columns for is_ascii in (True, False)}
    row, lines = _rows_from(file, start, offset)
    for position, line in lines:
        if row == stop:
            paused_readers.put(PausedReader(file, row, chain([(position, line)], lines)))
            return
        if row >= start:
            yield row, _parse(file, line, position, columns, keys)
        row += 1


def _rows_from(file: SourceFile, start: int, offset: int | None) -> tuple[int, Iterator[tuple[int, bytes]]]:
    """A row at or before `start`, and (byte offset, line) of it and of all following rows."""
    if offset is not None:
        return start, _row_lines(file, offset)
    paused = paused_readers.take(file, start)
    return (0, _row_lines(file, 0)) if paused is None else (paused.row, paused.rows)


def _row_lines(file: SourceFile, offset: int) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of every line that is not blank."""
    for block_position, lines in _line_blocks(file, offset):
        position = block_position
        for line in lines.split(b"\n"):
            if line and not line.isspace():
                yield position, line
            position += len(line) + 1


def column_kinds(file: SourceFile, columns: Sequence[str] = ()) -> dict[str, str] | None:
    """Kind of each value of the first row: text, integer, integers, messages (lists of objects) or another type.

    None if there is no row.

    Raises:
        UserError: as `read_records`.
    """
    for _, record in read_records(file, columns=columns):
        return {key: _kind(value) for key, value in record.items()}
    return None


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, int) and not isinstance(value, bool):
        return "integer"
    if value == []:
        return "empty lists"
    if isinstance(value, list) and all(_kind(item) == "integer" for item in value):
        return "integers"
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return "messages"
    return "null" if value is None else type(value).__name__


def _blocks(file: SourceFile, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Blocks of about `size` bytes of the decompressed text, each with its offset, without the byte-order mark."""
    position = offset
    for block in read_blocks(file, max(size, len(_MARK)), offset):
        mark = len(_MARK) if position == 0 and block.startswith(_MARK) else 0
        yield position + mark, block[mark:] if mark else block
        position += len(block)


def _line_blocks(file: SourceFile, offset: int) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines, each with its offset. Blank parts are left out; the last line may lack its end."""
    pieces: list[bytes] = []
    begin, length = offset, 0
    for position, block in _blocks(file, offset, _READ_BYTES):
        if not pieces:
            begin = position
            if _is_blank(block):  # gigabytes of blank lines would take long if they were looked at one by one
                continue
        cut = block.rfind(b"\n") + 1
        pieces.append(block[:cut] if cut else block)
        length += len(pieces[-1])
        if cut:
            yield begin, b"".join(pieces)
            begin, length = position + cut, len(block) - cut
            pieces = [block[cut:]] if length else []
        if length > _LONGEST_LINE:
            raise _too_long(file, _line_number(file, begin))
    if pieces:
        yield begin, b"".join(pieces)


def _is_blank(block: bytes) -> bool:
    return block[:1].isspace() and not block.strip()  # a whole block is stripped faster than it is looked at


def _row_starts(block: bytes, in_row: bool) -> np.ndarray:
    """Offsets in the block at which rows begin, int64; `in_row`: the block begins inside a row."""
    if _is_blank(block):
        return np.zeros(0, dtype=np.int64)
    first = None if in_row else _FIRST_ROW.match(block)
    starts = [] if first is None else [first.start(1)]
    starts += [match.start(1) for match in _NEXT_ROW.finditer(block)]
    return np.array(starts, dtype=np.int64)


def _too_long(file: SourceFile, line: int) -> UserError:
    return UserError(
        f"line {line} of {file.uri} has more than {_LONGEST_LINE >> 20} MiB; write one JSON record per line"
    )


def _parse(
    file: SourceFile, line: bytes, position: int, columns: Sequence[str], keys: Set[bytes]
) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))  # files that were joined have marks inside
    except (ValueError, RecursionError) as error:
        reason = "the file is UTF-16; save it as UTF-8" if line.startswith(_UTF16_MARKS) else one_line(error)
        raise UserError(f"line {_line_number(file, position)} of {file.uri} is not valid JSON: {reason}") from None
    if not isinstance(record, dict):
        raise UserError(
            f"line {_line_number(file, position)} of {file.uri} is not a JSON object; each line must be one, "
            f'such as {{"text": "..."}}'
        )
    for key in keys:
        if line.count(key) > 1:  # the bytes may also occur in nested records or values
            _check_keys(file, line, position, columns)
    return record


def _check_keys(file: SourceFile, line: bytes, position: int, columns: Sequence[str]) -> None:
    """Raise UserError for a column that the record has twice."""
    pairs = json.loads(line.decode("utf-8-sig"), object_pairs_hook=list)
    names = [name for name, _ in pairs]
    for column in columns:
        if names.count(column) > 1:
            raise UserError(
                f"line {_line_number(file, position)} of {file.uri} has the key {column!r} twice; rename one"
            )


def _line_number(file: SourceFile, position: int) -> int:
    """Number, from 1, of the line at a byte offset; counted only when an error message needs it."""
    number = 1
    for begin, block in _blocks(file, 0, _SCAN_BYTES):
        if begin >= position:
            break
        number += block.count(b"\n", 0, position - begin)
    return number
