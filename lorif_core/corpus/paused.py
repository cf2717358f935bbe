"""Readers of compressed files that paused after some rows, for the shards that follow.

A compressed file can only be read from its start. Without paused readers each shard of it would decompress all
rows before its own, which is quadratic in the size of the file.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock

from lorif_core.corpus.decompress import is_compressed, is_wide
from lorif_core.storage.filesystem import SourceFile

_MOST = 4  # a worker reads few shards at a time, usually of one file


@dataclass(frozen=True, slots=True)
class PausedReader:
    """A reader of the rows of a file.

    Attributes:
        file: the file, as it was listed.
        row: number of the next row.
        rows: (byte offset in the decompressed text, line) of that row and of the following ones.
    """

    file: SourceFile
    row: int
    rows: Iterator[tuple[int, bytes]]


class PausedReaders:
    """The readers of this process that paused last. Threads may use it at the same time."""

    def __init__(self) -> None:
        self._readers: deque[PausedReader] = deque(maxlen=_MOST)
        self._changing = Lock()

    def take(self, file: SourceFile, row: int) -> PausedReader | None:
        """Take out the reader that is nearest before a row of a file; None if there is none."""
        with self._changing:
            before = [reader for reader in self._readers if reader.file == file and reader.row <= row]
            nearest = max(before, key=lambda reader: reader.row, default=None)
            if nearest is not None:
                self._readers.remove(nearest)
            return nearest

    def put(self, reader: PausedReader) -> None:
        """Keep a reader in place of the oldest one, unless its file needs no reader, or one with much memory."""
        if is_compressed(reader.file.name) and not is_wide(reader.file):
            with self._changing:
                self._readers.append(reader)


paused_readers = PausedReaders()
