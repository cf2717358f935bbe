"""Lists the shards of a corpus and reads their rows; a file that changed after the listing is detected."""

import difflib
import logging
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any

from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.corpus import columnar, jsonl
from lorif_core.corpus.copies import find_copies
from lorif_core.corpus.decompress import is_compressed, is_wide
from lorif_core.corpus.files import find_corpus_files
from lorif_core.corpus.id_hashes import IdHashes
from lorif_core.corpus.notes import CorpusNotes, make_notes
from lorif_core.corpus.padding import MASK_NAME
from lorif_core.corpus.record_ids import check_unique, record_ids
from lorif_core.corpus.records import (
    EMPTY,
    ENDINGS,
    checking_file,
    column_kinds,
    is_jsonl,
    read_records,
    reason_against_json,
)
from lorif_core.errors import CorpusChangedError, DamagedFileError, LorifError, UserError
from lorif_core.spec import FileTag, ShardRef
from lorif_core.storage.filesystem import SourceFile, UnreadFile, source_file, storage_errors

log = logging.getLogger(__name__)

SHARD_ROWS = 512
_LISTING_THREADS = 8  # listing is limited by the store, not by the CPU
_WIDE_FILES = Lock()  # each reader of a frame of `zstd --long=31` may need 2 GiB

_ALLOWED_KINDS = {"text": ("text",), "tokens": ("integers",), "id": ("text", "integer")}
_EXPECTED = {"text": "strings", "tokens": "lists of integers", "id": "strings or integers"}


@dataclass(frozen=True, slots=True)
class Listing:
    """A listed corpus.

    Attributes:
        shards: of the files that were read.
        damaged: (file, cause) of damaged files, which have no shards.
        files: all files of the corpus.
        notes: files that are no part of the corpus, and files of equal content.
        ids: hashes of the ids in the files that were read; None without `corpus.id`.
    """

    shards: tuple[ShardRef, ...]
    damaged: tuple[tuple[str, str], ...] = ()
    files: tuple[FileTag, ...] = ()
    notes: CorpusNotes = field(default_factory=CorpusNotes)
    ids: IdHashes | None = None


@dataclass(frozen=True, slots=True)
class _ListedFile:
    """Shards of one file, or its damage.

    `unread` says why none of its rows is read. `is_corpus` is False if it is no part of the corpus.
    """

    shards: tuple[ShardRef, ...] = ()
    damage: DamagedFileError | None = None
    unread: str | None = None
    is_corpus: bool = True


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
    found = find_corpus_files(corpus.uri, storage)
    unread = list(found.unread)
    for file in found.readable:
        try:
            reason = reason_against_json(file, needed_columns(corpus))
            kinds = column_kinds(file, needed_columns(corpus)) if reason is None else None
        except DamagedFileError:
            return
        if kinds is not None:
            _check_columns(file, kinds, corpus)
            return
        unread.append(UnreadFile(file.name, reason or EMPTY))
        if reason is None:
            return
    raise _no_rows(corpus.uri, [damage for _, damage in found.damaged], make_notes(unread, ()), 0)


def list_shards(
    corpus: CorpusConfig, storage: StorageConfig, known: Set[FileTag] = frozenset(), within: str = ""
) -> Listing:
    """Shards of at most `SHARD_ROWS` rows, sorted by file name and row; no shard crosses a parquet row group.

    Parquet counts come from metadata; lines are counted block by block. With `corpus.id`, all ids are read and
    compared as 64-bit hashes, a part of which is in memory at a time. A damaged file is listed as such, and the
    other files can be indexed without it.

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
    found = find_corpus_files(corpus.uri, storage)
    sources = [file for file in found.readable if file.name.startswith(within) and _tag(file) not in known]
    ids = None if corpus.id is None else IdHashes()
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        listed = dict(zip(sources, pool.map(partial(_list_file, corpus, ids), sources), strict=True))
    files = [file for file in found.readable if file not in listed or listed[file].is_corpus]
    shards = tuple(shard for file in listed.values() for shard in file.shards)
    damaged = [(name, damage) for name, damage in found.damaged if name.startswith(within)]
    damaged += [(source.name, file.damage) for source, file in listed.items() if file.damage is not None]
    unread = [file for file in found.unread if file.name.startswith(within)]
    unread += [UnreadFile(source.name, file.unread) for source, file in listed.items() if file.unread is not None]
    if not shards and len(listed) == len(found.readable):
        raise _no_rows(corpus.uri, [damage for _, damage in damaged], make_notes(unread, ()), len(files))
    undamaged = [source for source, file in listed.items() if file.damage is None and file.is_corpus]
    copies = find_copies(files, {file.name for file in undamaged})
    if corpus.id is not None and ids is not None:
        check_unique(corpus.id, undamaged, ids, copies)
    log.info("%d rows in %d shards of %d files", sum(shard.rows for shard in shards), len(shards), len(listed))
    for _, damage in damaged:
        log.warning("%s", damage)
    notes = make_notes(unread, copies)
    causes = tuple(sorted((name, str(damage)) for name, damage in damaged))
    return Listing(shards, causes, tuple(map(_tag, files)), notes, ids)


def _no_rows(uri: str, damages: Sequence[DamagedFileError], notes: CorpusNotes, files: int) -> LorifError:
    if damages:
        return damages[0]
    told = "".join(f"; {sentence}" for sentence in notes.sentences())
    if not files:
        return UserError(
            f"{uri} has no file of a supported format; name files that end in {', '.join(ENDINGS)}{told}"
        )
    return UserError(f"the corpus {uri} has no rows in its {files} files; set corpus.uri to one with rows{told}")


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


def _list_file(corpus: CorpusConfig, ids: IdHashes | None, file: SourceFile) -> _ListedFile:
    """Check one file, cut it into shards, and add its ids."""
    with checking_file(file):
        alone = is_wide(file)
    with _WIDE_FILES if alone else nullcontext():
        return _list_in_turn(corpus, ids, file)


def _list_in_turn(corpus: CorpusConfig, ids: IdHashes | None, file: SourceFile) -> _ListedFile:
    try:
        reason = reason_against_json(file, needed_columns(corpus))
        if reason is not None:
            return _ListedFile(unread=reason, is_corpus=False)
        kinds = column_kinds(file, needed_columns(corpus))
        if kinds is None:
            return _ListedFile(unread=EMPTY)
        _check_columns(file, kinds, corpus)
        with checking_file(file):
            shards = tuple(_cut_lines(file) if is_jsonl(file) else _cut_groups(file))
            if not shards:
                return _ListedFile(unread=EMPTY)
            if corpus.id is not None and ids is not None:
                ids.add(text for _, text in record_ids(file, corpus.id))
            return _ListedFile(shards)
    except DamagedFileError as damage:
        return _ListedFile(damage=damage)


def _cut_lines(file: SourceFile) -> list[ShardRef]:
    rows, offsets = jsonl.index_rows(file, SHARD_ROWS)
    compressed = is_compressed(file.name)
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
