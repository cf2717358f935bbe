"""Files of an object store as a folder on this node, fetched by whichever process comes first, into the cache.

A folder is named by what it holds: URI, endpoint, and name, ETag and size of every file. So a changed object gets
another folder, and two versions never mix.
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
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, Timeout

from lorif_core.config import StorageConfig
from lorif_core.errors import UserError
from lorif_core.storage.filesystem import SourceFile, contact, entity_tag

log = logging.getLogger(__name__)

_STREAMS = 8
_PART_BYTES = 16 * 2**20  # of which every stream holds one in memory
_HASH_BLOCK = 8 * 2**20
_HASH_THREADS = 4  # hashlib releases the GIL


@dataclass(frozen=True, slots=True)
class _Part:
    """A range of a file's bytes: what one request asks for."""

    file: SourceFile
    start: int
    end: int


class NodeFolder:
    """The copy that this node keeps of the files of one object-store folder, as they were when they were listed.

    Args:
        uri: the folder, as the user wrote it.
        files: what there is to fetch, now or later.
        storage: where the URI is.
    """

    def __init__(self, uri: str, files: Sequence[SourceFile], storage: StorageConfig) -> None:
        manifest = sorted((file.name, file.etag, file.size) for file in files)
        self._uri, self._place = uri, _digest([uri, storage.endpoint])
        self._root = Path(os.environ.get("LORIF_CACHE") or "~/.cache/lorif").expanduser()
        self.path = self._root / "checkpoints" / f"{self._place}-{_digest(manifest)}"

    def fetch(self, files: Sequence[SourceFile]) -> None:
        """Bring some of the files here; those that are here are not fetched again, nor by two processes at once.

        Raises:
            UserError: a file was overwritten meanwhile, or the cache has no room or cannot be written.
        """
        if not self._missing(files):
            return
        with self._locked():
            if missing := self._missing(files):  # else whoever held the lock has fetched them
                self._fetch(missing)

    def digests(self, names: Sequence[str]) -> dict[str, str]:
        """SHA-256 of fetched files by name, computed once per node and kept beside the folder."""
        noted = self._noted()
        if noted.keys() >= set(names):
            return noted
        with self._locked():
            noted = self._noted()
            noted |= file_digests([self.path / name for name in names if name not in noted])
            with self._cache_told():
                draft = self.path.with_suffix(".draft")
                draft.write_text(json.dumps(noted))
                draft.replace(self._notes)
        return noted

    @property
    def _notes(self) -> Path:
        return self.path.with_suffix(".json")

    def _noted(self) -> dict[str, str]:
        return json.loads(self._notes.read_text()) if self._notes.exists() else {}

    def _missing(self, files: Sequence[SourceFile]) -> list[SourceFile]:
        """Small files first: they are all that some of the waiting processes need."""
        sizes = {file.name: file.stat().st_size for file in self.path.glob("[!.]*")}
        missing = [file for file in files if sizes.get(file.name) != file.size]
        return sorted(missing, key=lambda file: (file.size, file.name))

    def _fetch(self, files: Sequence[SourceFile]) -> None:
        """Fetch files in parts, several at once; each takes its name when it is whole. Under the lock."""
        total = sum(file.size for file in files)
        self._sweep()  # what a killed process has left
        self._remove_former()
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
                    self._settle(part.file)
        finally:
            pool.shutdown(cancel_futures=True)
            self._sweep()
        seconds = time.perf_counter() - started
        log.info("fetched %s in %.1f s, %.0f MB/s", self._uri, seconds, total / 1e6 / seconds)

    def _copy(self, part: _Part) -> None:
        """One part into its place in the draft, which is made longer as needed."""
        data = self._read(part) if part.file.size else b""
        with self._cache_told():
            handle = os.open(self._draft(part.file), os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(handle, data[written:], part.start + written)
            finally:
                os.close(handle)

    def _read(self, part: _Part) -> bytes:
        file = part.file
        with contact(self._uri):
            try:
                data: bytes = file.fs.cat_file(file.path, start=part.start, end=part.end)
            except OSError:
                self._require_unchanged(file)  # of a shorter one, a range may be no range
                raise
        if len(data) != part.end - part.start:
            raise self._changed(file)
        return data

    def _settle(self, file: SourceFile) -> None:
        """Give a whole draft its name, unless the object is no longer the one that was listed."""
        with contact(self._uri):
            self._require_unchanged(file)
        with self._cache_told():
            draft = self._draft(file)
            with draft.open("rb") as written:
                os.fsync(written.fileno())  # a node that loses power must not keep a name without its bytes
            draft.replace(self.path / file.name)

    def _require_unchanged(self, file: SourceFile) -> None:
        try:
            info = file.fs.info(file.path)
        except FileNotFoundError:
            raise self._changed(file) from None
        if (entity_tag(info), info["size"]) != (file.etag, file.size):
            raise self._changed(file)

    def _changed(self, file: SourceFile) -> UserError:
        return UserError(
            f"{self._uri}/{file.name} was overwritten while it was fetched; run again when nothing writes there"
        )

    def _draft(self, file: SourceFile) -> Path:
        return self.path / f".{file.name}.part"

    def _sweep(self) -> None:
        with self._cache_told():
            for draft in self.path.glob(".*.part"):
                draft.unlink()

    def _remove_former(self) -> None:
        """Remove what this node keeps of files that were at the URI before and were overwritten."""
        for former in self.path.parent.glob(f"{self._place}-*"):
            if former.is_dir() and former != self.path:
                shutil.rmtree(former, ignore_errors=True)  # a process that has opened it keeps its files
                former.with_suffix(".json").unlink(missing_ok=True)

    def _require_room(self, needed: int) -> None:
        with self._cache_told():
            free = shutil.disk_usage(self.path).free
        if needed > free:
            raise UserError(
                f"the cache folder {self._root} has room for {free / 1e9:.1f} GB, but {self._uri} needs "
                f"{needed / 1e9:.1f} GB; make room there, or name another folder in LORIF_CACHE"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the only process of this node that writes this folder; a holder that dies lets go of it."""
        lock = FileLock(self.path.with_suffix(".lock"))
        with self._cache_told():
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
    def _cache_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the cache folder {self._root} cannot be written ({error.strerror or error}); make room there, "
                f"or name another folder in LORIF_CACHE"
            ) from None


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:24]


def file_digests(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of files of one folder, by name; a file that has not changed is read once per process."""
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        return dict(zip([path.name for path in paths], pool.map(_file_digest, paths), strict=True))


def _file_digest(path: Path) -> str:
    found = path.stat()
    return _digest_of(path, found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=4096)
def _digest_of(path: Path, _size: int, _mtime_ns: int, _inode: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
