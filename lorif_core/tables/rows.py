"""The table `factors`: a row per example with its code; and which examples were skipped or removed.

Workers write uncommitted fragments; one committer turns a wave of them into a version. Readers name the
version that they want.
"""

import uuid
from collections.abc import Iterator, Sequence, Set
from itertools import chain
from typing import Any

import pyarrow as pa

from lorif_core.spec import FileTag, IndexSpec, ShardRef, parse_shard_key
from lorif_core.tables.blocks import Block, scan_codes
from lorif_core.tables.datasets import Tables, quoted
from lorif_core.tables.generation import now
from lorif_core.tables.inventory import Inventory, ShardKey
from lorif_core.tables.receipts import Receipt
from lorif_core.tables.schema import (
    CODE_COLUMNS,
    REMOVED_SCHEMA,
    SKIPPED_SCHEMA,
    SPEC_KEY,
    ShardRows,
    factors_schema,
    to_table,
)
from lorif_core.tables.shard_rows import Leaves, fragment_numbers, read_inventory, rewrite_fragments, settle

_KEYS_PER_FILTER = 500


class RowTable:
    """Rows of the training examples, at every version of the table.

    Args:
        tables: of the index.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def write(self, parts: Iterator[ShardRows], shard: ShardRef, spec: IndexSpec) -> list[str]:
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
        """See `shard_rows.settle`."""
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

    def note_skipped(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Remember (shard, example id, reason) of examples that are left out."""
        if rows:
            self._add(
                "skipped", [dict(zip(SKIPPED_SCHEMA.names, row, strict=True)) for row in rows], SKIPPED_SCHEMA
            )

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

    def version(self) -> int:
        """Newest version of `factors`."""
        return int(self._tables.require("factors").version)

    def code_bytes(self, version: int) -> int:
        """Bytes on storage of the codes and scales of a version of `factors`."""
        dataset = self._tables.require("factors", version)
        names = {field.id(): field.name() for field in dataset.lance_schema.fields()}
        fields = dataset.stats.data_stats().fields
        return sum(field.bytes_on_disk for field in fields if names.get(field.id) in CODE_COLUMNS)

    def fragment_ids(self, version: int) -> list[int]:
        """Fragments of a version of `factors`: the units in which workers share a scan."""
        return [fragment.fragment_id for fragment in self._tables.require("factors", version).get_fragments()]

    def of_examples(self, version: int, spec: str, example_ids: Sequence[str]) -> Iterator[Block]:
        """Stream codes of some examples of a spec in a version of `factors`."""
        for wanted in _with_ids(example_ids):
            condition = f"{wanted} AND spec = '{quoted(spec)}'"
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

    def spec(self) -> IndexSpec | None:
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

    def note_removed(self, rows: pa.Table) -> None:
        """Remember that examples (`example_id`, `content_hash`) are to be in no later generation."""
        self._tables.create("removed", REMOVED_SCHEMA)
        known = set(zip(*(self.removed().column(name).to_pylist() for name in rows.column_names), strict=True))
        new = [row for row in rows.to_pylist() if tuple(row.values()) not in known]
        if new:
            self._add("removed", [{**row, "removed_at": now()} for row in new], REMOVED_SCHEMA)

    def _add(self, table: str, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
        since = int(self._tables.require(table).version)
        batches = pa.Table.from_pylist(rows, schema=schema).to_batches()
        self._tables.append(table, {uuid.uuid4().hex: self._tables.write(table, iter(batches), schema)}, since)


def _with_ids(example_ids: Sequence[str]) -> Iterator[str]:
    """Conditions that together are met by the rows of some examples, each of a bounded length."""
    for start in range(0, len(example_ids), _KEYS_PER_FILTER):
        ids = ", ".join(f"'{quoted(name)}'" for name in example_ids[start : start + _KEYS_PER_FILTER])
        yield f"example_id IN ({ids})"
