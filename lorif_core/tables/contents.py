"""The contents of the data files of `factors`: the shards in a file, with their numbers of rows and tokens.

Whoever writes a file counts its rows by shard. The counts are recorded with the digest of the file when it is
committed. So an inventory needs no column of the table.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from lorif_core.spec import FileTag, parse_shard_key

CONTENTS_KEY = "lorif.contents"
"""Key of the contents in the metadata, as JSON, of a written fragment."""

CONTENT_COLUMNS = ("spec", "shard", "tokens")


class ShardCount(NamedTuple):
    """The rows of a shard in a file: hash of their spec, key of the shard, numbers of rows and of their tokens."""

    spec: str
    shard: str
    rows: int
    tokens: int


class ShardCounts:
    """Counts rows by shard, in the order in which shards appear."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], tuple[int, int]] = {}

    def of(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same batches; they are counted while they pass."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: pa.RecordBatch) -> None:
        """Count the rows of a batch, which has the columns `CONTENT_COLUMNS`."""
        table = pa.table({name: batch.column(name) for name in CONTENT_COLUMNS})
        grouped = table.group_by(["spec", "shard"], use_threads=False)  # else in any order
        for row in grouped.aggregate([("tokens", "count"), ("tokens", "sum")]).to_pylist():
            rows, tokens = self._counts.get((row["spec"], row["shard"]), (0, 0))
            self._counts[row["spec"], row["shard"]] = rows + row["tokens_count"], tokens + row["tokens_sum"]

    @property
    def counts(self) -> list[ShardCount]:
        """The counts so far."""
        return [ShardCount(*key, *numbers) for key, numbers in self._counts.items()]


def with_contents(fragment: str, counts: Iterable[ShardCount]) -> str:
    """The metadata of a written fragment, as JSON, with its contents."""
    return json.dumps({**json.loads(fragment), CONTENTS_KEY: _encode(counts)})


def file_contents(fragment: Mapping[str, Any]) -> dict[str, Any]:
    """Contents by name of the data file, encoded, of the metadata of a written fragment."""
    return {file["path"]: fragment[CONTENTS_KEY] for file in fragment["files"] if CONTENTS_KEY in fragment}


def _encode(counts: Iterable[ShardCount]) -> list[list[Any]]:
    """[spec, file name, ETag, size, [first row, row after the last, rows, tokens, ...]] for each run of a file."""
    runs: list[list[Any]] = []
    for spec, shard, rows, tokens in counts:
        file, start, stop = parse_shard_key(shard)
        head = [spec, file.name, file.etag, file.size]
        if not runs or runs[-1][:4] != head:
            runs.append([*head, []])
        runs[-1][4] += [start, stop, rows, tokens]
    return runs


def decode_contents(runs: Iterable[list[Any]]) -> list[ShardCount]:
    """The counts that were encoded."""
    return [
        ShardCount(spec, FileTag(name, etag, size).shard_key(start, stop), rows, tokens)
        for spec, name, etag, size, numbers in runs
        for start, stop, rows, tokens in zip(*(iter(numbers),) * 4, strict=True)
    ]
