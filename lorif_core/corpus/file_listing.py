"""What one file is found to have: its shards and the hashes of its ids, or damage, or nothing that is read."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Lock

import numpy as np

from lorif_core.config import CorpusConfig
from lorif_core.corpus import columnar, jsonl
from lorif_core.corpus.columns import check_columns, needed_columns
from lorif_core.corpus.decompress import is_compressed, is_wide
from lorif_core.corpus.id_hashes import hashes_of
from lorif_core.corpus.record_ids import record_ids
from lorif_core.corpus.records import EMPTY, checking_file, column_kinds, is_jsonl, reason_against_json
from lorif_core.corpus.token_files import is_token_file, token_reader
from lorif_core.errors import DamagedFileError
from lorif_core.spec import ShardRef
from lorif_core.storage.filesystem import SourceFile

SHARD_ROWS = 512
_WIDE_FILES = Lock()  # each reader of a frame of `zstd --long=31` may need 2 GiB


@dataclass(frozen=True, slots=True)
class FileListing:
    """A listed file.

    Attributes:
        shards: in the order of its rows; none if it is damaged or not read.
        damage: why it cannot be read.
        unread: why none of its rows is read.
        is_corpus: False if it is no part of the corpus.
        hashes: of its ids, uint64, sorted; None without `corpus.id`, or if they are no longer needed.
    """

    shards: tuple[ShardRef, ...] = ()
    damage: DamagedFileError | None = None
    unread: str | None = None
    is_corpus: bool = True
    hashes: np.ndarray | None = None


def must_be_read(corpus: CorpusConfig, file: SourceFile) -> bool:
    """Whether a file is read to be listed: parquet and token files state their counts, but no hashes of ids."""
    return corpus.id is not None or not (columnar.is_parquet(file.name) or is_token_file(file.name))


def needs_turn(file: SourceFile) -> bool:
    """Whether reading the file takes so much memory that only one such file is read at a time."""
    with checking_file(file):
        return is_wide(file)


def list_file(corpus: CorpusConfig, file: SourceFile) -> FileListing:
    """Check one file, cut it into shards, and hash its ids, with 8 bytes in memory for each.

    Raises:
        UserError: as `list_shards`.
    """
    with _WIDE_FILES if needs_turn(file) else nullcontext():
        return _list_in_turn(corpus, file)


def _list_in_turn(corpus: CorpusConfig, file: SourceFile) -> FileListing:
    try:
        reason = reason_against_json(file, needed_columns(corpus))
        if reason is not None:
            return FileListing(unread=reason, is_corpus=False)
        kinds = column_kinds(file, needed_columns(corpus), corpus.binary)
        if kinds is None:
            return FileListing(unread=EMPTY)
        check_columns(file, kinds, corpus)
        with checking_file(file):
            reader = token_reader(file, corpus.binary)
            sizes = [reader.count()] if reader is not None else None
            shards = tuple(_cut_lines(file) if is_jsonl(file) else _cut_groups(file, sizes))
            if not shards:
                return FileListing(unread=EMPTY)
            if corpus.id is None:
                return FileListing(shards)
            return FileListing(shards, hashes=_sorted_hashes(text for _, text in record_ids(file, corpus.id)))
    except DamagedFileError as damage:
        return FileListing(damage=damage)


def _sorted_hashes(ids: Iterable[str]) -> np.ndarray:
    return np.sort(np.concatenate([np.zeros(0, np.uint64), *hashes_of(ids)]))


def _cut_lines(file: SourceFile) -> list[ShardRef]:
    rows, offsets = jsonl.index_rows(file, SHARD_ROWS)
    compressed = is_compressed(file.name)
    return [
        shard_of(file, start, min(SHARD_ROWS, rows - start), None if compressed else offset)
        for start, offset in zip(range(0, rows, SHARD_ROWS), offsets, strict=True)
    ]


def _cut_groups(file: SourceFile, sizes: Iterable[int] | None) -> list[ShardRef]:
    shards = []
    first = 0
    for size in columnar.group_sizes(file) if sizes is None else sizes:
        end = first + size
        shards += [shard_of(file, start, min(SHARD_ROWS, end - start)) for start in range(first, end, SHARD_ROWS)]
        first = end
    return shards


def shard_of(file: SourceFile, start: int, rows: int, offset: int | None = None) -> ShardRef:
    """A shard of this version of a file."""
    return ShardRef(file.uri, file.name, file.etag, file.size, start, rows, offset)
