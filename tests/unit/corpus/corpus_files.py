"""Writes corpora in every supported format, and reads them back through their shards."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.corpus.shards import list_shards, read_rows
from lorif_core.errors import UserError
from lorif_core.spec import ShardRef

STORAGE = StorageConfig()
FORMATS = ("a.parquet", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "stream.arrow", "file.arrow")
Rows = list[dict[str, Any]]


def corpus(path: Path | str, **columns: Any) -> CorpusConfig:
    return CorpusConfig(uri=str(path), **{"max_length": 512, **columns})


def make_rows(count: int) -> Rows:
    return [{"id": i, "text": f"text {i}", "more": "x" * (i % 7)} for i in range(count)]


def to_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path: Path, rows: Rows, groups: Sequence[int] = (), lines: bytes | None = None) -> Path:
    """Write rows (or raw lines) in the format of the name; `groups` are sizes of row groups or record batches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".jsonl" in path.name:
        compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
        path.write_bytes(compress(to_lines(rows) if lines is None else lines))
        return path
    table = pa.Table.from_pylist(rows)
    parts, start = [], 0
    for size in groups or (len(rows),):
        parts.append(table.slice(start, size))
        start += size
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, table.schema) as writer:
            for part in parts:
                writer.write_table(part, row_group_size=max(len(part), 1))
    else:
        new = pa.ipc.new_stream if path.name.startswith("stream") else pa.ipc.new_file
        with new(path, table.schema) as writer:
            for part in parts:
                writer.write_table(part)
    return path


def read_all(shards: Sequence[ShardRef], columns: Sequence[str] = ("text",)) -> list[tuple[int, dict[str, Any]]]:
    return [row for shard in shards for row in read_rows(shard, columns, STORAGE)]


def listing_error(path: Path | str, **columns: Any) -> str:
    """The message with which `list_shards` refuses a corpus."""
    with pytest.raises(UserError) as caught:
        list_shards(corpus(path, **columns), STORAGE)
    message = str(caught.value)
    assert "\n" not in message
    return message
