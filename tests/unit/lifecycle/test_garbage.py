"""Invariant: garbage collection removes the kept listings of files without rows, and no others."""

from pathlib import Path

from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.corpus.file_listing import FileListing
from lorif_core.corpus.kept_listings import KeptListings
from lorif_core.lifecycle.garbage import find_garbage, remove_garbage
from lorif_core.storage.filesystem import source_file
from lorif_core.storage.lease import hold_lease
from lorif_core.tables.store import Store
from tests.unit.tables.small_store import SPEC, commit, shard


def test_listings_of_files_that_left_are_removed(tmp_path: Path) -> None:
    store, storage = Store(str(tmp_path / "index")), StorageConfig()
    store.create(SPEC)
    commit(store, 0)
    kept = KeptListings(store.uri, storage, CorpusConfig(uri=str(tmp_path)))
    files = []
    for name in ("x.jsonl", "left.jsonl"):  # the table has rows of the first
        (tmp_path / name).write_bytes(bytes(2**18))
        files.append(source_file(str(tmp_path / name), name, storage))
        kept.write(files[-1], FileListing((shard(0),)))
    assert all(kept.read(file) is not None for file in files)
    with hold_lease(store.uri, storage, "gc"):
        remove_garbage(store, find_garbage(store, 5, lease_held=True))
    assert [kept.read(file) is not None for file in files] == [True, False]
