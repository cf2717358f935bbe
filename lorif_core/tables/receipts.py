"""Receipts: the durable record that a worker finished a shard, kept until the shard's rows are committed.

A worker writes its uncommitted fragments, then the receipt. A build that runs again after a death commits what
the receipts of its shards name instead of doing the work again.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from lorif_core.config import StorageConfig
from lorif_core.storage.objects import Objects

_FOLDER = "receipts"
_FORMAT = 1
_THREADS = 16  # reading receipts waits for the store, not for this machine


@dataclass(frozen=True, slots=True)
class Receipt:
    """A finished shard: metadata of its uncommitted fragments, counts, and what was left out and why."""

    shard: str
    fragments: tuple[str, ...]
    rows: int
    tokens: int
    padded_tokens: int
    skipped: tuple[tuple[str, str], ...]
    seconds: float

    @property
    def files(self) -> list[tuple[str, int]]:
        """(name, bytes) of the data files that the fragments consist of."""
        described = (json.loads(fragment) for fragment in self.fragments)
        return [(file["path"], file["file_size_bytes"]) for fragment in described for file in fragment["files"]]


class Receipts:
    """The receipts of one index.

    Args:
        uri: the index.
        storage: where it is.
    """

    def __init__(self, uri: str, storage: StorageConfig) -> None:
        self._objects = Objects(uri, storage)

    def write(self, receipt: Receipt, spec: str) -> None:
        """Keep a receipt; a second one of the same shard, from a call that was repeated, replaces the first."""
        self._objects.put(_name(spec, receipt.shard), {"format": _FORMAT, "spec": spec, **asdict(receipt)})

    def of_shards(self, spec: str, shards: Iterable[str]) -> list[Receipt]:
        """Receipts that are there for some shards under a spec, in the order of the shards."""
        present = {entry.name for entry in self._objects.names(_FOLDER)}
        names = [name for name in (_name(spec, shard) for shard in shards) if name in present]
        return [receipt for receipt in self._read(names) if receipt is not None]

    def all(self) -> dict[str, Receipt | None]:
        """Every receipt by the name of its object; None for one that cannot be read."""
        names = [entry.name for entry in self._objects.names(_FOLDER)]
        return dict(zip(names, self._read(names), strict=True))

    def remove(self, spec: str, receipts: Iterable[Receipt]) -> None:
        """Remove receipts of shards that are committed."""
        self.remove_named([_name(spec, receipt.shard) for receipt in receipts])

    def remove_named(self, names: Sequence[str]) -> None:
        """Remove receipts by the names of their objects."""
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda name: self._objects.remove([name]), names))

    def _read(self, names: Sequence[str]) -> list[Receipt | None]:
        with ThreadPoolExecutor(_THREADS) as pool:
            return [_parse(value) for value in pool.map(self._objects.get, names)]


def _name(spec: str, shard: str) -> str:
    return f"{_FOLDER}/{spec}-{hashlib.sha256(shard.encode()).hexdigest()[:32]}.json"


def is_of_spec(name: str, spec: str) -> bool:
    """Whether the object of this name is a receipt under a spec."""
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
