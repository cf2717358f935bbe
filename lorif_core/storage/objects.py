"""Small objects beside the tables of an index, or beside answers: written whole, created once, listed, removed.

They lie in the folder `_lorif` there: receipts of shards and of runs, the lease, probes; answers on their way.
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
from lorif_core.storage.faults import is_refused_condition
from lorif_core.storage.filesystem import contact, entity_tag, open_filesystem

_FOLDER = "_lorif"


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as it is listed; `modified` is the store's clock, `tag` changes with every write."""

    name: str
    size: int
    modified: datetime
    tag: str


class Objects:
    """The small objects of one index. Names are relative, such as `receipts/x.json`.

    Every method raises UserError for a store that cannot be reached or refuses, and StoreUnavailableError for one
    that keeps failing.

    Args:
        uri: the index.
        storage: where it is.
    """

    def __init__(self, uri: str, storage: StorageConfig) -> None:
        self.uri = uri.rstrip("/")
        self._storage = storage

    def put(self, name: str, value: dict[str, Any]) -> None:
        """Write an object, whole or not at all; one of that name is replaced."""
        self.put_bytes(name, _encoded(value))

    def put_bytes(self, name: str, content: bytes) -> None:
        """Write an object that is not JSON, as `put` does."""
        fs, path = self._locate(name)
        with contact(self.uri, "write"):
            if isinstance(fs, LocalFileSystem):
                with _written_beside(Path(path), content) as draft:
                    draft.replace(path)
            else:
                fs.pipe_file(path, content)

    def get_bytes(self, name: str) -> bytes | None:
        """An object as it is, or None if it is not there."""
        fs, path = self._locate(name)
        with contact(self.uri):
            try:
                return fs.cat_file(path)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def create(self, name: str, value: dict[str, Any]) -> bool:
        """Write an object unless one of that name is there; whether this value is the one that is there now.

        On an object store this is If-None-Match: *, which is only as good as the store (`probe.py`). Values must
        be unique to their writer: when an answer is lost and asked for again, that tells our own from another's.
        """
        fs, path = self._locate(name)
        with contact(self.uri, "write"):
            try:
                if isinstance(fs, LocalFileSystem):
                    with _written_beside(Path(path), _encoded(value)) as draft:
                        os.link(draft, path)
                else:
                    fs.pipe_file(path, _encoded(value), mode="create")
                return True
            except OSError as error:
                if not is_refused_condition(error):
                    raise
        return self.get(name) == value

    def get(self, name: str) -> dict[str, Any] | None:
        """An object, or None if it is not there or is not one of ours."""
        try:
            found = json.loads(self.get_bytes(name) or b"")
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def entry(self, name: str) -> Entry | None:
        """Size, time and tag of an object, or None if it is not there."""
        fs, path = self._locate(name)
        with contact(self.uri):
            try:
                return _entry(fs.info(path), name)
            except FileNotFoundError:
                return None

    def names(self, folder: str) -> list[Entry]:
        """Objects in a folder, sorted by name."""
        fs, path = self._locate(folder)
        with contact(self.uri):
            try:
                infos = fs.ls(path, detail=True)
            except FileNotFoundError:
                return []
        found = [_entry(info, f"{folder}/{posixpath.basename(info['name'])}") for info in infos if _is_whole(info)]
        return sorted(found, key=lambda entry: entry.name)

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that are gone already are no error."""
        for name in names:
            fs, path = self._locate(name)
            with contact(self.uri, "write"):
                try:
                    fs.rm_file(path)
                except FileNotFoundError:
                    continue

    def check_container(self) -> None:
        """Raise UserError unless the bucket is there: Lance takes a missing one for a missing table."""
        fs, path = open_filesystem(self.uri, self._storage)
        if not isinstance(fs, LocalFileSystem):
            with contact(self.uri):
                fs.info(path.split("/")[0])

    def clock(self) -> datetime:
        """The store's own time, read off an object that is written and removed."""
        name = f"probe/clock-{uuid.uuid4().hex}.json"
        self.put(name, {})
        entry = self.entry(name)
        self.remove([name])
        return datetime.now(UTC) if entry is None else entry.modified

    def remove_all(self, last: str) -> None:
        """Remove all objects, one of them when no other is left, and drafts of processes that were killed."""
        fs, path = self._locate("")
        with contact(self.uri, "write"):
            for file in sorted(fs.find(path), key=lambda file: posixpath.basename(file) == last):
                fs.rm_file(file)
        self.remove_folder()

    def remove_folder(self) -> None:
        """Remove the empty folders that are left on a local disk; an object store has none."""
        fs, path = self._locate("")
        if isinstance(fs, LocalFileSystem):
            for folder in (*Path(path).glob("*"), Path(path), Path(path).parent):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def _locate(self, name: str) -> tuple[Any, str]:
        fs, path = open_filesystem(self.uri, self._storage)
        return fs, f"{path.rstrip('/')}/{_FOLDER}/{name}".rstrip("/")


@contextmanager
def _written_beside(path: Path, content: bytes) -> Iterator[Path]:
    """A draft in the same folder, so that one system call makes it the file; whatever is left of it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        draft.write_bytes(content)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _is_whole(info: dict[str, Any]) -> bool:
    return info["type"] == "file" and not posixpath.basename(info["name"]).startswith(".")


def _entry(info: dict[str, Any], name: str) -> Entry:
    modified = info.get("LastModified") or datetime.fromtimestamp(info["mtime"], UTC)
    return Entry(name, info["size"] or 0, modified, entity_tag(info))


def _encoded(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
