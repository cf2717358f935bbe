"""Waves: groups of finished shards in one commit, so that versions stay few and a killed run loses little."""

import time
from collections.abc import Sequence

from lorif_core.storage.lease import Lease
from lorif_core.tables.receipts import Receipt, Receipts
from lorif_core.tables.store import Store

_SHARDS_PER_WAVE = 16
_SECONDS_PER_WAVE = 60.0


class Waves:
    """Commits receipts, each shard once, and deletes the committed ones.

    Args:
        store: the index.
        receipts: its receipts.
        lease: lease of the index, held by this process; confirmed before every commit.
        spec: hash of the spec of the rows.
        since: version of `factors` whose shards are known to the caller.
    """

    def __init__(self, store: Store, receipts: Receipts, lease: Lease, spec: str, since: int) -> None:
        self._store, self._receipts, self._lease, self._spec = store, receipts, lease, spec
        self._version = since
        self._waiting: list[Receipt] = []
        self._began = time.monotonic()
        self.committed: list[Receipt] = []

    def add(self, receipt: Receipt) -> None:
        """Add a finished shard; commit when the wave is large or old enough."""
        self._waiting.append(receipt)
        if len(self._waiting) >= _SHARDS_PER_WAVE or time.monotonic() - self._began > _SECONDS_PER_WAVE:
            self.commit()

    def adopt(self, receipts: Sequence[Receipt]) -> None:
        """Commit the shards that an earlier run finished but did not commit, as one wave."""
        self._waiting += receipts
        self.commit()

    def commit(self) -> None:
        """Commit the waiting shards."""
        wave, self._waiting, self._began = self._waiting, [], time.monotonic()
        if wave:
            self._lease.confirm()
            self._version = self._store.rows.commit_wave(wave, self._version)
            self._receipts.remove(self._spec, wave)
            self.committed += wave
