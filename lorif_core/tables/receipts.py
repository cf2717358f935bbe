"""Receipts: a receipt durably records that a worker has finished a shard, until the shard's rows are committed.

A worker writes its uncommitted fragments, then the receipt. A build that resumes after a crash commits the
fragments that the receipts name instead of computing them again.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from lorif_core.config import StorageConfig
from lorif_core.storage.objects import Objects
from lorif_core.tables.file_digests import sealed, unsealed

_FOLDER = "receipts"
_FORMAT = 1
_THREADS = 16  # reading receipts waits for the storage, not for the CPU


@dataclass(frozen=True, slots=True)
class Receipt:
    """A finished shard: metadata of its uncommitted fragments, counts, and (id, reason) of skipped examples."""

    shard: str
    fragments: tuple[str, ...]
    rows: int
    tokens: int
    padded_tokens: int
    skipped: tuple[tuple[str, str], ...]
    seconds: float

    @property
    def files(self) -> list[tuple[str, int]]:
        """(name, bytes) of the data files of the fragments."""
        metadata = (json.loads(fragment) for fragment in self.fragments)
        return [(file["path"], file["file_size_bytes"]) for fragment in metadata for file in fragment["files"]]


class Receipts:
    """The receipts of one index.

    Args:
        uri: URI of the index.
        storage: settings of its storage.
    """

    def __init__(self, uri: str, storage: StorageConfig) -> None:
        self._objects = Objects(uri, storage)

    def write(self, receipt: Receipt, spec: str) -> None:
        """Store a receipt. If a shard is indexed again, its new receipt replaces the old one."""
        value = sealed({"format": _FORMAT, "spec": spec, **asdict(receipt)})
        self._objects.put(_name(spec, receipt.shard), value)

    def of_shards(self, spec: str, shards: Iterable[str]) -> list[Receipt]:
        """The stored receipts of some shards under a spec, in the order of the shards."""
        stored = {entry.name for entry in self._objects.names(_FOLDER)}
        names = [name for name in (_name(spec, shard) for shard in shards) if name in stored]
        return [receipt for receipt in self._read(names) if receipt is not None]

    def all(self) -> dict[str, Receipt | None]:
        """All receipts by the name of their object; None for a receipt that cannot be read."""
        names = [entry.name for entry in self._objects.names(_FOLDER)]
        return dict(zip(names, self._read(names), strict=True))

    def remove(self, spec: str, receipts: Iterable[Receipt]) -> None:
        """Remove the receipts of committed shards."""
        self.remove_named([_name(spec, receipt.shard) for receipt in receipts])

    def remove_named(self, names: Sequence[str]) -> None:
        """Remove receipts by the names of their objects."""
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda name: self._objects.remove([name]), names))

    def _read(self, names: Sequence[str]) -> list[Receipt | None]:
        with ThreadPoolExecutor(_THREADS) as pool:
            return [_parse(unsealed(value)) for value in pool.map(self._objects.get, names)]


def _name(spec: str, shard: str) -> str:
    return f"{_FOLDER}/{spec}-{hashlib.sha256(shard.encode()).hexdigest()[:32]}.json"


def is_of_spec(name: str, spec: str) -> bool:
    """Whether an object name is that of a receipt under a spec."""
    return name.startswith(f"{_FOLDER}/{spec}-")


def _parse(value: dict[str, Any] | None) -> Receipt | None:
    if value is None or value.get("format") != _FORMAT:
        return None
    return Receipt(
        shard=value["shard"],
        fragments=tuple(value["fragments"]),
        rows=value["rows"],
        tokens=value["tokens"],
        padded_tokens=value["padded_tokens"],
        skipped=tuple((example_id, reason) for example_id, reason in value["skipped"]),
        seconds=value["seconds"],
    )
