"""Verification: read everything that an index stores, compare it with its checksums, and name what is damaged.

Files are compared with their recorded digests first. Lance reads only files that have not changed, because a
damaged length can make it allocate all memory.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from lorif_core.errors import LorifError, StoreUnavailableError, UserError
from lorif_core.lifecycle.removal import read_removals
from lorif_core.tables.checksums import CHECKSUMS, columns_of, damaged_rows, example_names
from lorif_core.tables.datafiles import DataFiles
from lorif_core.tables.datasets import Tables, table_errors
from lorif_core.tables.file_digests import FileDigest
from lorif_core.tables.generation import Generation
from lorif_core.tables.receipts import Receipts
from lorif_core.tables.store import TABLES, Store

_THREADS = 8
_GROUPS = (0, 1, 2)
_BATCH_ROWS = 256
_BACKUP = "restore the index from a copy, or build it again in another place"
_REPAIR = "run lorif verify {uri} --repair"
_ADVICE = {
    "factors": _REPAIR
    + ": it publishes a generation without the named shards; lorif update -c CONFIG then indexes "
    "them again; damage that only earlier generations have goes with them: lorif gc {uri} --apply --keep 1",
    "curvature": _REPAIR + ": it fits the curvature again and publishes a generation",
    "tags": "delete the file _refs/tags/generation-N.json of the table, then "
    + _REPAIR
    + ", which writes it again",
    "skipped": "delete the folder skipped.lance; the next update creates it again, without the former reasons",
    "objects": "delete the file; it only saves work or names files",
}


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is damaged.

    Attributes:
        table: the table, or `tags` or `objects` for files beside the tables.
        what: what is wrong, in a few words.
        file: the damaged data file, if it is known.
        shards: shards with rows in it, for the table `factors`.
    """

    table: str
    what: str
    file: str | None = None
    shards: tuple[str, ...] = ()

    def advice(self, uri: str) -> str:
        """How to repair it."""
        return _ADVICE.get(self.table, _BACKUP).format(uri=uri)


@dataclass(slots=True)
class Verification:
    """The result: damage, and how much was read; `unchecked` rows and files were written by an older lorif."""

    damage: list[Damage] = field(default_factory=list)
    generations: int = 0
    rows: int = 0
    unchecked_rows: int = 0
    files: int = 0
    unchecked_files: int = 0

    @property
    def damaged_files(self) -> set[str]:
        """Data files of `factors` that are damaged or have damaged rows."""
        return {item.file for item in self.damage if item.table == "factors" and item.file is not None}


def verify(store: Store, progress: Callable[[str, int, int], None] = lambda *_: None) -> Verification:
    """Read all tables, files and objects of an index; `progress` gets a title, the finished and all items.

    Raises:
        UserError: there is no index.
        StoreUnavailableError: the storage fails, which says nothing about the index.
    """
    return _Verifier(store, progress).run()


