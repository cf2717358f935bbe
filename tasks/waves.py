"""Waves: groups of finished shards in one commit. They grow with the table, so that the cost of all is linear.

A commit rewrites the manifest, which lists all fragments. If every wave adds a quarter to the table, the manifests
of a build take five times the bytes of the last one. A killed run loses nothing by it: the receipts of finished
shards are durable, and the next run commits them.
"""

from collections.abc import Sequence

from lorif_core.storage.lease import Lease
from lorif_core.tables.receipts import Receipt, Receipts
from lorif_core.tables.store import Store

_LEAST_SHARDS = 16
_GROWTH = 0.25


class Waves:
    """Commits receipts, each shard once, and deletes the committed ones.

    Args:
        store: the index.
        receipts: its receipts.
        lease: lease of the index, held by this process; confirmed before every commit.
        spec: hash of the spec of the rows.
        since: version of `factors` whose shards are known to the caller.
        shards: number of shards in that version.
    """

    def __init__(self, store: Store, receipts: Receipts, lease: Lease, spec: str, since: int, shards: int) -> None:
        self._store, self._receipts, self._lease, self._spec = store, receipts, lease, spec
        self._version = since
        self._shards = shards
        self._waiting: list[Receipt] = []
        self.committed: list[Receipt] = []

    def add(self, receipt: Receipt) -> None:
        """Add a finished shard; commit when the wave is large enough."""
        self._waiting.append(receipt)
        if len(self._waiting) >= max(_LEAST_SHARDS, _GROWTH * self._shards):
            self.commit()

    def adopt(self, receipts: Sequence[Receipt]) -> None:
        """Commit the shards that an earlier run finished but did not commit, as one wave."""
        self._waiting += receipts
        self.commit()

    def commit(self) -> None:
        """Commit the waiting shards."""
        wave, self._waiting = self._waiting, []
        if wave:
            self._lease.confirm()
            self._version = self._store.rows.commit_wave(wave, self._version)
            self._receipts.remove(self._spec, wave)
            self._shards += len(wave)
            self.committed += wave
