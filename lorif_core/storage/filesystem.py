"""One interface to local folders and object stores: open files, find files, and detect changed versions."""

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from lorif_core.config import StorageConfig, check_uri
from lorif_core.errors import UserError
from lorif_core.out_of_memory import is_out_of_memory
from lorif_core.storage.connection import require_bucket, s3_filesystem
from lorif_core.storage.faults import STORE_ERRORS, explain
from lorif_core.storage.local_files import HIDDEN, NOT_A_FILE, LocalFiles, is_hidden

_BLOCK_BYTES = 2**20  # a shard is small, so a larger read-ahead would fetch unused bytes
GLOB_CHARACTERS = ("*", "?", "[")
HUB_SCHEME = "hf://"


MATCHED_FOLDER = "folders that the pattern matches without their files (** searches them)"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as it was when it was listed.

    `uri` opens it from anywhere; `name` is its path relative to the listed folder, file or glob.
    """

    fs: fsspec.AbstractFileSystem
    path: str
    uri: str
    name: str
    etag: str
    size: int

    def open(self, block_bytes: int = _BLOCK_BYTES) -> BinaryIO:
        """Open for reading, seekable; `block_bytes` is the size of one request to a remote store."""
        return self.fs.open(self.path, "rb", block_size=block_bytes)


def open_filesystem(uri: str, storage: StorageConfig) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path inside it; local paths are made absolute.

    Args:
        uri: a local path, file:// or s3://.
        storage: endpoint, region and profile; credentials come from the environment only.

    Raises:
        UserError: the scheme is not supported, or this configuration cannot reach the store or its bucket.
        StoreUnavailableError: the store keeps failing.
    """
    scheme, separator, _ = check_uri(uri).partition("://")
    if not separator or scheme == "file":
        fs = LocalFileSystem()
        return fs, fs._strip_protocol(uri)
    if scheme != "s3":
        shown = uri.partition("?")[0]  # the query of a presigned URL is a credential
        raise UserError(f"{shown} has the scheme {scheme}://, which is not supported; use a local path or s3://")
    fs = s3_filesystem(storage)
    path = fs._strip_protocol(uri)
    require_bucket(uri, path.partition("/")[0], storage)
    return fs, path


def open_source(uri: str, storage: StorageConfig) -> tuple[fsspec.AbstractFileSystem, str]:
    """As `open_filesystem`, for reading only: also datasets of the hub."""
    if uri.startswith(HUB_SCHEME):
        from lorif_core.storage.hub import hub_files, parse_hub_uri  # its import takes half a second

        return hub_files(), parse_hub_uri(uri).uri.removeprefix(HUB_SCHEME)
    return open_filesystem(uri, storage)


def entity_tag(info: dict[str, Any]) -> str:
    """A tag that changes when a file is rewritten: an object's ETag, a blob's id, a local mtime in ns as hex."""
    if "ETag" in info:
        return str(info["ETag"]).strip('"')
    if "blob_id" in info:
        return str(info["blob_id"])
    return f"{info.get('mtime_ns') or int(info['mtime'] * 1e9):x}"


