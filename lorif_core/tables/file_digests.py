"""Digests and contents of data files, recorded when they are committed; `lorif verify` compares digests first.

Lance neither checks its files nor bounds the memory that a damaged length makes it allocate.
"""

import json
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from xxhash import xxh3_64, xxh3_64_hexdigest

from lorif_core.config import StorageConfig
from lorif_core.storage.filesystem import open_filesystem, storage_errors
from lorif_core.storage.objects import Objects
from lorif_core.tables.contents import decode_contents, file_contents

_FOLDER = "digests"
_THREADS = 16
_BLOCK_BYTES = 2**23
_SEAL = "checksum"
DIGESTS_KEY = "lorif.digests"
"""Key of the digests by file name in the metadata, as JSON, of a written fragment."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """The digest of a data file of a table.

    `key` is that of the commit that added it, for rows that of a receipt; it is empty for a rewritten file.
    `shards` are those of its rows, as far as they are known.
    """

    table: str
    name: str
    digest: str
    key: str
    shards: tuple[str, ...] = ()


class FileDigests:
    """The recorded digests of one index, one object for each commit.

    Args:
        uri: URI of the index.
        storage: settings of its storage.
    """

    def __init__(self, uri: str, storage: StorageConfig) -> None:
        self._uri, self._storage = uri, storage
        self._objects = Objects(uri, storage)

    def compute(self, table: str, name: str) -> str:
        """XXH3 (64 bits) of a data file, as hex."""
        fs, path = open_filesystem(f"{self._uri}/{table}.lance/data/{name}", self._storage)
        digest = xxh3_64()
        with storage_errors(self._uri), fs.open(path, "rb", block_size=_BLOCK_BYTES) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def record(self, table: str, fragments: Mapping[str, Iterable[str]]) -> None:
        """Store digests and contents of written fragments (metadata as JSON) by key, before they are committed."""
        files: list[list[str]] = []
        contents: dict[str, Any] = {}
        for key, parts in fragments.items():
            for fragment in map(json.loads, parts):
                files += [[name, digest, key] for name, digest in fragment.get(DIGESTS_KEY, {}).items()]
                contents |= file_contents(fragment)
        if files:
            name = f"{_FOLDER}/{table}-{uuid.uuid4().hex}.json"
            self._objects.put(name, sealed({"table": table, "files": files, "contents": contents}))

    def read(self) -> tuple[list[FileDigest], list[str]]:
        """All recorded digests, and the names of objects that are damaged."""
        digests, damaged_objects = [], []
        for object_name, value in self._values():
            if value is None:
                damaged_objects.append(object_name)
            else:
                contents = value.get("contents", {})
                for name, digest, key in value["files"]:
                    counts = decode_contents(contents.get(name, ()))
                    shards = tuple(count.shard for count in counts) or ((key,) if key else ())
                    digests.append(FileDigest(value["table"], name, digest, key, shards))
        return digests, damaged_objects

    def contents(self, table: str) -> dict[str, Any]:
        """Recorded contents, encoded, by the name of their file; damaged objects are left out."""
        contents: dict[str, Any] = {}
        for _, value in self._values(f"{table}-"):
            contents |= {} if value is None else value.get("contents", {})
        return contents

    def remove_unused(self, existing: set[tuple[str, str]]) -> None:
        """Remove the objects of commits without any existing file, given (table, name) of those that exist."""
        self._objects.remove(
            name
            for name, value in self._values()
            if value is not None and existing.isdisjoint((value["table"], file[0]) for file in value["files"])
        )

    def _values(self, prefix: str = "") -> list[tuple[str, dict[str, Any] | None]]:
        names = [entry.name for entry in self._objects.names(_FOLDER)]
        names = [name for name in names if name.startswith(f"{_FOLDER}/{prefix}")]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(zip(names, map(unsealed, pool.map(self._objects.get, names)), strict=True))


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a checksum of its other keys."""
    return {**value, _SEAL: _checksum(value)}


def unsealed(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The object without its checksum; None if it differs from it, or is no object. Older objects have none."""
    if value is None:
        return None
    plain = {key: item for key, item in value.items() if key != _SEAL}
    return plain if value.get(_SEAL, _checksum(plain)) == _checksum(plain) else None


def _checksum(value: Mapping[str, Any]) -> str:
    return xxh3_64_hexdigest(json.dumps(value, sort_keys=True).encode())
