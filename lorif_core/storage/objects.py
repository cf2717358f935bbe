"""Small objects in the folder `_lorif` of an index or of an output folder: atomic writes, conditional creation.

The folder has the receipts of shards and runs, the lease, probes, and the answers of an unfinished batch.
"""

import json
import os
import posixpath
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from lorif_core.config import StorageConfig
from lorif_core.storage.faults import is_precondition_failure
from lorif_core.storage.filesystem import entity_tag, open_filesystem, storage_errors

_FOLDER = "_lorif"


@dataclass(frozen=True, slots=True)
class Entry:
    """An object in a listing; `modified` is by the store's clock, `tag` changes with every write."""

    name: str
    size: int
    modified: datetime
    tag: str


class Objects:
    """The small objects of one index or output folder. Names are relative, such as `receipts/x.json`.

    Every method raises UserError if the store refuses or cannot be reached, and StoreUnavailableError if it keeps
    failing.

    Args:
        uri: the index or output folder.
        storage: how to access it.
    """

    folder = _FOLDER

    def __init__(self, uri: str, storage: StorageConfig) -> None:
        self.uri = uri.rstrip("/")
        self._storage = storage

    def put(self, name: str, value: dict[str, Any]) -> None:
        """Write an object atomically, replacing any object of that name."""
        self.put_bytes(name, _encode(value))

    def put_bytes(self, name: str, content: bytes) -> None:
        """Like `put`, for content that is not JSON."""
        fs, path = self._locate(name)
        with storage_errors(self.uri, "write"):
            if isinstance(fs, LocalFileSystem):
                with _draft_file(Path(path), content) as draft:
                    draft.replace(path)
            else:
                fs.pipe_file(path, content)

    def get_bytes(self, name: str) -> bytes | None:
        """The content of an object, or None if it does not exist."""
        fs, path = self._locate(name)
        with storage_errors(self.uri):
            try:
                return fs.cat_file(path)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def create(self, name: str, value: dict[str, Any]) -> bool:
        """Write an object unless one of that name exists; return whether the stored object is this value.

        An object store gets `If-None-Match: *`, which not every store applies atomically (`probe.py`). Values must
        be unique to their writer, so that a write whose response was lost is recognised as our own.
        """
        fs, path = self._locate(name)
        with storage_errors(self.uri, "write"):
            try:
                if isinstance(fs, LocalFileSystem):
                    with _draft_file(Path(path), _encode(value)) as draft:
                        os.link(draft, path)
                else:
                    fs.pipe_file(path, _encode(value), mode="create")
                return True
            except OSError as error:
                if not is_precondition_failure(error):
                    raise
        return self.get(name) == value

    def get(self, name: str) -> dict[str, Any] | None:
        """The value of an object, or None if it does not exist or is not a JSON object."""
        return parse_object(self.get_bytes(name) or b"")

    def entry(self, name: str) -> Entry | None:
        """Size, time and tag of an object, or None if it does not exist."""
        fs, path = self._locate(name)
        with storage_errors(self.uri):
            try:
                return _entry(fs.info(path), name)
            except FileNotFoundError:
                return None

    def names(self, folder: str) -> list[Entry]:
        """Objects in a folder, sorted by name."""
        fs, path = self._locate(folder)
        with storage_errors(self.uri):
            try:
                infos = fs.ls(path, detail=True)
            except FileNotFoundError:
                return []
        complete = [info for info in infos if _is_complete(info)]
        entries = [_entry(info, f"{folder}/{posixpath.basename(info['name'])}") for info in complete]
        return sorted(entries, key=lambda entry: entry.name)

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; objects that do not exist are ignored."""
        for name in names:
            fs, path = self._locate(name)
            with storage_errors(self.uri, "write"):
                try:
                    fs.rm_file(path)
                except FileNotFoundError:
                    continue

    def check_container(self) -> None:
        """Raise UserError unless the bucket exists: Lance reports a missing bucket as a missing table."""
        fs, path = open_filesystem(self.uri, self._storage)
        if not isinstance(fs, LocalFileSystem):
            with storage_errors(self.uri):
                fs.info(path.split("/")[0])

    def clock(self) -> datetime:
        """The time of the store's clock, read from an object that is written and removed."""
        name = f"probe/clock-{uuid.uuid4().hex}.json"
        self.put(name, {})
        entry = self.entry(name)
        self.remove([name])
        return datetime.now(UTC) if entry is None else entry.modified

    def remove_all(self, last: str) -> None:
        """Remove all objects and the drafts of killed processes; the object named `last` is removed last."""
        fs, path = self._locate("")
        with storage_errors(self.uri, "write"):
            for file in sorted(fs.find(path), key=lambda file: posixpath.basename(file) == last):
                fs.rm_file(file)
        self.remove_folder()

    def remove_folder(self) -> None:
        """Remove empty folders on a local disk; an object store has no folders."""
        fs, path = self._locate("")
        if isinstance(fs, LocalFileSystem):
            for folder in (*Path(path).glob("*"), Path(path), Path(path).parent):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def _locate(self, name: str) -> tuple[Any, str]:
        fs, path = open_filesystem(self.uri, self._storage)
        return fs, f"{path.rstrip('/')}/{_FOLDER}/{name}".rstrip("/")


@contextmanager
def _draft_file(path: Path, content: bytes) -> Iterator[Path]:
    """A draft in the same folder, which one system call can turn into the file; it is removed if it remains."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        draft.write_bytes(content)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _is_complete(info: dict[str, Any]) -> bool:
    return info["type"] == "file" and not posixpath.basename(info["name"]).startswith(".")


def _entry(info: dict[str, Any], name: str) -> Entry:
    modified = info.get("LastModified") or datetime.fromtimestamp(info["mtime"], UTC)
    return Entry(name, info["size"] or 0, modified, entity_tag(info))


def parse_object(content: bytes) -> dict[str, Any] | None:
    """The JSON object that some bytes encode; None if they encode none."""
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
