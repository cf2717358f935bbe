"""Garbage collection: expired generations, files that no retained version refers to, and useless receipts.

Everything that a retained generation, the newest version of a table or a receipt of an unfinished build refers to
is retained. The caller of the removal holds the lease, so that no build runs at the same time.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import timedelta

from lorif_core.corpus.kept_listings import remove_listings
from lorif_core.errors import UserError
from lorif_core.spec import parse_shard_key
from lorif_core.storage.lease import current_holder
from lorif_core.storage.objects import Objects
from lorif_core.tables.datafiles import DataFile, DataFiles, Upload
from lorif_core.tables.file_digests import FileDigests
from lorif_core.tables.generation import Generation
from lorif_core.tables.inventory import Inventory, ShardKey
from lorif_core.tables.receipts import Receipts, is_of_spec
from lorif_core.tables.store import Store

_UPLOAD_AGE = timedelta(hours=1)  # no worker needs that long for a multipart upload


@dataclass(frozen=True, slots=True)
class Garbage:
    """What can be removed.

    Attributes:
        generations: numbers of expired generations.
        curvatures: ids of fits that no retained generation uses.
        covariances: names of covariances that neither the index nor a retained generation uses.
        files: data files.
        receipts: names of receipt objects.
        uploads: multipart uploads that were never completed.
    """

    generations: tuple[int, ...]
    curvatures: tuple[str, ...]
    covariances: tuple[str, ...]
    files: tuple[DataFile, ...]
    receipts: tuple[str, ...]
    uploads: tuple[Upload, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the data files."""
        return sum(file.size for file in self.files)


def find_garbage(store: Store, keep: int, *, lease_held: bool = False) -> Garbage:
    """What an index no longer needs if its newest `keep` generations are retained.

    While a build runs, files that were written after its start are not garbage, because they may belong to it.

    Args:
        store: the index.
        keep: number of generations to retain.
        lease_held: the caller holds the lease, so no build runs.

    Raises:
        UserError: the index does not exist.
    """
    if store.rows.spec() is None:
        Objects(store.uri, store.storage).check_container()
        raise UserError(f"the index {store.uri} does not exist; name an index that lorif build has made")
    holder = None if lease_held else current_holder(Objects(store.uri, store.storage))
    generations = store.generations()
    retained = generations[-keep:]
    data = DataFiles(store.uri, store.storage)
    newest = store.rows.inventory()
    specs = _specs_in_use(store, newest, retained)
    useless, receipt_files = _classify_receipts(store, data, newest.keys, specs)
    files: list[DataFile] = []
    for table in store.tables():
        versions = {generation.versions[table] for generation in retained if table in generation.versions}
        needed = data.referenced(table, versions) | receipt_files
        files += [file for file in data.list_files(table) if file.name not in needed]
    used_curvatures = {part.curvature for generation in retained for part in generation.parts}
    return Garbage(
        generations=tuple(generation.generation for generation in generations[:-keep]),
        curvatures=tuple(sorted(store.curvatures.ids() - used_curvatures)),
        covariances=tuple(sorted(_unused_covariances(store, retained, specs))),
        files=tuple(file for file in files if holder is None or file.modified < holder.held_since),
        receipts=tuple(useless),
        uploads=tuple(data.unfinished_uploads(_UPLOAD_AGE)),
    )


def _unused_covariances(store: Store, retained: Sequence[Generation], specs: Set[str]) -> set[str]:
    parts = [part for generation in retained for part in generation.parts]
    metrics = {name for part in parts for name in (part.metric, part.index_spec.projection.whitening)}
    return {name for name, spec in store.whitenings.specs().items() if name not in metrics and spec not in specs}


def _specs_in_use(store: Store, newest: Inventory, retained: Sequence[Generation]) -> set[str]:
    """Specs of the index, of retained generations, and of rows in the newest version (of an unfinished update)."""
    stored = store.rows.spec()
    of_parts = {part.spec for generation in retained for part in generation.parts}
    return of_parts | set(newest.specs()) | (set() if stored is None else {stored.hash})


def remove_garbage(store: Store, garbage: Garbage) -> None:
    """Remove garbage. The caller holds the lease."""
    store.retire(garbage.generations, garbage.curvatures, garbage.covariances)
    store.drop_old_versions()
    data = DataFiles(store.uri, store.storage)
    data.remove(garbage.files)  # files that no version referred to; the others disappeared with their versions
    Receipts(store.uri, store.storage).remove_named(garbage.receipts)
    data.abort(garbage.uploads)
    existing = {(table, file.name) for table in store.tables() for file in data.list_files(table)}
    FileDigests(store.uri, store.storage).remove_unused(existing)
    indexed = {parse_shard_key(shard)[0].name for _, shard in store.rows.inventory().keys}
    remove_listings(Objects(store.uri, store.storage), indexed)


def _classify_receipts(
    store: Store, data: DataFiles, committed: Set[ShardKey], specs: Set[str]
) -> tuple[list[str], set[str]]:
    """Names of useless receipts, and the files of useful receipts.

    A receipt is useless if it is committed, of an unused spec, unreadable, or its files are incomplete.
    """
    receipts = Receipts(store.uri, store.storage).all()
    uncommitted = {
        name: finished
        for name, finished in receipts.items()
        if finished is not None
        and any(
            is_of_spec(name, spec) and (spec, receipt.shard) not in committed
            for spec in specs
            for receipt in finished.receipts
        )
    }
    adoptable = {finished.key for finished in data.adoptable(list(uncommitted.values()))}
    useful = {name: finished for name, finished in uncommitted.items() if finished.key in adoptable}
    files = {file for receipt in useful.values() for file, _ in receipt.files}
    return sorted(receipts.keys() - useful.keys()), files
