"""The index in LanceDB: fragments, wave commits, curvature and generations. All I/O of the index is here.

Writers append uncommitted fragments; one committer turns a wave of them into a version; a generation names a
version of each table. Readers only ever open generations, so nothing a writer does can change what they see.
"""

import logging
import uuid
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import pyarrow as pa

from lorif_core.blocks import Block, scan_codes
from lorif_core.config import StorageConfig
from lorif_core.curvature import LayerCurvature, used_rank
from lorif_core.errors import LorifError, UserError
from lorif_core.generation import Generation, Part
from lorif_core.holdings import Leaves, fragment_numbers, read_inventory, rewrite_fragments, settle
from lorif_core.inventory import Inventory, ShardKey
from lorif_core.objects import Objects
from lorif_core.receipts import Receipt
from lorif_core.schema import (
    CODE_COLUMNS,
    CURVATURE_SCHEMA,
    GENERATIONS_SCHEMA,
    REMOVED_SCHEMA,
    SKIPPED_SCHEMA,
    SPEC_KEY,
    WHITENING_SCHEMA,
    ShardRows,
    curvature_batches,
    factors_schema,
    layer_curvature,
    to_table,
    whitening_batches,
    whitening_of,
)
from lorif_core.spec import FileTag, IndexSpec, LayerSpec, ShardRef, parse_shard_key
from lorif_core.tables import Tables, store_told
from lorif_core.whitening import Covariances

log = logging.getLogger(__name__)

_KEYS_PER_FILTER = 500
_TABLES = ("factors", "curvature", "generations", "skipped", "whitening", "removed")


