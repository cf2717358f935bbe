"""Lists the shards of a corpus and reads their rows; a file that changed after the listing is detected."""

import logging
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.config_sections import BinaryConfig
from lorif_core.corpus.columns import check_columns, needed_columns
from lorif_core.corpus.copies import find_copies
from lorif_core.corpus.file_listing import FileListing, list_file, must_be_read, needs_turn
from lorif_core.corpus.files import find_corpus_files
from lorif_core.corpus.id_hashes import IdHashes
from lorif_core.corpus.kept_listings import KeptListings
from lorif_core.corpus.notes import CorpusNotes, make_notes
from lorif_core.corpus.record_ids import check_unique
from lorif_core.corpus.records import (
    EMPTY,
    ENDINGS,
    NO_LAYOUT,
    checking_file,
    column_kinds,
    read_records,
    reason_against_json,
)
from lorif_core.corpus.token_files import with_revision
from lorif_core.errors import CorpusChangedError, DamagedFileError, LorifError, UserError
from lorif_core.spec import FileTag, ShardRef
from lorif_core.storage.filesystem import HUB_SCHEME, SourceFile, UnreadFile, source_file, storage_errors

log = logging.getLogger(__name__)

ListFiles = Callable[[Sequence[SourceFile]], Generator[tuple[SourceFile, FileListing]]]
"""Lists files as `list_file` does, on other processes, and yields them in any order."""

_LISTING_THREADS = 8  # listing is limited by the store, not by the CPU
_MOST_PARSED_HERE = 4 * 2**30  # bytes; on two cores workers lost against one process even with a quarter of it
_MOST_COUNTED_HERE = 8 * _MOST_PARSED_HERE  # counting lines is that much quicker


@dataclass(frozen=True, slots=True)
class Listing:
    """A listed corpus.

    Attributes:
        shards: of the files that were read.
        damaged: (file, cause) of damaged files, which have no shards.
        files: all files of the corpus.
        notes: files that are no part of the corpus, and files of equal content.
        ids: hashes of the ids in the files that were read; None without `corpus.id`.
        not_moved: files of an index that left the corpus, and whose content no file of equal ETag and size has.
    """

    shards: tuple[ShardRef, ...]
    damaged: tuple[tuple[str, str], ...] = ()
    files: tuple[FileTag, ...] = ()
    notes: CorpusNotes = field(default_factory=CorpusNotes)
    ids: IdHashes | None = None
    not_moved: frozenset[FileTag] = frozenset()


def check_first_file(corpus: CorpusConfig, storage: StorageConfig) -> None:
    """Check the columns of the first undamaged file only, as a quick test; `list_shards` checks all files.

    Raises:
        UserError: as `list_shards`.
    """
    found = find_corpus_files(corpus, storage)
    unread = list(found.unread)
    for file in found.readable:
        try:
            reason = reason_against_json(file, needed_columns(corpus))
            kinds = column_kinds(file, needed_columns(corpus), corpus.binary) if reason is None else None
        except DamagedFileError:
            return
        if kinds is not None:
            check_columns(file, kinds, corpus)
            return
        unread.append(UnreadFile(file.name, reason or EMPTY))
        if reason is None:
            return
    raise _no_rows(corpus.uri, [damage for _, damage in found.damaged], make_notes(unread, ()), 0)


def list_shards(
    corpus: CorpusConfig,
    storage: StorageConfig,
    known: Set[FileTag] = frozenset(),
    within: str = "",
    kept: KeptListings | None = None,
    on_workers: ListFiles | None = None,
) -> Listing:
    """Shards of at most `SHARD_ROWS` rows, sorted by file name and row; no shard crosses a parquet row group.

    Parquet counts come from metadata; lines are counted block by block. With `corpus.id`, all ids are read and
    compared as 64-bit hashes, a part of which is in memory at a time, besides those of the files being read. A
    damaged file is listed as such, and the other files can be indexed without it.

    Args:
        corpus: location, and the columns that make an example.
        storage: how to access it.
        known: files whose shards the caller knows; they are not read and get no shards in the listing.
        within: only files whose names begin with this are read.
        kept: listings of files that an index keeps; such files are not read, and listings of others are added.
        on_workers: reads the files if they have many bytes; None reads them with threads of this process.

    Raises:
        UserError: a file does not exist, has no supported format, does not match its ending or lacks a column (the
            message names the nearest one); the corpus is empty; an id is null or not unique.
        DamagedFileError: all files are damaged.
    """
    found = find_corpus_files(corpus, storage)
    sources = [file for file in found.readable if file.name.startswith(within) and _tag(file) not in known]
    ids = None if corpus.id is None else IdHashes()
    listed = _list_files(corpus, sources, ids, kept, on_workers)
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


