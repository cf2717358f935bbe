"""Hashes of very many ids, of which one part at a time is in memory."""

from collections.abc import Iterable, Iterator
from itertools import islice
from tempfile import SpooledTemporaryFile
from threading import Lock

import numpy as np

_PART_BITS = 6
_PART_BYTES = 2**18  # a part is in memory until it has so many
_SIEVE_BITS = 24
_HASHES_AT_ONCE = 2**16


class IdHashes:
    """64-bit hashes of ids, in temporary files if they are many. They differ from process to process.

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
        hashes = map(hash, ids)
        while len(chunk := np.fromiter(islice(hashes, _HASHES_AT_ONCE), np.int64).view(np.uint64)):
            if among is not None:
                chunk = chunk[among._sieve[chunk >> np.uint64(64 - _SIEVE_BITS)]]
            self._append(np.sort(chunk))

    def _append(self, ordered: np.ndarray) -> None:
        edges = np.searchsorted(ordered >> np.uint64(64 - _PART_BITS), np.arange(len(self._parts) + 1))
        with self._adding:
            self._sieve[ordered >> np.uint64(64 - _SIEVE_BITS)] = True
            self._count += len(ordered)
            for part, start, stop in zip(self._parts, edges, edges[1:], strict=False):
                part.write(ordered[start:stop].tobytes())

    def repeated(self) -> set[int]:
        """The hashes, as those of Python, that were added more than once."""
        repeated: set[int] = set()
        for hashes in self._sorted_parts():
            repeated.update(_as_python(hashes[1:][hashes[1:] == hashes[:-1]]))
        return repeated

    def common(self, other: "IdHashes") -> set[int]:
        """The hashes, as those of Python, that both have."""
        common: set[int] = set()
        for mine, theirs in zip(self._sorted_parts(), other._sorted_parts(), strict=True):
            common.update(_as_python(np.intersect1d(mine, theirs)))
        return common

    def _sorted_parts(self) -> Iterator[np.ndarray]:
        for part in self._parts:
            part.seek(0)
            yield np.sort(np.frombuffer(part.read(), np.uint64))
            part.seek(0, 2)


def _as_python(hashes: np.ndarray) -> list[int]:
    return hashes.view(np.int64).tolist()
