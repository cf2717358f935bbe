"""Invariants: a row costs at most 40 bytes beyond codes and text; tables of an older lorif are read and grow."""

import hashlib
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from lance.file import LanceFileReader

from lorif_core.errors import UserError
from lorif_core.lifecycle.verify import verify
from lorif_core.spec import ShardRef
from lorif_core.tables.checksums import CHECKSUMS, CODE_COLUMNS
from lorif_core.tables.schema import ShardRows, factors_schema
from lorif_core.tables.store import Store
from tests.models import make_example
from tests.unit.tables.small_store import SPEC, WIDTH, commit, generation, rows

ROWS_PER_PART, PARTS = 512, 16
TEXT = "text"


def test_a_row_costs_at_most_40_bytes_beyond_codes_and_text(store: Store) -> None:
    """What a text needs, its checksum, counts with the text; constant columns cost nothing."""
    name, rng = "folder/part-00012.jsonl", np.random.default_rng(0)

    def part(number: int) -> ShardRows:
        first = number * ROWS_PER_PART
        examples = [
            replace(
                make_example([1] * int(rng.integers(20, 512)), name=f"{name}#{row}"),
                row=row, content_hash=hashlib.md5(str(row).encode()).hexdigest(), text="some words",
            )
            for row in range(first, first + ROWS_PER_PART)
        ]  # fmt: skip
        losses = (700 * rng.random(ROWS_PER_PART)).astype(np.float32)
        codes = rng.standard_normal((ROWS_PER_PART, WIDTH)).astype(np.float16)
        return ShardRows(examples, losses, codes, rng.random((ROWS_PER_PART, 2), np.float32))

    shard = ShardRef(f"/corpus/{name}", name, "18f0aa31c2b7e9d4", 123456789, 0, PARTS * ROWS_PER_PART, None)
    store.rows.write(map(part, range(PARTS)), shard, SPEC)
    (path,) = Path(store.uri, "factors.lance", "data").iterdir()
    columns = LanceFileReader(str(path)).file_statistics().columns
    count = PARTS * ROWS_PER_PART
    sizes = dict(zip(factors_schema(SPEC).names, (column.size_bytes / count for column in columns), strict=True))
    beyond = sum(size for column, size in sizes.items() if column not in (*CODE_COLUMNS, TEXT)) - 4
    assert beyond <= 40, sizes
    assert sum(sizes[column] for column in ("shard", "uri", "checkpoint", "spec")) < 1, sizes


def test_a_column_that_users_have_added_is_null_in_new_rows(store: Store) -> None:
    commit(store, 0)
    lance.dataset(f"{store.uri}/factors.lance").add_columns({"topic": "'cats'"})
    with pytest.raises(UserError, match=r"column 'topic' .* may not be null"):
        commit(store, 1)
    lance.dataset(f"{store.uri}/factors.lance").alter_columns({"path": "topic", "nullable": True})
    commit(store, 1)
    topics = lance.dataset(f"{store.uri}/factors.lance").to_table(["topic"])["topic"].to_pylist()
    assert topics == ["cats"] * 4 + [None] * 4


def test_a_table_of_an_older_lorif_is_read_and_grows(tmp_path: Path) -> None:
    """It has another file format, plain texts and checksums of 64 bits, which its new rows get, too."""
    older = pa.schema(
        [
            pa.field(CHECKSUMS, pa.list_(pa.uint64(), 3)) if field.name == CHECKSUMS else field.with_metadata(None)
            for field in factors_schema(SPEC)
        ],
        metadata=factors_schema(SPEC).metadata,
    )
    store = Store(str(tmp_path / "index"))
    lance.write_dataset(older.empty_table(), f"{store.uri}/factors.lance", data_storage_version="2.0")
    store.create(SPEC)
    commit(store, 0, 1)
    stored = lance.dataset(f"{store.uri}/factors.lance")
    assert stored.data_storage_version == "2.0" and stored.schema.field(CHECKSUMS).type.value_type == pa.uint64()
    (block,) = store.rows.scan(store.rows.version(), 100)
    np.testing.assert_array_equal(block.codes.numpy()[:4], rows(0).codes)
    store.publish(generation(store, 1))
    found = verify(store)
    assert {item.table for item in found.damage} == {"curvature"}, "which the test did not fit"
    assert found.rows == 8 and not found.unchecked_rows
