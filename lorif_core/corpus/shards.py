"""Lists the shards of a corpus and reads their rows; a file that changed after the listing is detected."""

import difflib
import logging
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.corpus import columnar, jsonl
from lorif_core.corpus.padding import MASK_NAME
from lorif_core.corpus.records import ENDINGS, checking_file, column_kinds, is_jsonl, read_records
from lorif_core.errors import CorpusChangedError, DamagedFileError, UserError
from lorif_core.spec import FileTag, ShardRef
from lorif_core.storage.filesystem import SourceFile, find_files, source_file, storage_errors

log = logging.getLogger(__name__)

SHARD_ROWS = 512
_LISTING_THREADS = 8  # listing is limited by the store, not by the CPU

_ALLOWED_KINDS = {"text": ("text",), "tokens": ("integers",), "id": ("text", "integer")}
_EXPECTED = {"text": "strings", "tokens": "lists of integers", "id": "strings or integers"}


@dataclass(frozen=True, slots=True)
class Listing:
    """A listed corpus.

    Attributes:
        shards: of the files that were read.
        damaged: (file, cause) of damaged files, which have no shards.
        files: all files of the corpus.
        id_hashes: hashes of the ids in the files that were read, int64, sorted.
    """

    shards: tuple[ShardRef, ...]
    damaged: tuple[tuple[str, str], ...] = ()
    files: tuple[FileTag, ...] = ()
    id_hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class _ListedFile:
    """Shards of one file and the hashes of its ids (int64, empty without `corpus.id`), or its damage."""

    shards: tuple[ShardRef, ...] = ()
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    damage: DamagedFileError | None = None


def needed_columns(corpus: CorpusConfig) -> list[str]:
    """Columns to read: tokens and labels, else prompt and completion, else text; in each case also the id."""
    return list(dict.fromkeys(column for column, _ in _columns_with_roles(corpus)))


def optional_columns(corpus: CorpusConfig) -> list[str]:
    """Columns to read where a file has them: masks that are not configured, since they must not mask anything."""
    return [MASK_NAME] if corpus.tokens is not None and corpus.mask is None else []


def check_first_file(corpus: CorpusConfig, storage: StorageConfig) -> None:
    """Check the columns of the first undamaged file only, as a quick test; `list_shards` checks all files.

    Raises:
        UserError: as `list_shards`.
    """
    for file in find_files(corpus.uri, storage, ENDINGS):
        try:
            kinds = column_kinds(file)
        except DamagedFileError:
            continue
        if kinds is not None:
            _check_columns(file, kinds, corpus)
        return


def list_shards(
    corpus: CorpusConfig, storage: StorageConfig, known: Set[FileTag] = frozenset(), within: str = ""
) -> Listing:
    """Shards of at most `SHARD_ROWS` rows, sorted by file name and row; no shard crosses a parquet row group.

    Parquet counts come from metadata; lines are counted block by block. With `corpus.id`, all ids are read and
    kept as 64-bit hashes. A damaged file is listed as such, and the other files can be indexed without it.

    Args:
        corpus: location, and the columns that make an example.
        storage: how to access it.
        known: files whose shards the caller knows; they are not read and get no shards in the listing.
        within: only files whose names begin with this are read.

    Raises:
        UserError: a file does not exist, has no supported format, does not match its ending or lacks a column (the
            message names the nearest one); the corpus is empty; an id is null or not unique.
        DamagedFileError: all files are damaged.
    """
    files = find_files(corpus.uri, storage, ENDINGS)
    unread = [file for file in files if file.name.startswith(within) and _tag(file) not in known]
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        listed = list(pool.map(partial(_list_file, corpus), unread))
    shards = tuple(shard for file in listed for shard in file.shards)
    damages = [file.damage for file in listed if file.damage is not None]
    if not shards and len(unread) == len(files):
        if damages:
            raise damages[0]
        raise UserError(
            f"the corpus {corpus.uri} has no rows in its {len(files)} files; set corpus.uri to one with rows"
        )
    hashes = np.sort(np.concatenate([np.zeros(0, np.int64), *(file.hashes for file in listed)]))
    if corpus.id is not None:
        undamaged = [source for source, file in zip(unread, listed, strict=True) if file.damage is None]
        _check_unique(corpus.id, undamaged, hashes)
    log.info("%d rows in %d shards of %d files", sum(shard.rows for shard in shards), len(shards), len(unread))
    for damage in damages:
        log.warning("%s", damage)
    damaged = tuple(
        (source.name, str(file.damage)) for source, file in zip(unread, listed, strict=True) if file.damage
    )
    return Listing(shards, damaged, tuple(map(_tag, files)), hashes)


def find_id(
    corpus: CorpusConfig, storage: StorageConfig, names: Set[str], ids: Set[str]
) -> tuple[str, str] | None:
    """(id, location) of the first of the ids that occurs in files with these names; None if none occurs."""
    for file in find_files(corpus.uri, storage, ENDINGS):
        if file.name in names and corpus.id is not None:
            for row, text in _ids(file, corpus.id):
                if text in ids:
                    return text, f"row {row} of {file.uri}"
    return None