@dataclass(frozen=True, slots=True)
class UnreadFile:
    """A file that is not read: its path in the listed folder, and the reason, which names a kind of file."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Walk:
    """All that is at a URI.

    Attributes:
        fs: its file system.
        root: the folder, the file itself, or the folder before a glob's pattern; names are relative to it.
        is_folder: the URI is a folder, so everything in it is listed.
        is_glob: the URI is a glob, so only what matches it is listed.
        files: files that are not hidden, sorted by name.
        unread: hidden files, and what is no file, sorted by name.
    """

    fs: fsspec.AbstractFileSystem
    root: str
    is_folder: bool
    is_glob: bool
    files: tuple[SourceFile, ...]
    unread: tuple[UnreadFile, ...]

    def look_up(self, path: str) -> SourceFile | None:
        """A file that need not be listed; None if it does not exist."""
        with storage_errors(path):
            try:
                return _to_source_file(self.fs, self.fs.info(path), self.root)
            except FileNotFoundError:
                return None


def walk_files(uri: str, storage: StorageConfig) -> Walk:
    """The file at a URI, or all files in a folder or of a glob. Links of a local file system are followed.

    Folders are searched recursively. What has a name that begins with `.` or `_`, or is in such a folder, is
    hidden, except if `uri` is this file.

    Raises:
        UserError: `uri` does not exist, or cannot be read.
    """
    fs, path = open_source(uri, storage)
    if isinstance(fs, LocalFileSystem):
        fs = LocalFiles()
    with storage_errors(uri):
        infos, root, is_glob = _list_candidates(fs, path)
    # consoles of object stores create an empty object with a slash at its end to show an empty folder
    found = [info for info in infos if info["type"] == "file" and not info["name"].endswith("/")]
    files = [_to_source_file(fs, info, root) for info in found]
    is_file = not is_glob and [file.path for file in files] == [root]
    hidden = [] if is_file else [file for file in files if is_hidden(file.name)]
    unread = [UnreadFile(file.name, HIDDEN) for file in hidden]
    entered = {parent for file in files for parent in _parents(file.path)}
    for info in infos:
        name = posixpath.relpath(info["name"], root)
        if info["type"] == "directory" and info["name"].rstrip("/") not in entered:
            unread.append(UnreadFile(name, HIDDEN if is_hidden(name) else MATCHED_FOLDER))
        elif info["type"] == "other":
            unread.append(UnreadFile(name, HIDDEN if is_hidden(name) else info.get("reason", NOT_A_FILE)))
    visible = [file for file in files if is_file or not is_hidden(file.name)]
    return Walk(
        fs,
        root,
        not is_file and not is_glob,
        is_glob,
        tuple(sorted(visible, key=lambda file: file.name)),
        tuple(sorted(unread, key=lambda file: file.name)),
    )


def _parents(path: str) -> list[str]:
    """The folders around a path."""
    parts = path.split("/")
    return ["/".join(parts[:stop]) for stop in range(1, len(parts))]


def find_files(uri: str, storage: StorageConfig, endings: Sequence[str]) -> list[SourceFile]:
    """Files with one of the endings, sorted by name; see `walk_files`.

    Raises:
        UserError: `uri` does not exist, has no file with one of the endings, or cannot be read.
    """
    supported = [file for file in walk_files(uri, storage).files if file.name.lower().endswith(tuple(endings))]
    if not supported:
        raise UserError(f"{uri} has no file of a supported format; name files that end in {', '.join(endings)}")
    return supported


def list_folder(uri: str, storage: StorageConfig) -> list[SourceFile]:
    """The files directly in a folder, sorted by name; empty if the folder does not exist."""
    fs, path = open_filesystem(uri, storage)
    with storage_errors(uri):
        try:
            infos = fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
    files = [_to_source_file(fs, info, path.rstrip("/")) for info in infos if info["type"] == "file"]
    return sorted(files, key=lambda file: file.name)


def _list_candidates(fs: fsspec.AbstractFileSystem, path: str) -> tuple[list[dict[str, Any]], str, bool]:
    """fsspec infos, the folder (or the file itself) that names are relative to, and whether the path is a glob."""
    try:
        info = fs.info(path)
    except FileNotFoundError:
        if not any(character in path for character in GLOB_CHARACTERS):
            raise
        return list(fs.glob(path, detail=True).values()), glob_root(path), True
    if info["type"] == "directory":
        return list(fs.find(path, detail=True).values()), path, False
    return [info], path, False


def glob_root(path: str) -> str:
    """The folder that file names of a glob are relative to; a path that is not a glob is returned unchanged."""
    first = min((path.index(character) for character in GLOB_CHARACTERS if character in path), default=None)
    return path if first is None else posixpath.dirname(path[:first])


def _to_source_file(fs: fsspec.AbstractFileSystem, info: dict[str, Any], root: str) -> SourceFile:
    path = info["name"]
    uri = path if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path)
    name = posixpath.basename(path) if path == root else posixpath.relpath(path, root)
    return SourceFile(fs, path, uri, name, entity_tag(info), info["size"])


def source_file(uri: str, name: str, storage: StorageConfig) -> SourceFile:
    """The current state of one file. Raises FileNotFoundError if it does not exist."""
    fs, path = open_source(uri, storage)
    info = fs.info(path)
    return SourceFile(fs, path, uri, name, entity_tag(info), info["size"])


@contextmanager
def atomic_write(uri: str, storage: StorageConfig) -> Iterator[BinaryIO]:
    """Open a file for streaming writes in an existing folder. It appears only if the block ends without an error.

    A killed process leaves a hidden draft in a local folder, which the next writer overwrites, or an unfinished
    upload in an object store.
    """
    fs, path = open_filesystem(uri, storage)
    local = isinstance(fs, LocalFileSystem)
    folder, name = posixpath.split(path)
    draft = f"{folder}/.{name}.draft" if local else path
    file = fs.open(draft, "wb")
    try:
        yield file
    except BaseException:
        if local:
            file.close()
            fs.rm_file(draft)
        else:
            with suppress(*STORE_ERRORS):  # the error being raised is more useful
                file.discard()
            file.closed = True  # otherwise fsspec uploads the buffer when the object is garbage-collected
        raise
    file.close()
    if local:
        Path(draft).replace(path)


@contextmanager
def storage_errors(uri: str, action: str = "read") -> Iterator[None]:
    """Convert errors of files and stores in the block to errors with a clear message; `action` is read or write.

    Raises:
        LorifError: as classified by `explain`.
    """
    try:
        yield
    except STORE_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise explain(error, uri, action) from None  # the cause may quote signed headers
