"""Invariant: repeated ids are found however many there are, with one part of the hashes in memory at a time."""

import tracemalloc

import pytest

from lorif_core.corpus import id_hashes
from lorif_core.corpus.id_hashes import IdHashes, hash_id


@pytest.mark.parametrize("part_bytes", [64, 2**20], ids=["in files", "in memory"])
def test_repeated_and_common_ids_are_found(part_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_hashes, "_PART_BYTES", part_bytes)
    first, second = IdHashes(), IdHashes()
    first.add(f"id {number}" for number in range(3000))
    assert len(first) == 3000 and not first.repeated()
    first.add(["id 7", "id 2999"])
    first.add([])
    assert first.repeated() == {hash_id("id 7"), hash_id("id 2999")}
    second.add((f"id {number}" for number in range(2990, 9000)), among=first)
    assert second.common(first) == {hash_id(f"id {number}") for number in range(2990, 3000)}
    assert len(second) < 100, "others cannot be common, and are left out"


def test_memory_does_not_grow_with_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_hashes, "_PART_BYTES", 2**12)
    ids = IdHashes()
    tracemalloc.start()
    ids.add(str(number) for number in range(1_000_000))
    assert not ids.repeated()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000 * 8 / 2