class Store:
    """The tables of one index, at a local folder or an object-store URI."""

    def __init__(self, uri: str, storage: StorageConfig | None = None) -> None:
        self.uri = uri.rstrip("/")
        self.storage = storage or StorageConfig()
        self._tables = Tables(self.uri, self.storage)

    # ---- writing -------------------------------------------------------------------------------------------

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
        stored = generations[-1].index_spec if generations else self.stored_spec()
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

    def write_covariances(
        self, covariances: Covariances, layers: Sequence[LayerSpec], spec: IndexSpec | None = None
    ) -> None:
        """Keep covariances; their digest names them.

        Args:
            covariances: in the projected space.
            layers: whose they are.
            spec: of the rows that are whitened with them; None for a newer metric.
        """
        self._tables.create("whitening", WHITENING_SCHEMA)
        if covariances.digest() in self.covariance_specs():
            return
        since = int(self._tables.require("whitening").version)
        rows = whitening_batches(covariances, layers, None if spec is None else spec.hash)
        fragments = self._tables.write("whitening", rows, WHITENING_SCHEMA)
        self._tables.append("whitening", {covariances.digest(): fragments}, since)

    def calibrated(self, spec: IndexSpec) -> IndexSpec:
        """A spec with the whitening that was measured for it, if it needs one and it was."""
        if spec.projection.kind == "random":
            return spec
        settled = ((spec.with_whitening(name), of) for name, of in self.covariance_specs().items())
        return next((found for found, of in settled if found.hash == of), spec)

    def whitening(self, name: str | None) -> Covariances | None:
        """The covariances of that name; None for None, which is a random projection.

        Raises:
            LorifError: they are not there.
        """
        if name is None:
            return None
        found = whitening_of(self._tables.read("whitening", filter=f"whitening = '{_quoted(name)}'"))
        if not found.sums or found.digest() != name:
            raise LorifError(f"the index {self.uri} lacks the whitening {name}, or it is damaged; rebuild it")
        return found

    def write_rows(self, parts: Iterator[ShardRows], shard: ShardRef, spec: IndexSpec) -> list[str]:
        """Stream a shard's rows into an uncommitted fragment; its metadata as JSON, for `commit_wave`.

        An error raised by `parts` comes out as it was raised.
        """
        batches = (batch for rows in parts if rows.examples for batch in to_table(rows, shard, spec).to_batches())
        first = next(batches, None)
        if first is None:
            return []
        return self._tables.write("factors", chain([first], batches), factors_schema(spec))

    def commit_wave(self, receipts: Sequence[Receipt], since: int) -> int:
        """Append the rows of finished shards as one version, each shard once.

        Shards that another commit has brought in after version `since` are left out: a commit that is tried again
        after it succeeded doubles nothing.

        Args:
            receipts: finished shards.
            since: version of `factors` whose shards the caller knows.

        Returns:
            The version of `factors` after the commit.
        """
        self.note_skipped(
            [(receipt.shard, example_id, reason) for receipt in receipts for example_id, reason in receipt.skipped]
        )  # before the rows: a build that resumes lists what the earlier one left out
        fragments = {receipt.shard: receipt.fragments for receipt in receipts}
        return int(self._tables.append("factors", fragments, since).version)

    def inventory(self, version: int | None = None, known: Inventory | None = None) -> Inventory:
        """See `read_inventory`."""
        return read_inventory(self._tables, version, known)

    def settle(
        self, wanted: Set[ShardKey], must: Set[ShardKey] = frozenset(), base: int | None = None
    ) -> Inventory:
        """See `holdings.settle`."""
        return settle(self._tables, wanted, must, base)

    def rewrite(self, fragments: Sequence[int], leaves: Leaves) -> None:
        """See `rewrite_fragments`."""
        rewrite_fragments(self._tables, fragments, leaves)

    def rewind(self, version: int) -> Inventory:
        """Make the newest version of `factors` hold what a published one holds; the inventory of it."""
        published = self.inventory(version)
        newest = self.inventory(known=published)
        if newest.files == published.files and len(newest.holdings) == len(published.holdings):
            return newest
        self._tables.restore("factors", version)
        return self.inventory(known=published)

    def note_removed(self, rows: pa.Table) -> None:
        """Remember that examples (`example_id`, `content_hash`) are to be in no later generation."""
        self._tables.create("removed", REMOVED_SCHEMA)
        known = set(zip(*(self.removed().column(name).to_pylist() for name in rows.column_names), strict=True))
        new = [row for row in rows.to_pylist() if tuple(row.values()) not in known]
        if new:
            self._add("removed", [{**row, "removed_at": now()} for row in new], REMOVED_SCHEMA)

    def note_skipped(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Remember (shard, example id, reason) of examples that are left out."""
        if rows:
            self._add(
                "skipped", [dict(zip(SKIPPED_SCHEMA.names, row, strict=True)) for row in rows], SKIPPED_SCHEMA
            )

    def _add(self, table: str, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
        since = int(self._tables.require(table).version)
        batches = pa.Table.from_pylist(rows, schema=schema).to_batches()
        self._tables.append(table, {uuid.uuid4().hex: self._tables.write(table, iter(batches), schema)}, since)

    def write_curvature(self, curvature_id: str, layers: dict[int, tuple[str, LayerCurvature]]) -> int:
        """Append fitted layers (by number, with their names); version of `curvature` afterwards."""
        since = self.curvature_version()
        fragments = self._tables.write("curvature", curvature_batches(curvature_id, layers), CURVATURE_SCHEMA)
        key = f"{curvature_id}/{','.join(map(str, layers))}"
        return int(self._tables.append("curvature", {key: fragments}, since).version)

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
                ids = ", ".join(f"'{_quoted(curvature)}'" for curvature in curvatures)
                self._tables.require("curvature").delete(f"curvature IN ({ids})")
            if covariances:
                names = ", ".join(f"'{_quoted(name)}'" for name in covariances)
                self._tables.require("whitening").delete(f"whitening IN ({names})")

    def drop_old_versions(self) -> None:
        """Remove the versions that are neither the newest nor a generation's, and the files only they name."""
        for table in self.tables():
            with store_told(self.uri, "write"):
                self._tables.require(table).cleanup_old_versions(
                    older_than=timedelta(0), error_if_tagged_old_versions=False
                )

    # ---- reading -------------------------------------------------------------------------------------------

    def tables(self) -> list[str]:
        """Names of the tables that there are; few indexes have `whitening` and `removed`."""
        return [name for name in _TABLES if self._tables.open(name) is not None]

    def stored_spec(self) -> IndexSpec | None:
        """The spec of the rows in the index, or None where there is no index yet."""
        dataset = self._tables.open("factors")
        if dataset is None:
            return None
        return IndexSpec.from_json((dataset.schema.metadata or {})[SPEC_KEY].decode())

    def removed(self) -> pa.Table:
        """`example_id` and `content_hash` of what was removed on request, in the order of the requests."""
        columns = ["example_id", "content_hash"]
        if self._tables.open("removed") is None:
            return REMOVED_SCHEMA.empty_table().select(columns)
        return self._tables.read("removed", columns=columns)

    def skipped(self, files: Set[FileTag]) -> list[tuple[str, str]]:
        """(example id, reason) of everything that was left out of some files."""
        rows = self._tables.read("skipped", columns=["shard", "example_id", "reason"]).to_pylist()
        return sorted(
            {(row["example_id"], row["reason"]) for row in rows if parse_shard_key(row["shard"])[0] in files}
        )

    def counts(self, version: int | None = None) -> tuple[int, int]:
        """(rows, tokens) of a version of `factors`."""
        found = self.inventory(version)
        return found.rows, found.tokens

    def factors_version(self) -> int:
        """Newest version of `factors`."""
        return int(self._tables.require("factors").version)

    def curvature_version(self) -> int:
        """Newest version of `curvature`."""
        return int(self._tables.require("curvature").version)

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

    def code_bytes(self, version: int) -> int:
        """Bytes on storage of the codes and scales of a version of `factors`."""
        dataset = self._tables.require("factors", version)
        names = {field.id(): field.name() for field in dataset.lance_schema.fields()}
        fields = dataset.stats.data_stats().fields
        return sum(field.bytes_on_disk for field in fields if names.get(field.id) in CODE_COLUMNS)

    def fragment_ids(self, version: int) -> list[int]:
        """Fragments of a version of `factors`: the units in which workers share a scan."""
        return [fragment.fragment_id for fragment in self._tables.require("factors", version).get_fragments()]

    def rows_of(self, version: int, spec: str, example_ids: Sequence[str]) -> Iterator[Block]:
        """Stream codes of some examples of a spec in a version of `factors`."""
        for wanted in _with_ids(example_ids):
            condition = f"{wanted} AND spec = '{_quoted(spec)}'"
            yield from self.scan(version, _KEYS_PER_FILTER, condition=condition)

    def scan(
        self,
        version: int,
        rows: int,
        fragments: Sequence[int] | None = None,
        condition: str | None = None,
        extra: Sequence[str] = (),
    ) -> Iterator[Block]:
        """Stream codes of a version of `factors`, see `blocks.scan_codes`."""
        return scan_codes(self._tables, version, rows, fragments, condition, extra)

    def metadata(
        self,
        version: int,
        columns: Sequence[str],
        fragments: Sequence[int] | None = None,
        condition: str | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Stream descriptive columns of a version of `factors`, and of every row its `fragment`.

        Args:
            version: of `factors`.
            columns: which.
            fragments: only of these; None for all.
            condition: SQL that rows must meet.

        Raises:
            UserError: the condition is none.
        """
        dataset = self._tables.require("factors", version)
        chosen = None if fragments is None else [dataset.get_fragment(number) for number in fragments]
        if chosen == []:
            return
        options = {"columns": list(columns), "fragments": chosen, "filter": condition, "with_row_address": True}
        for batch in self._tables.scan("factors", version, **options):
            yield batch.drop_columns("_rowaddr").append_column("fragment", fragment_numbers(batch))

    def descriptive_columns(self, version: int) -> list[str]:
        """Names of all columns but the code's."""
        return [name for name in self._tables.require("factors", version).schema.names if name not in CODE_COLUMNS]

    def details(self, version: int, example_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Descriptive columns (all but the code's) of some examples, by id."""
        columns = self.descriptive_columns(version)
        found: dict[str, dict[str, Any]] = {}
        for wanted in _with_ids(sorted(set(example_ids))):
            table = self._tables.read("factors", version, columns=columns, filter=wanted)
            found.update({row["example_id"]: row for row in table.to_pylist()})
        return found

    def curvature_layers(self, generation: Generation, part: Part) -> Iterator[tuple[int, LayerCurvature]]:
        """Fitted layers of a part of a generation by number, one in memory at a time; components in use only."""
        for index in range(len(part.index_spec.layers)):
            yield index, self.curvature_layer(generation, part, index, in_use=True)

    def curvature_layer(
        self, generation: Generation, part: Part, index: int, in_use: bool = False
    ) -> LayerCurvature:
        """One fitted layer of a part of a generation, by its number; all components, or those in use."""
        rank = used_rank(part.index_spec.layers[index].dim, part.curvature_spec)
        condition = f"curvature = '{_quoted(part.curvature)}' AND layer_index = {index}"
        if in_use:
            condition += f" AND component < {rank}"
        table = self._tables.read("curvature", generation.curvature_version, filter=condition)
        if table.num_rows == 0:
            raise LorifError(f"the index {self.uri} lacks the curvature of layer {index}; rebuild it")
        return layer_curvature(table.sort_by("component"), rank)

    def covariance_specs(self) -> dict[str, str | None]:
        """Names of all covariances that are kept, each with the hash of the spec that is whitened with it."""
        if self._tables.open("whitening") is None:
            return {}
        rows = self._tables.read("whitening", columns=["whitening", "spec"]).to_pylist()
        return {row["whitening"]: row["spec"] for row in rows}

    def curvature_ids(self) -> set[str]:
        """Ids of all fits, whole or begun, in the newest version of `curvature`."""
        return set(self._tables.read("curvature", columns=["curvature"])["curvature"].to_pylist())

    def fitted_layers(self, curvature_id: str) -> set[int]:
        """Numbers of the layers that are fitted under an id: what a killed fit has left."""
        chosen = f"curvature = '{_quoted(curvature_id)}'"
        return set(
            self._tables.read("curvature", columns=["layer_index"], filter=chosen)["layer_index"].to_pylist()
        )

    def spectra(self, generation: Generation, part: Part) -> list[dict[str, Any]]:
        """Per component: layer, layer_index, component, sigma2, damping, trace; without the vectors."""
        columns = ["layer", "layer_index", "component", "sigma2", "damping", "trace"]
        chosen = f"curvature = '{_quoted(part.curvature)}'"
        table = self._tables.read("curvature", generation.curvature_version, columns=columns, filter=chosen)
        return table.sort_by([("layer_index", "ascending"), ("component", "ascending")]).to_pylist()


def now() -> datetime:
    """The current time in UTC, for `created_at`."""
    return datetime.now(UTC)


def _tag_name(generation: int) -> str:
    return f"generation-{generation}"


def _with_ids(example_ids: Sequence[str]) -> Iterator[str]:
    """Conditions that together are met by the rows of some examples, each of a bounded length."""
    for start in range(0, len(example_ids), _KEYS_PER_FILTER):
        ids = ", ".join(f"'{_quoted(name)}'" for name in example_ids[start : start + _KEYS_PER_FILTER])
        yield f"example_id IN ({ids})"


def _quoted(text: str) -> str:
    return text.replace("'", "''")
