"""The table `factors`, one row per example with its code, and the tables of skipped and removed examples.

Workers write uncommitted fragments; one committer turns a wave of them into a version. Readers always state the
version that they read.
"""

import uuid
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from typing import Any

import pyarrow as pa

from lorif_core.spec import FileTag, IndexSpec, ShardRef, parse_shard_key
from lorif_core.tables.blocks import Block, scan_codes
from lorif_core.tables.checksums import (
    CHECKSUMS,
    CODE_COLUMNS,
    DESCRIPTION_GROUP,
    NOT_DESCRIPTIVE,
    TEXT_GROUP,
    checked_descriptions,
    columns_of,
    require_undamaged,
    with_checksum,
    without_checksum,
)
from lorif_core.tables.datasets import Tables
from lorif_core.tables.generation import now
from lorif_core.tables.inventory import Inventory, ShardKey
from lorif_core.tables.receipts import Finished, JoinedReceipt, Receipt
from lorif_core.tables.schema import (
    REMOVED_SCHEMA,
    SKIPPED_SCHEMA,
    SPEC_KEY,
    ShardRows,
    factors_schema,
    to_table,
)
from lorif_core.tables.shard_rows import (
    RowMask,
    fragment_numbers,
    read_files,
    read_inventory,
    reconcile,
    rewind,
    rewrite_fragments,
    without_files,
    write_rows,
)
from lorif_core.tables.sql import IDS_PER_FILTER, escape_sql, id_conditions


