"""Hashes of very many ids, of which one part at a time is in memory."""

from collections.abc import Iterable, Iterator
from itertools import islice
from tempfile import SpooledTemporaryFile
from threading import Lock

import numpy as np
from xxhash import xxh3_64_intdigest

_PART_BITS = 6
_PART_BYTES = 2**18  # a part is in memory until it has so many
_SIEVE_BITS = 24
_HASHES_AT_ONCE = 2**16


def hash_id(text: str) -> int:
    """64-bit hash of an id, the same in every process."""
    return xxh3_64_intdigest(text.encode())


def hashes_of(ids: Iterable[str]) -> Iterator[np.ndarray]:
    """The hashes of ids, uint64, some at a time and in their order."""
    hashes = map(hash_id, ids)
    while len(chunk := np.fromiter(islice(hashes, _HASHES_AT_ONCE), np.uint64)):
        yield chunk


class IdHashes:
    """64-bit hashes of ids, in temporary files if they are many.

    Threads may add hashes at the same time.
    """

    def __init__(self) -> None:
        self._parts = [SpooledTemporaryFile(_PART_BYTES) for _ in range(2**_PART_BITS)]  # noqa: SIM115 - closed with it
        self._sieve = np.zeros(2**_SIEVE_BITS, bool)
        self._adding = Lock()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, ids: Iterable[str], among: "IdHashes | None" = None) -> None:
        """Add the hashes of ids; with `among` only those that may be in the other hashes."""
        for chunk in hashes_of(ids):
            if among is not None:
                chunk = chunk[among._sieve[chunk >> np.uint64(64 - _SIEVE_BITS)]]
            self.add_sorted(np.sort(chunk))

    def add_sorted(self, ordered: np.ndarray) -> None:
        """Add hashes, uint64, in ascending order."""
        edges = np.searchsorted(ordered >> np.uint64(64 - _PART_BITS), np.arange(len(self._parts) + 1))
        with self._adding:
            self._sieve[ordered >> np.uint64(64 - _SIEVE_BITS)] = True
            self._count += len(ordered)
            for part, start, stop in zip(self._parts, edges, edges[1:], strict=False):
                part.write(ordered[start:stop].tobytes())

    def repeated(self) -> set[int]:
        """The hashes that were added more than once."""
        repeated: set[int] = set()
        for hashes in self._sorted_parts():
            repeated.update(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        return repeated

    def common(self, other: "IdHashes") -> set[int]:
        """The hashes that both have."""
        common: set[int] = set()
        for mine, theirs in zip(self._sorted_parts(), other._sorted_parts(), strict=True):
            common.update(np.intersect1d(mine, theirs).tolist())
        return common

    def _sorted_parts(self) -> Iterator[np.ndarray]:
        for part in self._parts:
            part.seek(0)
            yield np.sort(np.frombuffer(part.read(), np.uint64))
            part.seek(0, 2)
