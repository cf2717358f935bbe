"""What an index no longer needs: expired generations, files that no kept version names, receipts of no use.

Kept is what a kept generation or the newest version of a table refers to, and what a receipt of an unfinished
build names. Removing takes the lease, so it never runs beside a build.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import timedelta

from lorif_core.errors import UserError
from lorif_core.storage.lease import current_holder
from lorif_core.storage.objects import Objects
from lorif_core.tables.datafiles import DataFile, DataFiles, Upload
from lorif_core.tables.generation import Generation
from lorif_core.tables.inventory import Inventory, ShardKey
from lorif_core.tables.receipts import Receipts, is_of_spec
from lorif_core.tables.store import Store

_UPLOAD_AGE = timedelta(hours=1)  # of an unfinished multipart upload: no worker takes that long over one


@dataclass(frozen=True, slots=True)
class Garbage:
    """What can be removed.

    Attributes:
        generations: numbers of expired generations.
        curvatures: ids of fits that no kept generation uses.
        covariances: names of covariances that neither the index nor a kept generation uses.
        files: data files.
        receipts: names of receipt objects.
        uploads: multipart uploads that were begun and never ended.
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


def find_garbage(store: Store, keep: int, *, held: bool = False) -> Garbage:
    """What an index no longer needs if its newest `keep` generations are kept.

    While a build runs, what was written since it began is left out: it may be the build's.

    Args:
        store: the index.
        keep: newest generations that are kept.
        held: the caller holds the lease, so no build runs.

    Raises:
        UserError: there is no index.
    """
    if store.rows.spec() is None:
        Objects(store.uri, store.storage).check_container()
        raise UserError(f"the index {store.uri} does not exist; name one that lorif build has made")
    holder = None if held else current_holder(Objects(store.uri, store.storage))
    generations = store.generations()
    kept = generations[-keep:]
    data = DataFiles(store.uri, store.storage)
    newest = store.rows.inventory()
    specs = _specs_in_use(store, newest, kept)
    useless, awaited = _judge_receipts(store, data, newest.keys, specs)
    files: list[DataFile] = []
    for table in store.tables():
        versions = {generation.versions[table] for generation in kept if table in generation.versions}
        needed = data.named(table, versions) | awaited
        files += [file for file in data.listed(table) if file.name not in needed]
    return Garbage(
        generations=tuple(generation.generation for generation in generations[:-keep]),
        curvatures=tuple(
            sorted(store.curvatures.ids() - {part.curvature for generation in kept for part in generation.parts})
        ),
        covariances=tuple(sorted(_unused_covariances(store, kept, specs))),
        files=tuple(file for file in files if holder is None or file.modified < holder.begun),
        receipts=tuple(useless),
        uploads=tuple(data.unfinished_uploads(_UPLOAD_AGE)),
    )


def _unused_covariances(store: Store, kept: Sequence[Generation], specs: Set[str]) -> set[str]:
    parts = [part for generation in kept for part in generation.parts]
    metrics = {name for part in parts for name in (part.metric, part.index_spec.projection.whitening)}
    return {name for name, spec in store.covariances.specs().items() if name not in metrics and spec not in specs}


def _specs_in_use(store: Store, newest: Inventory, kept: Sequence[Generation]) -> set[str]:
    """Of the kept generations, of the rows in the newest version, which may be of an update that goes on, and that
    of the index.
    """
    stored = store.rows.spec()
    of_parts = {part.spec for generation in kept for part in generation.parts}
    return of_parts | set(newest.specs()) | (set() if stored is None else {stored.hash})


def remove_garbage(store: Store, garbage: Garbage) -> None:
    """Remove it. The caller holds the lease."""
    store.retire(garbage.generations, garbage.curvatures, garbage.covariances)
    store.drop_old_versions()
    data = DataFiles(store.uri, store.storage)
    data.remove(garbage.files)  # what no version ever named; the others are gone with their versions
    Receipts(store.uri, store.storage).remove_named(garbage.receipts)
    data.abort(garbage.uploads)


def _judge_receipts(
    store: Store, data: DataFiles, committed: Set[ShardKey], specs: Set[str]
) -> tuple[list[str], set[str]]:
    """Receipts of no use (committed, of another spec, unreadable, without files), and files of the others."""
    receipts = Receipts(store.uri, store.storage).all()
    awaited = {
        name: receipt
        for name, receipt in receipts.items()
        if receipt is not None
        and any(is_of_spec(name, spec) and (spec, receipt.shard) not in committed for spec in specs)
    }
    whole = {receipt.shard for receipt in data.adoptable(list(awaited.values()))}
    kept = {name: receipt for name, receipt in awaited.items() if receipt.shard in whole}
    files = {file for receipt in kept.values() for file, _ in receipt.files}
    return sorted(receipts.keys() - kept.keys()), files