class RowTable:
    """Rows of the training examples, at every version of the table.

    Args:
        tables: tables of the index.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._checked: set[tuple[int, tuple[int, ...] | None]] = set()  # scans of codes that ended without damage
        self._described: set[tuple[int, bool]] = set()  # versions whose descriptions (and texts) were checked

    def write(self, parts: Iterator[ShardRows], shard: ShardRef, spec: IndexSpec) -> list[str]:
        """Stream a shard's rows into an uncommitted fragment; returns its metadata as JSON, for `commit_wave`.

        An exception of `parts` is raised unchanged.
        """
        stored = self._tables.open("factors")
        schema = factors_schema(spec) if stored is None else stored.schema
        return write_rows(
            self._tables,
            (
                batch
                for rows in parts
                if rows.examples
                for batch in to_table(rows, shard, spec, schema).to_batches()
            ),
            schema,
        )

    def join(self, receipts: Sequence[Receipt]) -> JoinedReceipt:
        """Write the rows of finished shards of one spec into one uncommitted fragment, in this order.

        Their own files stay, so that this can be repeated; the caller removes them when the receipt is stored.

        Raises:
            DamagedIndexError: a file of a shard has changed since it was written.
        """
        stored = self._tables.require("factors")
        fragments = write_rows(self._tables, read_files(self._tables, receipts), stored.schema)
        return JoinedReceipt(tuple(fragments), tuple(replace(receipt, fragments=()) for receipt in receipts))

    def commit_wave(self, finished: Sequence[Finished], since: int) -> int:
        """Append the rows of finished shards as one version, each shard once.

        Shards that a commit after version `since` has added are skipped, so repeating a commit that succeeded
        duplicates nothing.

        Args:
            finished: receipts of finished shards.
            since: version of `factors` whose shards the caller knows.

        Returns:
            The version of `factors` after the commit.
        """
        # before the rows: a build that resumes then lists the examples that the earlier build skipped
        receipts = [receipt for item in finished for receipt in item.receipts]
        self.note_skipped(
            [(receipt.shard, example_id, reason) for receipt in receipts for example_id, reason in receipt.skipped]
        )
        return int(self._tables.append("factors", {item.key: item.fragments for item in finished}, since).version)

    def remove_versions(self, first: int, stop: int) -> None:
        """Remove the versions [first, stop) of `factors` that no generation has; the caller holds the lease."""
        if first < stop:
            self._tables.remove_versions("factors", range(first, stop))

    def inventory(self, version: int | None = None, known: Inventory | None = None) -> Inventory:
        """See `read_inventory`."""
        return read_inventory(self._tables, version, known)

    def reconcile(
        self,
        expected: Set[ShardKey],
        required: Set[ShardKey] = frozenset(),
        base: int | None = None,
        known: Inventory | None = None,
    ) -> Inventory:
        """See `shard_rows.reconcile`."""
        return reconcile(self._tables, expected, required, base, known)

    def rewrite(self, fragments: Sequence[int], drop: RowMask) -> None:
        """See `rewrite_fragments`."""
        rewrite_fragments(self._tables, fragments, drop)

    def rewind(self, version: int) -> Inventory:
        """See `shard_rows.rewind`."""
        return rewind(self._tables, version)

    def without_files(self, version: int, files: Set[str]) -> Inventory:
        """See `shard_rows.without_files`."""
        return without_files(self._tables, version, files)

    def note_skipped(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Record (shard, example id, reason) of examples that are not indexed."""
        if rows:
            self._add(
                "skipped", [dict(zip(SKIPPED_SCHEMA.names, row, strict=False)) for row in rows], SKIPPED_SCHEMA
            )

    def skipped(self, files: Set[FileTag]) -> list[tuple[str, str]]:
        """(example id, reason) of the examples of some files that were skipped, sorted."""
        rows = self._checked_table("skipped", SKIPPED_SCHEMA).to_pylist()
        return sorted(
            {(row["example_id"], row["reason"]) for row in rows if parse_shard_key(row["shard"])[0] in files}
        )

    def counts(self, version: int | None = None) -> tuple[int, int]:
        """(rows, tokens) of a version of `factors`."""
        inventory = self.inventory(version)
        return inventory.rows, inventory.tokens

    def version(self) -> int:
        """Newest version of `factors`."""
        return int(self._tables.require("factors").version)

    def code_bytes(self, version: int) -> int:
        """Bytes that the codes and scales of a version of `factors` take on storage."""
        dataset = self._tables.require("factors", version)
        names = {field.id(): field.name() for field in dataset.lance_schema.fields()}
        fields = dataset.stats.data_stats().fields
        return sum(field.bytes_on_disk for field in fields if names.get(field.id) in CODE_COLUMNS)

    def fragment_ids(self, version: int) -> list[int]:
        """Numbers of the fragments of a version of `factors`; workers divide a scan by fragments."""
        return [fragment.fragment_id for fragment in self._tables.require("factors", version).get_fragments()]

    def of_examples(self, version: int, spec: str, example_ids: Sequence[str]) -> Iterator[Block]:
        """Stream the codes of some examples of a spec in a version of `factors`."""
        for id_condition in id_conditions(example_ids):
            condition = f"{id_condition} AND spec = '{escape_sql(spec)}'"
            yield from self.scan(version, IDS_PER_FILTER, condition=condition)

    def scan(
        self,
        version: int,
        rows: int,
        fragments: Sequence[int] | None = None,
        condition: str | None = None,
        extra: Sequence[str] = (),
    ) -> Iterator[Block]:
        """Stream the codes of a version of `factors`; see `blocks.scan_codes`.

        The first scan of these fragments compares all rows with their checksums. Later ones do not, because
        versions do not change and the comparison costs several percent of a scan (`benchmarks.checksums`).
        """
        key = (version, None if fragments is None else tuple(fragments))
        check = self._checked.isdisjoint({key, (version, None)})
        yield from scan_codes(self._tables, version, rows, fragments, condition, extra, check=check)
        if condition is None:
            self._checked.add(key)

    def check_descriptions(
        self, version: int, fragments: Sequence[int] | None = None, *, text: bool = False
    ) -> None:
        """Compare the descriptive columns of all rows with their checksums, once; the text only if requested.

        Conditions and sums read single columns, which no checksum covers alone, so this comes before them.

        Raises:
            DamagedIndexError: a row differs from its checksum.
        """
        if not self._described.isdisjoint({(version, text), (version, True)}):
            return
        groups = [DESCRIPTION_GROUP, TEXT_GROUP] if text else [DESCRIPTION_GROUP]
        columns = columns_of(groups, self._tables.require("factors", version).schema)
        for batch in self.metadata(version, columns, fragments) if CHECKSUMS in columns else ():
            require_undamaged(batch, groups, self._tables.uri)
        if fragments is None:
            self._described.add((version, text))

    def metadata(
        self,
        version: int,
        columns: Sequence[str],
        fragments: Sequence[int] | None = None,
        condition: str | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Stream descriptive columns of a version of `factors`, and the column `fragment` of every row.

        Args:
            version: version of `factors`.
            columns: names of the columns.
            fragments: fragments to read; None for all.
            condition: SQL filter on the rows, which Lance evaluates; for one of a user see `condition_sql`.
        """
        dataset = self._tables.require("factors", version)
        selected = None if fragments is None else [dataset.get_fragment(number) for number in fragments]
        if selected == []:
            return
        options = {"columns": list(columns), "fragments": selected, "filter": condition, "with_row_address": True}
        for batch in self._tables.scan("factors", version, **options):
            yield batch.drop_columns("_rowaddr").append_column("fragment", fragment_numbers(batch))

    def descriptive_columns(self, version: int) -> list[str]:
        """Names of all columns except those of the code."""
        return self.descriptive_schema(version).names

    def descriptive_schema(self, version: int) -> pa.Schema:
        """All columns except those of the code and the checksums."""
        schema = self._tables.require("factors", version).schema
        return pa.schema([field for field in schema if field.name not in NOT_DESCRIPTIVE])

    def details(self, version: int, example_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Descriptive columns (all except those of the code) of some examples, by id."""
        names = self._tables.require("factors", version).schema.names
        columns = [name for name in names if name not in CODE_COLUMNS]
        details: dict[str, dict[str, Any]] = {}
        for condition in id_conditions(sorted(set(example_ids))):
            table = self._tables.read("factors", version, columns=columns, filter=condition)
            rows = checked_descriptions(table, self._tables.uri).to_pylist()
            details.update({row["example_id"]: row for row in rows})
        return details

    def spec(self) -> IndexSpec | None:
        """The spec that the table was created with; None if the index does not exist yet."""
        dataset = self._tables.open("factors")
        if dataset is None:
            return None
        return IndexSpec.from_json((dataset.schema.metadata or {})[SPEC_KEY].decode())

    def removed(self) -> pa.Table:
        """`example_id` and `content_hash` of the examples removed on request, oldest request first."""
        columns = ["example_id", "content_hash"]
        if self._tables.open("removed") is None:
            return REMOVED_SCHEMA.empty_table().select(columns)
        return self._checked_table("removed", REMOVED_SCHEMA).select(columns)

    def note_removed(self, rows: pa.Table) -> None:
        """Record examples (`example_id`, `content_hash`) that no later generation may contain."""
        known = set(zip(*(self.removed().column(name).to_pylist() for name in rows.column_names), strict=True))
        new = [row for row in rows.to_pylist() if tuple(row.values()) not in known]
        if new:
            self._add("removed", [{**row, "removed_at": now()} for row in new], REMOVED_SCHEMA)

    def _checked_table(self, name: str, schema: pa.Schema) -> pa.Table:
        return without_checksum(self._tables.read(name), schema, name, self._tables.uri)

    def _add(self, table: str, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
        self._tables.create(table, schema)
        since = int(self._tables.require(table).version)
        batches = map(with_checksum, pa.Table.from_pylist(rows, schema=schema).to_batches())
        self._tables.append(table, {uuid.uuid4().hex: self._tables.write(table, batches, schema)}, since)