def read_rows(
    shard: ShardRef, columns: Sequence[str], storage: StorageConfig, optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number in the file, record) of the shard's rows, in order, streaming; columns as in `read_records`.

    Raises:
        CorpusChangedError: the file changed after it was listed, or while it was read.
        DamagedFileError: the file is cut off, or its bytes cannot be decoded.
        UserError: a line is not a JSON object or lacks a column.
    """
    file = _require_unchanged(shard, storage)
    try:
        with checking_file(file):
            yield from read_records(file, columns, shard.start, shard.rows, shard.offset, optional)
    except Exception:
        _require_unchanged(shard, storage)  # apparent damage may come from a file replaced during the read
        raise
    _require_unchanged(shard, storage)


def _require_unchanged(shard: ShardRef, storage: StorageConfig) -> SourceFile:
    with storage_errors(shard.uri):
        try:
            file = source_file(shard.uri, shard.name, storage)
        except FileNotFoundError:
            raise CorpusChangedError(f"{shard.uri} was removed after it was listed; run the build again") from None
    if (file.etag, file.size) != (shard.etag, shard.size):
        raise CorpusChangedError(
            f"{shard.uri} changed after it was listed: its tag was {shard.etag} ({shard.size} bytes), now it is "
            f"{file.etag} ({file.size} bytes); run the build again"
        )
    return file


def _list_file(corpus: CorpusConfig, file: SourceFile) -> _ListedFile:
    """Check one file, cut it into shards, and hash its ids."""
    try:
        kinds = column_kinds(file)
        if kinds is None:
            return _ListedFile()
        _check_columns(file, kinds, corpus)
        with checking_file(file):
            shards = tuple(_cut_lines(file) if is_jsonl(file) else _cut_groups(file))
            if corpus.id is None:
                return _ListedFile(shards)
            hashes = (hash(text) for _, text in _ids(file, corpus.id))
            return _ListedFile(shards, np.fromiter(hashes, dtype=np.int64))
    except DamagedFileError as damage:
        return _ListedFile(damage=damage)


def _cut_lines(file: SourceFile) -> list[ShardRef]:
    rows, offsets = jsonl.index_rows(file, SHARD_ROWS)
    compressed = jsonl.is_compressed(file.name)
    return [
        _shard(file, start, min(SHARD_ROWS, rows - start), None if compressed else offset)
        for start, offset in zip(range(0, rows, SHARD_ROWS), offsets, strict=True)
    ]


def _cut_groups(file: SourceFile) -> list[ShardRef]:
    shards = []
    first = 0
    for size in columnar.group_sizes(file):
        end = first + size
        shards += [_shard(file, start, min(SHARD_ROWS, end - start)) for start in range(first, end, SHARD_ROWS)]
        first = end
    return shards


def _tag(file: SourceFile) -> FileTag:
    return FileTag(file.name, file.etag, file.size)


def _shard(file: SourceFile, start: int, rows: int, offset: int | None = None) -> ShardRef:
    return ShardRef(file.uri, file.name, file.etag, file.size, start, rows, offset)


def _columns_with_roles(corpus: CorpusConfig) -> list[tuple[str, str]]:
    if corpus.tokens is not None:
        roles = [(corpus.tokens, "tokens"), (corpus.labels, "tokens"), (corpus.mask, "tokens")]
    elif corpus.prompt is not None:
        roles = [(corpus.prompt, "text"), (corpus.completion, "text")]
    else:
        roles = [(corpus.text, "text")]
    return [(column, role) for column, role in [*roles, (corpus.id, "id")] if column is not None]


def _check_columns(file: SourceFile, kinds: dict[str, str], corpus: CorpusConfig) -> None:
    for column, role in _columns_with_roles(corpus):
        if column not in kinds:
            nearest = difflib.get_close_matches(column, kinds, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise UserError(f"{file.uri} has no column {column!r}; it has {', '.join(kinds) or 'none'}{hint}")
        if kinds[column] not in _ALLOWED_KINDS[role]:
            raise UserError(
                f"the column {column!r} of {file.uri} must contain {_EXPECTED[role]}, but contains {kinds[column]}"
            )


def _ids(file: SourceFile, column: str) -> Iterator[tuple[int, str]]:
    """(row, id as text). Raises UserError for an id that is not a string or an integer."""
    for row, record in read_records(file, [column]):
        value = record[column]
        if isinstance(value, bool) or not isinstance(value, str | int):
            shown = "null" if value is None else repr(value)
            raise UserError(
                f"the id in row {row} of {file.uri} (column {column!r}) is {shown}; give every row a string or an "
                f"integer, or leave corpus.id out"
            )
        yield row, str(value)


def _check_unique(column: str, files: Sequence[SourceFile], sorted_hashes: np.ndarray) -> None:
    """Raise UserError for the first id that occurs twice; ids are read again only if hashes are equal."""
    repeated = set(sorted_hashes[1:][sorted_hashes[1:] == sorted_hashes[:-1]].tolist())
    if not repeated:
        return
    locations: dict[str, str] = {}
    for file in files:
        for row, text in _ids(file, column):
            if hash(text) not in repeated:
                continue
            location = f"row {row} of {file.uri}"
            if text in locations:
                raise UserError(
                    f"the id {text!r} (column {column!r}) is in {locations[text]} and again in {location}; make "
                    f"ids unique or leave corpus.id out"
                )
            locations[text] = location
