"""Local folders and object stores behind one interface: opening them, finding files, telling versions apart."""

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
from lorif_core.storage.connection import require_bucket, s3_filesystem
from lorif_core.storage.faults import STORE_ERRORS, explain

_BLOCK_BYTES = 2**20  # a shard is small: larger read-ahead fetches bytes that nobody reads
_GLOB_SIGNS = ("*", "?", "[")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as it was when it was found.

    `uri` opens it from anywhere, `name` is its path below the folder, file or glob that was asked for.
    """

    fs: fsspec.AbstractFileSystem
    path: str
    uri: str
    name: str
    etag: str
    size: int

    def open(self, block_bytes: int = _BLOCK_BYTES) -> BinaryIO:
        """Open for reading, seekable; `block_bytes` is what a remote store is asked for at a time."""
        return self.fs.open(self.path, "rb", block_size=block_bytes)


def open_filesystem(uri: str, storage: StorageConfig) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI, and the path inside it (absolute, for local files).

    Args:
        uri: a local path, file:// or s3://.
        storage: endpoint, region and profile; credentials come from the environment only.

    Raises:
        UserError: another scheme, or the store or its bucket cannot be reached with this configuration.
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


def entity_tag(info: dict[str, Any]) -> str:
    """What changes when a file is written again: the ETag of an object, the time of a local file in hex ns."""
    if "ETag" in info:
        return str(info["ETag"]).strip('"')
    return f"{info.get('mtime_ns') or int(info['mtime'] * 1e9):x}"


def find_files(uri: str, storage: StorageConfig, endings: Sequence[str]) -> list[SourceFile]:
    """Files with one of the endings at a file, below a folder, or matching a glob; sorted by name.

    Hidden files and those that begin with `_`, or lie in such folders, are ignored (except a file named itself).

    Raises:
        UserError: nothing is there, nothing there has one of the endings, or it cannot be read.
    """
    fs, path = open_filesystem(uri, storage)
    with contact(uri):
        found, root = _look(fs, path)
    files = [_source(fs, info, root) for info in found if info["type"] == "file"]
    visible = [file for file in files if file.path == root or not _hidden(file.name)]
    chosen = [file for file in visible if file.name.lower().endswith(tuple(endings))]
    if not chosen:
        raise UserError(f"{uri} has no file of a supported format; name files that end in {', '.join(endings)}")
    return sorted(chosen, key=lambda file: file.name)


def list_folder(uri: str, storage: StorageConfig) -> list[SourceFile]:
    """The files that lie directly in a folder, sorted by name; empty if there is no such folder."""
    fs, path = open_filesystem(uri, storage)
    with contact(uri):
        try:
            infos = fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
    files = [_source(fs, info, path.rstrip("/")) for info in infos if info["type"] == "file"]
    return sorted(files, key=lambda file: file.name)


def _look(fs: fsspec.AbstractFileSystem, path: str) -> tuple[list[dict[str, Any]], str]:
    """Infos of the candidates, and the folder (or the file itself) that their names are relative to."""
    try:
        info = fs.info(path)
    except FileNotFoundError:
        if not any(sign in path for sign in _GLOB_SIGNS):
            raise
        return list(fs.glob(path, detail=True).values()), glob_root(path)
    if info["type"] == "directory":
        return list(fs.find(path, detail=True).values()), path
    return [info], path


def glob_root(path: str) -> str:
    """The folder that the names of what a glob matches are relative to; any other path as it is."""
    first = min((path.index(sign) for sign in _GLOB_SIGNS if sign in path), default=None)
    return path if first is None else posixpath.dirname(path[:first])


def _source(fs: fsspec.AbstractFileSystem, info: dict[str, Any], root: str) -> SourceFile:
    path = info["name"]
    uri = path if isinstance(fs, LocalFileSystem) else f"s3://{path}"
    name = posixpath.basename(path) if path == root else posixpath.relpath(path, root)
    return SourceFile(fs, path, uri, name, entity_tag(info), info["size"])


def source_file(uri: str, name: str, storage: StorageConfig) -> SourceFile:
    """One file as it is now. Raises FileNotFoundError if it is gone."""
    fs, path = open_filesystem(uri, storage)
    info = fs.info(path)
    return SourceFile(fs, path, uri, name, entity_tag(info), info["size"])


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))


@contextmanager
def written_whole(uri: str, storage: StorageConfig) -> Iterator[BinaryIO]:
    """A file to stream into, in a folder that is there. It appears when the block ends, and not if it raises.

    What a killed process leaves is a hidden draft in a local folder, which the next one writes over, or an
    unfinished upload in an object store.
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
            with suppress(*STORE_ERRORS):  # what is being raised says more
                file.discard()
            file.closed = True  # or fsspec would still send what it holds when the object is collected
        raise
    file.close()
    if local:
        Path(draft).replace(path)


@contextmanager
def contact(uri: str, doing: str = "read") -> Iterator[None]:
    """Say in one sentence why a file or store cannot be reached.

    Raises:
        LorifError: as `explain` classifies it.
    """
    try:
        yield
    except STORE_ERRORS as error:
        raise explain(error, uri, doing) from None  # what it came from may quote signed headers
