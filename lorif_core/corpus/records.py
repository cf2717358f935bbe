"""Records of a file in any supported format: the content must match the ending, and damage gives a clear error."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import zstandard

from lorif_core.config_sections import BinaryConfig
from lorif_core.corpus import columnar, jsonl
from lorif_core.corpus.token_files import TOKEN_ENDINGS, token_reader
from lorif_core.errors import DamagedFileError, UserError
from lorif_core.out_of_memory import is_out_of_memory
from lorif_core.storage.faults import one_line
from lorif_core.storage.filesystem import SourceFile, storage_errors

_JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_JSON = (".json", ".json.gz", ".json.zst")
ENDINGS = (".parquet", *_JSONL, ".arrow", *_JSON, *TOKEN_ENDINGS)
"""Endings of files that are read: `.json` only if it holds JSON lines, those of tokens if the config says so."""

EMPTY = "files without a row"
NO_LAYOUT = BinaryConfig()

_ZSTD_SKIPPABLE = tuple(bytes([0x50 + low, 0x2A, 0x4D, 0x18]) for low in range(16))
_MAGIC: dict[str, tuple[bytes, ...]] = {
    ".parquet": (columnar.PARQUET_MAGIC,),
    ".gz": (b"\x1f\x8b",),
    ".zst": (b"\x28\xb5\x2f\xfd", *_ZSTD_SKIPPABLE),
    ".arrow": (columnar.ARROW_FILE_MAGIC, columnar.ARROW_STREAM_MAGIC),
}


def is_jsonl(file: SourceFile) -> bool:
    """Whether the file is JSON lines, plain or compressed."""
    return file.name.lower().endswith((*_JSONL, *_JSON))


def reason_against_json(file: SourceFile, columns: Sequence[str]) -> str | None:
    """Why a file that ends in `.json` is not read as JSON lines; None if it is, or if it has another ending.

    Such an ending says little: Dolma gives it to JSON lines, other tools to settings or to one large array. JSON
    lines are read if their first row has the columns.

    Raises:
        DamagedFileError: the file is cut off, or its bytes cannot be decoded.
    """
    if not file.name.lower().endswith(_JSON):
        return None
    try:
        kinds = column_kinds(file)
    except UserError:
        return "JSON files that are not JSON lines (one object per line)"
    if kinds is None:
        return EMPTY
    missing = [column for column in columns if column not in kinds]
    return f"JSON files whose first line has no column {missing[0]!r}" if missing else None


def column_kinds(
    file: SourceFile, columns: Sequence[str] = (), binary: BinaryConfig = NO_LAYOUT
) -> dict[str, str] | None:
    """Columns and the kinds of their values; for JSON lines those of the first row, None if there is no row.

    Raises:
        UserError: the content does not match the ending of the name. Two columns have one name; in JSON lines only
            `columns` are checked.
        DamagedFileError: the file is cut off, or its bytes cannot be decoded.
    """
    with checking_file(file):
        reader = token_reader(file, binary)
        if reader is not None:
            return reader.kinds() if reader.count() else None
        _check_magic(file)
        return jsonl.column_kinds(file, columns) if is_jsonl(file) else columnar.column_kinds(file)


def read_records(
    file: SourceFile,
    columns: Sequence[str],
    start: int = 0,
    rows: int | None = None,
    offset: int | None = None,
    optional: Sequence[str] = (),
    binary: BinaryConfig = NO_LAYOUT,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number in the file, dict with `columns`, and with those of `optional` that there are), streaming.

    Raises:
        UserError: a line is not a JSON object, lacks a column or has it twice; file and line or row are named.
    """
    reader = token_reader(file, binary)
    if reader is not None:
        yield from enumerate(reader.read((*columns, *optional), start, rows), start)
        return
    if not is_jsonl(file):
        yield from columnar.read_records(file, columns, start, rows, optional)
        return
    for row, record in jsonl.read_records(file, start, rows, offset, (*columns, *optional)):
        missing = [column for column in columns if column not in record]
        if missing:
            raise UserError(
                f"row {row} of {file.uri} has no {missing[0]!r}; it has {', '.join(record) or 'no keys at all'}"
            )
        yield row, {column: record[column] for column in (*columns, *optional) if column in record}


def is_unicode(text: str) -> bool:
    """Whether a text can be stored: JSON can state half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def has_unicode(value: Any) -> bool:
    """Whether all texts in a value, which may be nested, can be stored."""
    if isinstance(value, str):
        return is_unicode(value)
    if isinstance(value, dict):
        return has_unicode([*value.keys(), *value.values()])
    if isinstance(value, list) and value and not isinstance(value[0], int | float):
        return all(map(has_unicode, value))
    return True


@contextmanager
def checking_file(file: SourceFile) -> Iterator[None]:
    """Convert every error of the file or its store in the block to an error with a clear message.

    Raises:
        DamagedFileError: the file is cut off, or its bytes cannot be decoded.
        UserError: the file does not exist, or may not be read.
        StoreUnavailableError: the store keeps failing.
    """
    with storage_errors(file.uri), damaged_file_errors(file):
        yield


@contextmanager
def damaged_file_errors(file: SourceFile) -> Iterator[None]:
    """Convert errors of decoders to DamagedFileError; errors of the network pass unchanged."""
    try:
        yield
    except (pa.ArrowException, zstandard.ZstdError, UnicodeDecodeError, OSError) as error:
        # errors of the operating system and of object stores have an errno, those of decoders have none
        if (isinstance(error, OSError) and error.errno is not None) or is_out_of_memory(error):
            raise
        raise DamagedFileError(f"{file.uri} is damaged or cut off ({one_line(error)}); restore it") from error


def _check_magic(file: SourceFile) -> None:
    ending = next((ending for ending in _MAGIC if file.name.lower().endswith(ending)), None)
    if ending is None:
        return
    with file.open() as raw:
        head = raw.read(8)
        raw.seek(max(file.size - len(columnar.PARQUET_MAGIC), 0))
        foot = raw.read()
    if any(magic.startswith(head) for magic in _MAGIC[ending]):
        raise DamagedFileError(f"{file.uri} is cut off after {file.size} bytes; restore it")
    if not head.startswith(_MAGIC[ending]):
        raise UserError(f"{file.uri} is not a {ending} file although its name says so; rename or remove it")
    if ending == ".parquet" and foot != columnar.PARQUET_MAGIC:
        raise DamagedFileError(f"{file.uri} is cut off: a parquet file ends with its footer; restore it")
