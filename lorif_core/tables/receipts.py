"""Receipts: a receipt durably records that a worker has finished a shard, until the shard's rows are committed.

A worker writes its uncommitted fragments, then the receipt. Later a worker joins the rows of many shards in one
fragment, and a receipt of all of them replaces theirs. A build that resumes after a crash commits the fragments
that the receipts name instead of computing them again.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from lorif_core.config import StorageConfig
from lorif_core.storage.objects import Objects
from lorif_core.tables.file_digests import sealed, unsealed

_FOLDER = "receipts"
_FORMAT = 1
_JOINED_FORMAT = 2
_JOINED = "joined-"
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
    def key(self) -> str:
        """The key under which the rows are committed."""
        return self.shard

    @property
    def receipts(self) -> tuple["Receipt", ...]:
        """The receipts of the shards: this one."""
        return (self,)

    @property
    def files(self) -> list[tuple[str, int]]:
        """(name, bytes) of the data files of the fragments."""
        return _files(self.fragments)


@dataclass(frozen=True, slots=True)
class JoinedReceipt:
    """Finished shards whose rows are in one uncommitted fragment, and their receipts, which name no fragments."""

    fragments: tuple[str, ...]
    receipts: tuple[Receipt, ...]

    @property
    def key(self) -> str:
        """The key under which the rows are committed; the same if the same shards are joined again."""
        shards = "\n".join(receipt.shard for receipt in self.receipts)
        return f"{_JOINED}{hashlib.sha256(shards.encode()).hexdigest()[:32]}"

    @property
    def files(self) -> list[tuple[str, int]]:
        """(name, bytes) of the data file."""
        return _files(self.fragments)


Finished = Receipt | JoinedReceipt


def _files(fragments: Iterable[str]) -> list[tuple[str, int]]:
    metadata = (json.loads(fragment) for fragment in fragments)
    return [(file["path"], file["file_size_bytes"]) for fragment in metadata for file in fragment["files"]]


def distinct(finished: Iterable[Finished]) -> list[Finished]:
    """Finished shards, each once: joined ones first, without those that others have, too."""
    shards: set[str] = set()
    chosen: list[Finished] = []
    for item in sorted(finished, key=lambda item: -len(item.receipts)):
        if shards.isdisjoint(receipt.shard for receipt in item.receipts):
            shards.update(receipt.shard for receipt in item.receipts)
            chosen.append(item)
    return chosen


class Receipts:
    """The receipts of one index.

    Args:
        uri: URI of the index.
        storage: settings of its storage.
    """

    def __init__(self, uri: str, storage: StorageConfig) -> None:
        self._objects = Objects(uri, storage)

    def write(self, finished: Finished, spec: str) -> None:
        """Store a receipt. If a shard is indexed again, its new receipt replaces the old one."""
        version = _FORMAT if isinstance(finished, Receipt) else _JOINED_FORMAT
        value = sealed({"format": version, "spec": spec, **asdict(finished)})
        self._objects.put(_name(spec, finished), value)

    def finished(self, spec: str, shards: Set[str]) -> list[Finished]:
        """The stored receipts under a spec that have one of these shards."""
        stored = [entry.name for entry in self._objects.names(_FOLDER)]
        names = {_shard_name(spec, shard) for shard in shards}
        joined = f"{_FOLDER}/{spec}-{_JOINED}"
        items = self._read([name for name in stored if name in names or name.startswith(joined)])
        return [
            item
            for item in items
            if item is not None and not shards.isdisjoint(receipt.shard for receipt in item.receipts)
        ]

    def all(self) -> dict[str, Finished | None]:
        """All receipts by the name of their object; None for a receipt that cannot be read."""
        names = [entry.name for entry in self._objects.names(_FOLDER)]
        return dict(zip(names, self._read(names), strict=True))

    def remove(self, spec: str, finished: Iterable[Finished]) -> None:
        """Remove receipts, those of committed shards or of shards that were joined."""
        self.remove_named([_name(spec, item) for item in finished])

    def remove_named(self, names: Sequence[str]) -> None:
        """Remove receipts by the names of their objects."""
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda name: self._objects.remove([name]), names))

    def _read(self, names: Sequence[str]) -> list[Finished | None]:
        with ThreadPoolExecutor(_THREADS) as pool:
            return [_parse(unsealed(value)) for value in pool.map(self._objects.get, names)]


def _name(spec: str, finished: Finished) -> str:
    if isinstance(finished, Receipt):
        return _shard_name(spec, finished.shard)
    return f"{_FOLDER}/{spec}-{finished.key}.json"


def _shard_name(spec: str, shard: str) -> str:
    return f"{_FOLDER}/{spec}-{hashlib.sha256(shard.encode()).hexdigest()[:32]}.json"


def is_of_spec(name: str, spec: str) -> bool:
    """Whether an object name is that of a receipt under a spec."""
    return name.startswith(f"{_FOLDER}/{spec}-")


def _parse(value: dict[str, Any] | None) -> Finished | None:
    if value is None or value.get("format") not in (_FORMAT, _JOINED_FORMAT):
        return None
    if value["format"] == _JOINED_FORMAT:
        return JoinedReceipt(tuple(value["fragments"]), tuple(map(_parse_shard, value["receipts"])))
    return _parse_shard(value)


def _parse_shard(value: dict[str, Any]) -> Receipt:
    return Receipt(
        shard=value["shard"],
        fragments=tuple(value["fragments"]),
        rows=value["rows"],
        tokens=value["tokens"],
        padded_tokens=value["padded_tokens"],
        skipped=tuple((example_id, reason) for example_id, reason in value["skipped"]),
        seconds=value["seconds"],
    )
