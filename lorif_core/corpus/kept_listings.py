"""Listings of files that had to be read, kept in the index, so that each version of a file is read for it once.

An object for each file has the rows and offsets of its shards and the hashes of its ids. It counts for one version
of the file and for the settings that it depends on; a damaged one, or one of another version, is replaced. Nothing
depends on it: where objects cannot be read or written, files are read as if there were none.
"""

import json
import logging
from collections.abc import Set
from itertools import accumulate

import numpy as np
from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.corpus.columns import columns_with_roles
from lorif_core.corpus.file_listing import SHARD_ROWS, FileListing, must_be_read, shard_of
from lorif_core.errors import LorifError
from lorif_core.storage.faults import one_line
from lorif_core.storage.filesystem import SourceFile, source_file, storage_errors
from lorif_core.storage.objects import Objects

log = logging.getLogger(__name__)

_FOLDER = "listing"
_FORMAT = 1
_LEAST_BYTES = 2**18  # a smaller file is read about as fast as an object
_SEAL_BYTES = 16
_NO_OFFSET = -1


class KeptListings:
    """The kept listings of one corpus in an index. Threads may use it at the same time.

    Args:
        index: URI of the index, which need not exist.
        storage: settings of its storage.
        corpus: the corpus; listings depend on its columns.
    """

    def __init__(self, index: str, storage: StorageConfig, corpus: CorpusConfig) -> None:
        self._objects, self._storage, self._corpus = Objects(index, storage), storage, corpus
        self._fails = False

    def read(self, file: SourceFile) -> FileListing | None:
        """The kept listing of this version of a file; None if there is none."""
        if self._fails or not self._is_large(file):
            return None
        try:
            content = self._objects.get_bytes(_object_name(file.name))
        except LorifError as error:
            self._note(error)
            return None
        return None if content is None else self._decode(file, content)

    def write(self, file: SourceFile, listing: FileListing) -> None:
        """Keep a listing with shards, unless the file changed while it was read."""
        if self._fails or not self._is_large(file) or not listing.shards:
            return
        try:
            if self._is_unchanged(file):
                self._objects.put_bytes(_object_name(file.name), self._encode(file, listing))
        except LorifError as error:
            self._note(error)

    def _is_large(self, file: SourceFile) -> bool:
        return file.size >= _LEAST_BYTES and must_be_read(self._corpus, file)

    def _is_unchanged(self, file: SourceFile) -> bool:
        with storage_errors(file.uri):
            now = source_file(file.uri, file.name, self._storage)
        return (now.etag, now.size) == (file.etag, file.size)

    def _note(self, error: LorifError) -> None:
        """Go on without listings: each further attempt could take as long as all retries of a store."""
        self._fails = True
        log.info("no listings of files are kept: %s", one_line(error))

    def _header(self, file: SourceFile, shards: int) -> bytes:
        columns = columns_with_roles(self._corpus)
        return json.dumps([_FORMAT, SHARD_ROWS, columns, file.name, file.etag, file.size, shards]).encode() + b"\n"

    def _encode(self, file: SourceFile, listing: FileListing) -> bytes:
        """Checksum, header, then as int64 or uint64: rows of each shard, offsets, hashes."""
        rows = np.array([shard.rows for shard in listing.shards], np.int64)
        offsets = [_NO_OFFSET if shard.offset is None else shard.offset for shard in listing.shards]
        hashes = np.zeros(0, np.uint64) if listing.hashes is None else listing.hashes
        parts = [self._header(file, len(rows)), rows.tobytes(), np.array(offsets, np.int64).tobytes()]
        content = b"".join([*parts, hashes.tobytes()])
        return xxh3_128_digest(content) + content

    def _decode(self, file: SourceFile, sealed: bytes) -> FileListing | None:
        seal, content = sealed[:_SEAL_BYTES], memoryview(sealed)[_SEAL_BYTES:]
        if xxh3_128_digest(content) != seal:
            return None
        header = sealed[_SEAL_BYTES : sealed.index(b"\n", _SEAL_BYTES) + 1]
        count = json.loads(header)[-1]
        if header != self._header(file, count):
            return None
        numbers = np.frombuffer(content[len(header) :], np.int64)
        rows, offsets, hashes = np.split(numbers, [count, 2 * count])
        shards = tuple(
            shard_of(file, stop - size, size, None if offset == _NO_OFFSET else offset)
            for stop, size, offset in zip(accumulate(rows.tolist()), rows.tolist(), offsets.tolist(), strict=True)
        )
        return FileListing(shards, hashes=None if self._corpus.id is None else hashes.view(np.uint64))


def remove_listings(objects: Objects, names: Set[str]) -> None:
    """Remove the listings of all files of an index but those with these names."""
    retained = {_object_name(name) for name in names}
    objects.remove(entry.name for entry in objects.names(_FOLDER) if entry.name not in retained)


def _object_name(file_name: str) -> str:
    return f"{_FOLDER}/{xxh3_128_hexdigest(file_name.encode())}"