def _list_files(
    corpus: CorpusConfig,
    sources: Sequence[SourceFile],
    ids: IdHashes | None,
    kept: KeptListings | None,
    on_workers: ListFiles | None,
) -> dict[SourceFile, FileListing]:
    """The listings of files, in their order; the hashes of their ids go to `ids`."""

    def without_hashes(listing: FileListing) -> FileListing:
        if ids is not None and listing.hashes is not None:
            ids.add_sorted(listing.hashes)
        return replace(listing, hashes=None)

    def add(file: SourceFile, listing: FileListing) -> FileListing:
        if kept is not None:
            kept.write(file, listing)
        return without_hashes(listing)

    def look_up(file: SourceFile) -> FileListing | None:
        listing = None if kept is None else kept.read(file)
        return None if listing is None else without_hashes(listing)

    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        listed = dict(zip(sources, pool.map(look_up, sources), strict=True))
        unlisted = [file for file, listing in listed.items() if listing is None]
        distant = _worth_workers(corpus, unlisted, pool) if on_workers is not None else []
        near = [file for file in unlisted if file not in set(distant)]
        listings = pool.map(lambda file: add(file, list_file(corpus, file)), near)
        if on_workers is not None and distant:
            with closing(on_workers(distant)) as results:
                for file, listing in results:
                    listed[file] = add(file, listing)
        listed.update(zip(near, listings, strict=True))
    return {file: listing for file, listing in listed.items() if listing is not None}


def _worth_workers(
    corpus: CorpusConfig, files: Sequence[SourceFile], pool: ThreadPoolExecutor
) -> list[SourceFile]:
    """The files that workers should read; none if all of them have too few bytes to start workers."""
    read = [file for file in files if must_be_read(corpus, file)]
    if sum(file.size for file in read) <= (_MOST_COUNTED_HERE if corpus.id is None else _MOST_PARSED_HERE):
        return []
    return [file for file, alone in zip(read, pool.map(needs_turn, read), strict=True) if not alone]


def _no_rows(uri: str, damages: Sequence[DamagedFileError], notes: CorpusNotes, files: int) -> LorifError:
    if damages:
        return damages[0]
    told = "".join(f"; {sentence}" for sentence in notes.sentences())
    if not files:
        copy = "; the hub has most datasets as parquet, too, at their revision refs/convert/parquet"
        copy = copy if uri.startswith(HUB_SCHEME) else ""
        return UserError(
            f"{uri} has no file of a supported format; name files that end in {', '.join(ENDINGS)}{told}{copy}"
        )
    return UserError(f"the corpus {uri} has no rows in its {files} files; set corpus.uri to one with rows{told}")


def read_rows(
    shard: ShardRef,
    columns: Sequence[str],
    storage: StorageConfig,
    optional: Sequence[str] = (),
    binary: BinaryConfig = NO_LAYOUT,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number in the file, record) of the shard's rows, in order, streaming; the rest as in `read_records`.

    Raises:
        CorpusChangedError: the file changed after it was listed, or while it was read.
        DamagedFileError: the file is cut off, or its bytes cannot be decoded.
        UserError: a line is not a JSON object or lacks a column.
    """
    file = _require_unchanged(shard, storage, binary)
    try:
        with checking_file(file):
            yield from read_records(file, columns, shard.start, shard.rows, shard.offset, optional, binary)
    except Exception:
        _require_unchanged(shard, storage, binary)  # apparent damage may come from a file replaced during the read
        raise
    _require_unchanged(shard, storage, binary)


def _require_unchanged(shard: ShardRef, storage: StorageConfig, binary: BinaryConfig) -> SourceFile:
    with storage_errors(shard.uri):
        try:
            file = with_revision(source_file(shard.uri, shard.name, storage), binary)
        except FileNotFoundError:
            raise CorpusChangedError(f"{shard.uri} was removed after it was listed; run the build again") from None
    if (file.etag, file.size) != (shard.etag, shard.size):
        raise CorpusChangedError(
            f"{shard.uri} changed after it was listed: its tag was {shard.etag} ({shard.size} bytes), now it is "
            f"{file.etag} ({file.size} bytes); run the build again"
        )
    return file


def _tag(file: SourceFile) -> FileTag:
    return FileTag(file.name, file.etag, file.size)
