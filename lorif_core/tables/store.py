"""The index in LanceDB as one object: its tables, its generations, and the check that new rows fit its spec.

Writers append uncommitted fragments. One committer turns a wave of them into a version. A generation names a
version of each table. Readers open only generations, so a writer cannot change what they see.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta

import pyarrow as pa

from lorif_core.config import StorageConfig
from lorif_core.errors import LorifError, UserError
from lorif_core.presets import version_1_settings
from lorif_core.spec import IndexSpec
from lorif_core.storage.objects import Objects, parse_object
from lorif_core.tables.checksums import CHECKSUM, damaged, with_checksum, without_checksum
from lorif_core.tables.curvatures import CurvatureTable
from lorif_core.tables.datasets import Tables, table_errors
from lorif_core.tables.file_digests import sealed, unsealed
from lorif_core.tables.generation import Generation
from lorif_core.tables.generation_check import checked_generation
from lorif_core.tables.rows import RowTable
from lorif_core.tables.scales import ScaleTable
from lorif_core.tables.schema import (
    CURVATURE_SCHEMA,
    GENERATIONS_SCHEMA,
    SKIPPED_SCHEMA,
    factors_schema,
)
from lorif_core.tables.sql import escape_sql
from lorif_core.tables.whitenings import WhiteningTable

log = logging.getLogger(__name__)

_NEWEST = "newest.json"
TABLES = ("factors", "curvature", "generations", "skipped", "whitening", "scale", "removed")


class Store:
    """The tables of one index, at a local folder or an object-store URI.

    Attributes:
        rows: the training examples.
        curvatures: fitted preconditioners.
        whitenings: covariances of whitened projections, and their roots.
        scales: scales of Adam's metric.
    """

    def __init__(self, uri: str, storage: StorageConfig | None = None) -> None:
        self.uri = uri.rstrip("/")
        self.storage = storage or StorageConfig()
        self._tables = Tables(self.uri, self.storage)
        self.rows = RowTable(self._tables)
        self.curvatures = CurvatureTable(self._tables)
        self.whitenings = WhiteningTable(self._tables)
        self.scales = ScaleTable(self._tables)

    def check_format(self) -> bool:
        """Whether the table of generations exists. Raises UserError if another version of lorif wrote it."""
        dataset = self._tables.open("generations")
        older = [name for name in GENERATIONS_SCHEMA.names if name != CHECKSUM]
        if dataset is not None and dataset.schema.names not in (GENERATIONS_SCHEMA.names, older):
            raise UserError(
                f"the index {self.uri} was made by another version of lorif, which stores generations in another "
                f"format; build a new index elsewhere, or use that version"
            )
        return dataset is not None

    def check_spec(self, spec: IndexSpec, *, same_checkpoint: bool = True) -> None:
        """Raise UserError that names the differing keys if the index has rows of another spec.

        Args:
            spec: spec of the rows to add.
            same_checkpoint: False allows rows of a checkpoint that continues the pretraining of the stored one.
        """
        stored = self.newest_spec()
        if stored is None or stored.hash == spec.hash:
            return
        differences = spec.differences_except_checkpoint(stored)
        if same_checkpoint and not differences:
            if spec.checkpoint == stored.checkpoint:
                return  # `spec` has no whitening yet
            raise UserError(
                f"the index {self.uri} was built with another checkpoint: "
                f"{'; '.join(spec.differences(stored))}; move it to the new checkpoint with lorif update, or use "
                f"another index"
            )
        if differences:
            raise UserError(
                f"the index {self.uri} was built with another spec: {'; '.join(differences)}; "
                + (_version_1_advice(stored, spec) or "use another index, or the settings of this one")
            )

    def newest_spec(self) -> IndexSpec | None:
        """The spec of the newest generation, or of rows that none has yet; None without rows."""
        generations = self.generations()
        return generations[-1].index_spec if generations else self.rows.spec()

    def create(self, spec: IndexSpec) -> None:
        """Create the tables that do not exist. Raises UserError if rows of this spec cannot be added."""
        self.check_spec(spec, same_checkpoint=False)
        self._tables.create("curvature", CURVATURE_SCHEMA)
        self._tables.create("generations", GENERATIONS_SCHEMA)
        self._tables.create("skipped", SKIPPED_SCHEMA)
        self._tables.create("factors", factors_schema(spec))

    def with_stored_whitening(self, spec: IndexSpec) -> IndexSpec:
        """The spec with the whitening that the index stores for it; unchanged if it stores or needs none.

        An index keeps its scales, and under `calibration_examples: auto` the number that it was built with.
        """
        projection = spec.projection
        is_automatic = projection.is_whitened and projection.calibration_examples == "auto"
        lacks_scales = projection.is_adam and projection.scales is None
        stored = self.newest_spec() if is_automatic or lacks_scales else None
        if lacks_scales and stored is not None:
            spec = spec.with_scales(stored.projection.scales)
        if not projection.is_whitened:
            return spec
        if is_automatic and stored is not None and stored.projection.calibration_examples is not None:
            examples = stored.projection.calibration_examples
            spec = replace(spec, projection=replace(spec.projection, calibration_examples=examples))
        for name, spec_hash in self.whitenings.specs().items():
            whitened = spec.with_whitening(name)
            if whitened.hash == spec_hash:
                return whitened
        return spec

    def publish(self, generation: Generation) -> Generation:
        """Append a generation and tag its versions, so that clean-up keeps them. Safe to repeat.

        Raises:
            LorifError: another build has published a generation of this number in the meantime.
        """
        self._tables.create("generations", GENERATIONS_SCHEMA)
        since = int(self._tables.require("generations").version)
        for other in self.generations():
            if other.generation == generation.generation and other.parts_json == generation.parts_json:
                self._note_newest(other)
                return other
            if other.generation == generation.generation:
                raise LorifError(
                    f"another build has published generation {generation.generation} of {self.uri} in the "
                    f"meantime; run this command again"
                )
        self._tag("factors", generation.generation, generation.factors_version)
        self._tag("curvature", generation.generation, generation.curvature_version)
        row = pa.Table.from_pylist([asdict(generation)], schema=GENERATIONS_SCHEMA)
        batches = map(with_checksum, row.to_batches())
        fragments = self._tables.write("generations", batches, GENERATIONS_SCHEMA)
        self._tables.append("generations", {f"generation-{generation.generation}": fragments}, since)
        self._note_newest(generation)
        return generation

    def _note_newest(self, generation: Generation) -> None:
        """Record the number outside of the table, so that a table that has lost its last row is not believed."""
        Objects(self.uri, self.storage).put(_NEWEST, sealed({"generation": generation.generation}))

    def _newest_published(self) -> int:
        """The number of a generation that was published; 0 if none is recorded, as by an older lorif."""
        stored = Objects(self.uri, self.storage).get_bytes(_NEWEST)
        value = None if stored is None else unsealed(parse_object(stored))
        if stored is not None and value is None:
            raise damaged(
                self.uri,
                f"_lorif/{_NEWEST} differs from its checksum; delete this file if the newest "
                "generation of lorif status is the newest that you know",
            )
        return 0 if value is None else int(value["generation"])

    def _tag(self, table: str, number: int, version: int) -> None:
        with table_errors(self.uri, "write"):
            tags, tag = self._tables.require(table).tags, _tag_name(number)
            # a run that crashed between tagging and appending has left its tag
            (tags.update if tag in tags.list() else tags.create)(tag, version)

    def retire(
        self, generations: Sequence[int], curvatures: Sequence[str], covariances: Sequence[str] = ()
    ) -> None:
        """Remove generations, and the fits and covariances that no other uses. The caller holds the lease."""
        with table_errors(self.uri, "write"):
            if generations:
                condition = f"generation IN ({', '.join(map(str, generations))})"
                self._tables.require("generations").delete(condition)
            for number in generations:
                for table in ("factors", "curvature"):
                    tags, tag = self._tables.require(table).tags, _tag_name(number)
                    if tag in tags.list():
                        tags.delete(tag)
            if curvatures:
                ids = ", ".join(f"'{escape_sql(curvature)}'" for curvature in curvatures)
                self._tables.require("curvature").delete(f"curvature IN ({ids})")
            if covariances:
                names = ", ".join(f"'{escape_sql(name)}'" for name in covariances)
                self._tables.require("whitening").delete(f"whitening IN ({names})")

    def tag_versions(self) -> None:
        """Tag the versions of all generations again, as `publish` does."""
        for generation in self.generations():
            for table, version in generation.versions.items():
                self._tag(table, generation.generation, version)

    def check_tags(self) -> None:
        """Raise DamagedIndexError unless the versions of every generation are tagged; others are cleaned up."""
        for table in ("factors", "curvature"):
            with table_errors(self.uri):
                tags = self._tables.require(table).tags.list()
            for generation in self.generations():
                tag, version = _tag_name(generation.generation), generation.versions[table]
                if tag not in tags or tags[tag]["version"] != version:
                    raise damaged(self.uri, f"the tag {tag} of the table {table} does not name version {version}")

    def drop_old_versions(self) -> None:
        """Remove versions that are not the newest and belong to no generation, and files that only they use."""
        self.check_tags()
        for table in self.tables():
            with table_errors(self.uri, "write"):
                self._tables.require(table).cleanup_old_versions(
                    older_than=timedelta(0), error_if_tagged_old_versions=False
                )

    def tables(self) -> list[str]:
        """Names of the tables that exist; some are created only when they are needed."""
        return [name for name in TABLES if self._tables.open(name) is not None]

    def generations(self) -> list[Generation]:
        """All published generations, newest last; empty if the index does not exist.

        Raises:
            UserError: another version of lorif made the index.
            DamagedIndexError: a row differs from its checksum.
            LorifError: one of them has unexpected contents.
        """
        if not self.check_format():
            return []
        table = self._tables.read("generations")
        rows = without_checksum(table, GENERATIONS_SCHEMA, "generations", self.uri).to_pylist()
        generations = (checked_generation(row, self.uri) for row in rows)
        return sorted(generations, key=lambda generation: generation.generation)

    def check_rows(self, generation: Generation) -> None:
        """Raise DamagedIndexError unless its version of `factors` has the rows that a generation states."""
        fragments = self._tables.require("factors", generation.factors_version).get_fragments()
        with table_errors(self.uri):
            rows = {fragment.fragment_id: fragment.count_rows() for fragment in fragments}
        counted = [sum(rows[number] for number in part.select_fragments(list(rows))) for part in generation.parts]
        stated = [part.rows for part in generation.parts]
        if counted != stated or sum(rows.values()) != generation.rows:
            raise damaged(
                self.uri,
                f"generation {generation.generation} states {generation.rows:,} rows "
                f"({' + '.join(map(str, stated))} in its parts), but version {generation.factors_version} of the "
                f"table factors has {sum(rows.values()):,} ({' + '.join(map(str, counted))})",
            )

    def latest(self) -> Generation:
        """The newest generation.

        Raises:
            UserError: the index has no published generation.
            DamagedIndexError: the table of generations is damaged, or lacks one that was published.
        """
        published = self._newest_published()
        generations = self.generations()
        newest = generations[-1].generation if generations else 0
        if newest < published:
            raise damaged(self.uri, f"generation {published} was published, but the table generations lacks it")
        if not generations:
            Objects(self.uri, self.storage).check_container()
            state = "has no published generation" if self._tables.open("factors") else "does not exist"
            raise UserError(f"the index {self.uri} {state}; run lorif build first")
        return generations[-1]


def _tag_name(generation: int) -> str:
    return f"generation-{generation}"


def _version_1_advice(stored: IndexSpec, spec: IndexSpec) -> str | None:
    """What to do about rows of a preset of the first release, whose projections were random and whitened."""
    if stored.projection.kind != "whitened" or not spec.projection.is_folded:
        return None
    settings = version_1_settings(stored.projection.factor, stored.code.rank, dense=stored.code.kind == "dense")
    return (
        f"it was made with presets of version 1, and scores of both are not comparable; build a new index "
        f"elsewhere, or go on with this one by setting {settings}"
    )