class _Verifier:
    def __init__(self, store: Store, progress: Callable[[str, int, int], None]) -> None:
        self._store, self._progress = store, progress
        self._tables = Tables(store.uri, store.storage)
        self._result = Verification()
        self._read: set[str] = set()  # descriptions, by manifests, of fragments that were read
        self._counted: set[str] = set()  # files of `factors` whose rows are counted
        self._with_checksums: set[str] = set()  # files of `factors` that a worker of this lorif wrote

    def run(self) -> Verification:
        broken = self._compare_files()
        generations: list[Generation] = []
        with self._noting("generations"):
            if self._is_readable("generations"):
                self._store.latest()
                generations = self._store.generations()
        self._result.generations = len(generations)
        for generation in generations:
            with self._noting("factors"):
                self._store.check_rows(generation)
            self._check_rows(generation.factors_version, broken)
        with self._noting("factors"):
            self._check_rows(self._store.rows.version(), broken)
        if self._is_readable("curvature"):
            self._check_curvatures(generations)
        if self._is_readable("whitening"):
            self._check_covariances(generations)
        if self._is_readable("scale"):
            self._check_scales(generations)
        self._check_small_tables(generations)
        return self._result

    def _is_readable(self, table: str) -> bool:
        """Whether no damage of a table was noted yet; Lance may fail in any way on a damaged file."""
        return table not in {item.table for item in self._result.damage}

    @contextmanager
    def _noting(self, table: str, file: str | None = None) -> Iterator[None]:
        """Note an error as damage of a table."""
        try:
            yield
        except (StoreUnavailableError, UserError) as error:
            if isinstance(error, StoreUnavailableError) or table == "generations":
                raise
            self._result.damage.append(Damage(table, str(error), file))
        except LorifError as error:
            what = (
                str(error).removeprefix(f"the index {self._store.uri} is damaged: ").partition("; lorif verify")[0]
            )
            self._result.damage.append(Damage(table, what, file))

    def _compare_files(self) -> set[tuple[str, str]]:
        """Compare all files with their digests; returns (table, name) of those that differ."""
        digests, objects = self._tables.digests.read()
        self._result.damage += [Damage("objects", f"_lorif/{name} differs from its checksum") for name in objects]
        data = DataFiles(self._store.uri, self._store.storage)
        existing: set[tuple[str, str]] = set()
        for table in TABLES:
            existing |= {(table, file.name) for file in data.list_files(table)}
            with self._noting(table):
                self._tables.open(table)
        recorded = [item for item in digests if (item.table, item.name) in existing]
        known = {(item.table, item.name) for item in recorded}
        self._with_checksums = {item.name for item in recorded if item.table == "factors" and item.key}
        self._result.files, self._result.unchecked_files = len(existing), len(existing - known)
        broken: set[tuple[str, str]] = set()
        for done, (item, computed) in enumerate(zip(recorded, self._map(self._digest, recorded), strict=True), 1):
            self._progress("compare files", done, len(recorded))
            if computed != item.digest:
                broken.add((item.table, item.name))
                shards = item.shards if item.table == "factors" else ()
                what = f"the file data/{item.name} differs from its digest"
                self._result.damage.append(Damage(item.table, what, item.name, shards))
        return broken

    def _digest(self, item: FileDigest) -> str | None:
        try:
            return self._tables.digests.compute(item.table, item.name)
        except UserError:  # collected in the meantime
            return item.digest

    def _check_rows(self, version: int, broken: set[tuple[str, str]]) -> None:
        """Check the rows of fragments of a version that were not read yet, except those in changed files."""
        with self._noting("factors"):
            dataset = self._tables.require("factors", version)
            with table_errors(self._store.uri):
                schema = str(dataset.schema)  # the same file may be described by one damaged manifest of several
                fragments = {f"{part.metadata.to_json()} {schema}": part for part in dataset.get_fragments()}
            new = [fragments[name] for name in fragments.keys() - self._read]
            self._read |= fragments.keys()
            whole = [part for part in new if not any(("factors", file) in broken for file in _files(part))]
            columns = columns_of(_GROUPS, dataset.schema)
            checked = self._map(lambda part: self._check_fragment(dataset, part, columns), whole)
            for done, (part, (rows, unchecked, damage)) in enumerate(zip(whole, checked, strict=True), 1):
                self._progress("check rows", done, len(whole))
                self._result.damage += damage
                if self._counted.isdisjoint(_files(part)):
                    self._result.rows += rows
                    self._result.unchecked_rows += unchecked
                self._counted.update(_files(part))

    def _check_fragment(self, dataset: Any, fragment: Any, columns: list[str]) -> tuple[int, int, list[Damage]]:
        """(rows, rows without checksums, damage) of one fragment."""
        rows = unchecked = 0
        bad: list[str] = []
        shards: set[str] = set()
        (file, *_) = _files(fragment)
        try:
            with table_errors(self._store.uri):
                scanner = dataset.scanner(columns=columns, fragments=[fragment], batch_size=_BATCH_ROWS)
                for batch in scanner.to_batches():
                    rows += batch.num_rows
                    unchecked += batch.column(CHECKSUMS).null_count if CHECKSUMS in columns else batch.num_rows
                    shards |= _shards(batch)
                    if numbers := damaged_rows(batch, _GROUPS):
                        bad.append(
                            f"{len(numbers)} rows differ from their checksums ({example_names(batch, numbers)})"
                        )
                stated = fragment.count_rows()
            if unchecked and file in self._with_checksums:
                bad.append(f"{unchecked} rows have lost their checksums")
            if rows != stated:
                bad.append(f"{rows} rows were read instead of {stated}")
        except StoreUnavailableError:
            raise
        except LorifError as error:
            bad.append(str(error))
        return rows, unchecked, [Damage("factors", what, file, tuple(sorted(shards))) for what in bad]

    def _check_curvatures(self, generations: Sequence[Generation]) -> None:
        used = {
            (part.curvature, index): (generation, part)
            for generation in generations
            for part in generation.own_checkpoint_parts
            if part.curvature_kind != "none"
            for index in range(len(part.index_spec.layers))
        }
        for done, ((_, index), (generation, part)) in enumerate(used.items(), 1):
            with self._noting("curvature"):
                self._store.curvatures.layer(generation, part, index)
            self._progress("check curvatures", done, len(used))

    def _check_covariances(self, generations: Sequence[Generation]) -> None:
        parts = [part for generation in generations for part in generation.parts]
        names = {name for part in parts for name in (part.metric, part.index_spec.projection.whitening)}
        with self._noting("whitening"):
            names |= self._store.whitenings.specs().keys()
        for name in sorted(name for name in names if name is not None):
            with self._noting("whitening"):
                self._store.whitenings.check(name)

    def _check_scales(self, generations: Sequence[Generation]) -> None:
        names = {part.index_spec.projection.scales for generation in generations for part in generation.parts}
        with self._noting("scale"):
            names |= self._store.scales.names()
        for name in sorted(name for name in names if name is not None):
            with self._noting("scale"):
                self._store.scales.named(name)

    def _check_small_tables(self, generations: Sequence[Generation]) -> None:
        with self._noting("removed"):
            if generations and self._is_readable("removed"):
                read_removals(self._store, generations[-1].index_spec)
        with self._noting("skipped"):
            if self._is_readable("skipped"):
                self._store.rows.skipped(set())
        with self._noting("tags"):
            if generations:
                self._store.check_tags()
        receipts = Receipts(self._store.uri, self._store.storage).all()
        unreadable = [name for name, receipt in receipts.items() if receipt is None]
        self._result.damage += [Damage("objects", f"_lorif/{name} cannot be read") for name in unreadable]

    def _map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        with ThreadPoolExecutor(_THREADS) as pool:
            yield from pool.map(function, items)


def _files(fragment: Any) -> list[str]:
    return [file.path for file in fragment.data_files()]


def _shards(batch: pa.RecordBatch) -> set[str]:
    values = batch.column("shard").cast(pa.binary()).unique().to_pylist()
    return {value.decode(errors="replace") for value in values}
