"""A cache on this node for the files of an object-store folder. The first process that needs a file fetches it.

The name of a cache folder is a hash of its URI, its endpoint, and the name, ETag and size of every file. A changed
object therefore gets another folder, and two versions never mix.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lorif_core.config import StorageConfig
from lorif_core.errors import UserError
from lorif_core.storage.cache_folder import cache_folder
from lorif_core.storage.filesystem import SourceFile, entity_tag, storage_errors
from lorif_core.storage.local_digests import file_digests

log = logging.getLogger(__name__)

_STREAMS = 8
_PART_BYTES = 16 * 2**20  # every stream has one part in memory


@dataclass(frozen=True, slots=True)
class _Part:
    """A byte range of a file that one request fetches."""

    file: SourceFile
    start: int
    end: int


class NodeFolder:
    """The copy on this node of the files of one object-store folder, as they were when they were listed.

    Args:
        uri: the folder, as the user wrote it.
        files: all files that may be fetched, now or later.
        storage: how to access the URI.
    """

    def __init__(self, uri: str, files: Sequence[SourceFile], storage: StorageConfig) -> None:
        manifest = sorted((file.name, file.etag, file.size) for file in files)
        self._uri, self._uri_digest = uri, _digest([uri, storage.endpoint])
        self._root = cache_folder()
        self.path = self._root / "checkpoints" / f"{self._uri_digest}-{_digest(manifest)}"

    def fetch(self, files: Sequence[SourceFile]) -> None:
        """Fetch those of the files that are not cached; only one process of the node fetches at a time.

        Raises:
            UserError: a file was overwritten meanwhile, or the cache is too small or cannot be written.
        """
        if not self._missing(files):
            return
        with self._locked():
            if missing := self._missing(files):  # the previous holder of the lock may have fetched them
                self._fetch(missing)

    def digests(self, names: Sequence[str]) -> dict[str, str]:
        """SHA-256 of fetched files by name."""
        return file_digests([self.path / name for name in names])

    def _missing(self, files: Sequence[SourceFile]) -> list[SourceFile]:
        """Files that are not cached, small ones first, because some waiting processes need only those."""
        sizes = {file.name: file.stat().st_size for file in self.path.glob("[!.]*")}
        missing = [file for file in files if sizes.get(file.name) != file.size]
        return sorted(missing, key=lambda file: (file.size, file.name))

    def _fetch(self, files: Sequence[SourceFile]) -> None:
        """Fetch parts of files in parallel; a file gets its name when complete. The caller holds the lock."""
        total = sum(file.size for file in files)
        self._remove_drafts()  # of a killed process
        self._remove_outdated_folders()
        self._require_room(total)
        log.info("fetching %d files, %.1f MB, of %s", len(files), total / 1e6, self._uri)
        started = time.perf_counter()
        parts = [
            _Part(file, start, min(start + _PART_BYTES, file.size))
            for file in files
            for start in range(0, max(file.size, 1), _PART_BYTES)
        ]
        pool = ThreadPoolExecutor(_STREAMS, thread_name_prefix="fetch")
        try:
            for part, _ in zip(parts, pool.map(self._copy, parts), strict=True):
                if part.end == part.file.size:
                    self._complete(part.file)
        finally:
            pool.shutdown(cancel_futures=True)
            self._remove_drafts()
        seconds = time.perf_counter() - started
        log.info("fetched %s in %.1f s, %.0f MB/s", self._uri, seconds, total / 1e6 / seconds)

    def _copy(self, part: _Part) -> None:
        """Write one part at its offset in the draft, which grows as needed."""
        data = self._read(part) if part.file.size else b""
        with self._cache_errors():
            handle = os.open(self._draft(part.file), os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(handle, data[written:], part.start + written)
            finally:
                os.close(handle)

    def _read(self, part: _Part) -> bytes:
        file = part.file
        with storage_errors(self._uri):
            try:
                data: bytes = file.fs.cat_file(file.path, start=part.start, end=part.end)
            except OSError:
                self._require_unchanged(file)  # the range is not valid if the object became shorter
                raise
        if len(data) != part.end - part.start:
            raise self._overwritten(file)
        return data

    def _complete(self, file: SourceFile) -> None:
        """Rename a complete draft to the name of the file, unless the object has changed since it was listed."""
        with storage_errors(self._uri):
            self._require_unchanged(file)
        with self._cache_errors():
            draft = self._draft(file)
            with draft.open("rb") as written:
                os.fsync(written.fileno())  # after a power failure, no name may exist without its bytes
            draft.replace(self.path / file.name)

    def _require_unchanged(self, file: SourceFile) -> None:
        try:
            info = file.fs.info(file.path)
        except FileNotFoundError:
            raise self._overwritten(file) from None
        if (entity_tag(info), info["size"]) != (file.etag, file.size):
            raise self._overwritten(file)

    def _overwritten(self, file: SourceFile) -> UserError:
        return UserError(
            f"{self._uri}/{file.name} was overwritten while it was fetched; run again when no process writes there"
        )

    def _draft(self, file: SourceFile) -> Path:
        return self.path / f".{file.name}.part"

    def _remove_drafts(self) -> None:
        with self._cache_errors():
            for draft in self.path.glob(".*.part"):
                draft.unlink()

    def _remove_outdated_folders(self) -> None:
        """Remove cache folders of earlier versions of the URI."""
        for folder in self.path.parent.glob(f"{self._uri_digest}-*"):
            if folder.is_dir() and folder != self.path:
                shutil.rmtree(folder, ignore_errors=True)  # processes can still read files that they have open

    def _require_room(self, needed: int) -> None:
        with self._cache_errors():
            free = shutil.disk_usage(self.path).free
        if needed > free:
            raise UserError(
                f"the cache folder {self._root} has {free / 1e9:.1f} GB free, but {self._uri} needs "
                f"{needed / 1e9:.1f} GB; free space there, or set LORIF_CACHE to another folder"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclude other processes of this node from writing the folder; the lock ends with its process."""
        lock = FileLock(self.path.with_suffix(".lock"))
        with self._cache_errors():
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.info("%s is being fetched by another process of this node; waiting for it", self._uri)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _cache_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the cache folder {self._root} cannot be written ({error.strerror or error}); free space "
                f"there, or set LORIF_CACHE to another folder"
            ) from None


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:24]
