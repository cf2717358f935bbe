"""Waves: finished shards are joined in large fragments and committed in growing groups, at a cost that is linear.

A commit rewrites the manifest, which lists all fragments. If every wave adds a quarter to the table, the manifests
of a build take five times the bytes of the last one. A killed run loses nothing by it: the receipts of finished
shards are durable, and the next run commits them.
"""

import logging
from collections.abc import Sequence

from lorif_core.errors import LorifError
from lorif_core.spec import parse_shard_key
from lorif_core.storage.lease import Lease
from lorif_core.tables.datafiles import DataFiles
from lorif_core.tables.receipts import Finished, JoinedReceipt, Receipt, Receipts
from lorif_core.tables.shard_rows import FRAGMENT_BYTES
from lorif_core.tables.store import Store

log = logging.getLogger(__name__)

_LEAST_SHARDS = 16
_GROWTH = 0.25


class Waves:
    """Commits finished shards, each once, and deletes the receipts of committed ones.

    Args:
        store: the index.
        lease: lease of the index, held by this process; confirmed before every commit and every deletion of files.
        spec: hash of the spec of the rows.
        since: version of `factors` whose shards are known to the caller.
        shards: number of shards in that version.

    Attributes:
        shards: keys of the shards that were committed, and whether they have rows.
        tokens: number of tokens in them.
        padded_tokens: number of tokens that were run for them, including padding.
    """

    def __init__(self, store: Store, lease: Lease, spec: str, since: int, shards: int) -> None:
        self._store, self._lease, self._spec = store, lease, spec
        self._receipts = Receipts(store.uri, store.storage)
        self._files = DataFiles(store.uri, store.storage)
        self._version, self._before = since, shards
        self._oldest = since + 1  # of the versions that these waves have made and not removed
        self._apart: list[Receipt] = []
        self._apart_bytes = 0
        self._ready: list[Finished] = []
        self.shards: dict[str, bool] = {}
        self.tokens = self.padded_tokens = 0

    @property
    def _wave_shards(self) -> float:
        return max(_LEAST_SHARDS, _GROWTH * (self._before + len(self.shards)))

    def add(self, receipt: Receipt) -> tuple[Receipt, ...]:
        """Add a finished shard; returns shards for a worker to join, if there are enough."""
        self._apart.append(receipt)
        self._apart_bytes += sum(size for _, size in receipt.files)
        return self.rest() if self._apart_bytes >= FRAGMENT_BYTES or len(self._apart) >= self._wave_shards else ()

    def rest(self) -> tuple[Receipt, ...]:
        """The shards that are not joined yet, for a worker to join them; one alone needs no joining."""
        group = sorted(self._apart, key=lambda receipt: parse_shard_key(receipt.shard))
        self._apart, self._apart_bytes = [], 0
        if sum(bool(receipt.fragments) for receipt in group) > 1:
            return tuple(group)
        self.keep(group)
        return ()

    def join_here(self, group: Sequence[Receipt]) -> None:
        """Join shards in this process, if there are any, instead of having a worker do it."""
        if group:
            joined = self._store.rows.join(group)
            self._receipts.write(joined, self._spec)
            self.add_joined(group, joined)

    def add_joined(self, group: Sequence[Receipt], joined: JoinedReceipt) -> None:
        """Add shards that a worker has joined; their own files and receipts are no longer needed."""
        self._lease.confirm()  # another process may have committed these files
        self._receipts.remove(self._spec, group)
        self._files.remove_named("factors", [name for receipt in group for name, _ in receipt.files])
        self.keep([joined])

    def keep(self, finished: Sequence[Finished]) -> None:
        """Add shards that stay as they are; commit when the wave is large enough."""
        self._ready += finished
        if sum(len(item.receipts) for item in self._ready) >= self._wave_shards:
            self.commit()

    def commit(self) -> None:
        """Commit the shards that are joined, or stay as they are."""
        wave, self._ready = self._ready, []
        if wave:
            self._lease.confirm()
            self._version = self._store.rows.commit_wave(wave, self._version)
            self._receipts.remove(self._spec, wave)
            for receipt in (receipt for item in wave for receipt in item.receipts):
                self.shards[receipt.shard] = receipt.rows > 0
                self.tokens += receipt.tokens
                self.padded_tokens += receipt.padded_tokens
            self._remove_old_versions()

    def _remove_old_versions(self) -> None:
        """Remove versions of earlier waves. Readers open only versions of generations, which are older."""
        try:
            self._store.rows.remove_versions(self._oldest, self._version)
            self._oldest = self._version
        except LorifError as error:  # they only cost space, and lorif gc removes them, too
            log.warning("old versions of the table factors stay: %s", error)
