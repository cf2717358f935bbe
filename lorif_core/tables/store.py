"""The index in LanceDB as one object: what it may hold, its tables, and its generations.

Writers append uncommitted fragments; one committer turns a wave of them into a version; a generation names a
version of each table. Readers only ever open generations, so nothing a writer does can change what they see.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta

import pyarrow as pa

from lorif_core.config import StorageConfig
from lorif_core.errors import LorifError, UserError
from lorif_core.spec import IndexSpec
from lorif_core.storage.objects import Objects
from lorif_core.tables.covariances import CovarianceTable
from lorif_core.tables.curvatures import CurvatureTable
from lorif_core.tables.datasets import Tables, quoted, store_told
from lorif_core.tables.generation import Generation
from lorif_core.tables.rows import RowTable
from lorif_core.tables.schema import (
    CURVATURE_SCHEMA,
    GENERATIONS_SCHEMA,
    SKIPPED_SCHEMA,
    factors_schema,
)

log = logging.getLogger(__name__)

_TABLES = ("factors", "curvature", "generations", "skipped", "whitening", "removed")


class Store:
    """The tables of one index, at a local folder or an object-store URI.

    Attributes:
        rows: the training examples.
        curvatures: fitted preconditioners.
        covariances: of whitened projections.
    """

    def __init__(self, uri: str, storage: StorageConfig | None = None) -> None:
        self.uri = uri.rstrip("/")
        self.storage = storage or StorageConfig()
        self._tables = Tables(self.uri, self.storage)
        self.rows = RowTable(self._tables)
        self.curvatures = CurvatureTable(self._tables)
        self.covariances = CovarianceTable(self._tables)

    def check_format(self) -> bool:
        """Whether there are generations. Raises UserError if another version of lorif has kept them."""
        dataset = self._tables.open("generations")
        if dataset is not None and dataset.schema.names != GENERATIONS_SCHEMA.names:
            raise UserError(
                f"the index {self.uri} was made by another version of lorif, which kept its generations in "
                f"another format; build a new index elsewhere, or use that version"
            )
        return dataset is not None

    def check_spec(self, spec: IndexSpec, *, same_checkpoint: bool = True) -> None:
        """Raise UserError naming the differing keys if the index holds rows of another spec.

        Args:
            spec: of rows that are to come.
            same_checkpoint: False lets rows join that continued pretraining has made otherwise.
        """
        generations = self.generations()
        stored = generations[-1].index_spec if generations else self.rows.spec()
        if stored is None or stored.hash == spec.hash:
            return
        differences = spec.continuation_of(stored)
        if same_checkpoint and not differences:
            if spec.checkpoint == stored.checkpoint:
                return  # it has not been calibrated yet
            raise UserError(
                f"the index {self.uri} is of another checkpoint: {'; '.join(spec.differences(stored))}; lorif "
                f"update brings it to a new one, or use another index"
            )
        if differences:
            raise UserError(
                f"the index {self.uri} was made with another spec: {'; '.join(differences)}; "
                f"use another index, or the settings of this one"
            )

    def create(self, spec: IndexSpec) -> None:
        """Make the tables if they are not there. Raises UserError if rows of that spec cannot join them."""
        self.check_spec(spec, same_checkpoint=False)
        self._tables.create("curvature", CURVATURE_SCHEMA)
        self._tables.create("generations", GENERATIONS_SCHEMA)
        self._tables.create("skipped", SKIPPED_SCHEMA)
        self._tables.create("factors", factors_schema(spec))

    def calibrated(self, spec: IndexSpec) -> IndexSpec:
        """A spec with the whitening that was measured for it, if it needs one and it was."""
        if spec.projection.kind == "random":
            return spec
        settled = ((spec.with_whitening(name), of) for name, of in self.covariances.specs().items())
        return next((found for found, of in settled if found.hash == of), spec)

    def publish(self, generation: Generation) -> Generation:
        """Append a generation and tag its versions, so that clean-up spares them. Tried again, it does so once.

        Raises:
            LorifError: another build has published a generation of this number meanwhile.
        """
        since = int(self._tables.require("generations").version)
        for other in self.generations():
            if other.generation == generation.generation and other.parts_json == generation.parts_json:
                return other
            if other.generation == generation.generation:
                raise LorifError(
                    f"generation {generation.generation} of {self.uri} was published by another build meanwhile; "
                    f"run this one again"
                )
        self._tag("factors", generation.generation, generation.factors_version)
        self._tag("curvature", generation.generation, generation.curvature_version)
        row = pa.Table.from_pylist([asdict(generation)], schema=GENERATIONS_SCHEMA)
        fragments = self._tables.write("generations", iter(row.to_batches()), GENERATIONS_SCHEMA)
        self._tables.append("generations", {f"generation-{generation.generation}": fragments}, since)
        return generation

    def _tag(self, table: str, number: int, version: int) -> None:
        with store_told(self.uri, "write"):
            tags, tag = self._tables.require(table).tags, _tag_name(number)
            # a run that died between tagging and appending leaves its tag behind
            (tags.update if tag in tags.list() else tags.create)(tag, version)

    def retire(
        self, generations: Sequence[int], curvatures: Sequence[str], covariances: Sequence[str] = ()
    ) -> None:
        """Take generations, and fits and covariances that no other uses, out of the tables, under the lease."""
        with store_told(self.uri, "write"):
            if generations:
                condition = f"generation IN ({', '.join(map(str, generations))})"
                self._tables.require("generations").delete(condition)
            for number in generations:
                for table in ("factors", "curvature"):
                    tags, tag = self._tables.require(table).tags, _tag_name(number)
                    if tag in tags.list():
                        tags.delete(tag)
            if curvatures:
                ids = ", ".join(f"'{quoted(curvature)}'" for curvature in curvatures)
                self._tables.require("curvature").delete(f"curvature IN ({ids})")
            if covariances:
                names = ", ".join(f"'{quoted(name)}'" for name in covariances)
                self._tables.require("whitening").delete(f"whitening IN ({names})")

    def drop_old_versions(self) -> None:
        """Remove the versions that are neither the newest nor a generation's, and the files only they name."""
        for table in self.tables():
            with store_told(self.uri, "write"):
                self._tables.require(table).cleanup_old_versions(
                    older_than=timedelta(0), error_if_tagged_old_versions=False
                )

    def tables(self) -> list[str]:
        """Names of the tables that there are; few indexes have `whitening` and `removed`."""
        return [name for name in _TABLES if self._tables.open(name) is not None]

    def generations(self) -> list[Generation]:
        """All published generations, newest last; empty where there is no index.

        Raises:
            UserError: another version of lorif has made the index.
        """
        rows = self._tables.read("generations").to_pylist() if self.check_format() else []
        return sorted((Generation(**row) for row in rows), key=lambda generation: generation.generation)

    def latest(self) -> Generation:
        """The newest generation. Raises UserError if nothing was ever published here."""
        found = self.generations()
        if not found:
            Objects(self.uri, self.storage).check_container()
            state = "holds no published generation" if self._tables.open("factors") else "does not exist"
            raise UserError(f"the index {self.uri} {state}; run lorif build first")
        return found[-1]


def _tag_name(generation: int) -> str:
    return f"generation-{generation}"
