"""Invariant: the shards of a compressed file are read in any order; in order they decompress it about once."""

import gzip
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorif_core.corpus import jsonl
from lorif_core.corpus.decompress import read_blocks
from lorif_core.corpus.paused import PausedReaders
from lorif_core.storage.filesystem import SourceFile, source_file
from tests.unit.corpus.corpus_files import STORAGE, make_rows, to_lines

ROWS, SHARD = 4000, 40


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "paused_readers", PausedReaders())
    monkeypatch.setattr(jsonl, "_READ_BYTES", 1000)


@pytest.fixture(params=["gz", "zst"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> SourceFile:
    path = tmp_path / f"a.jsonl.{request.param}"
    compress = gzip.compress if request.param == "gz" else zstandard.compress
    path.write_bytes(compress(to_lines(make_rows(ROWS))))
    return source_file(str(path), path.name, STORAGE)


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that were decompressed."""
    seen: list[int] = []

    def counted(*arguments: Any) -> Iterator[bytes]:
        for block in read_blocks(*arguments):
            seen.append(len(block))
            yield block

    monkeypatch.setattr(jsonl, "read_blocks", counted)
    return seen


def read(file: SourceFile, start: int) -> list[int]:
    return [row for row, _ in jsonl.read_records(file, start, SHARD)]


def test_shards_in_order_decompress_a_file_once(file: SourceFile, blocks: list[int]) -> None:
    for start in range(0, ROWS, SHARD):
        assert read(file, start) == list(range(start, start + SHARD))
    assert sum(blocks) == len(to_lines(make_rows(ROWS)))


def test_threads_that_share_the_shards_decompress_it_once_each(file: SourceFile, blocks: list[int]) -> None:
    with ThreadPoolExecutor(3) as pool:
        rows = list(pool.map(lambda start: read(file, start), range(0, ROWS, SHARD)))
    assert [row for part in rows for row in part] == list(range(ROWS))
    assert sum(blocks) <= 4 * len(to_lines(make_rows(ROWS)))


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reads=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 90), st.booleans()), max_size=12))
def test_any_order_gives_the_same_rows(file: SourceFile, reads: list[tuple[int, int, bool]]) -> None:
    for start, rows, is_broken_off in reads:
        records = jsonl.read_records(file, start, rows)
        if is_broken_off:
            assert next(records)[0] == start
            records.close()  # type: ignore[attr-defined]
        else:
            assert list(records) == list(jsonl.read_records(file))[start : start + rows]


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(to_lines(make_rows(100))))
    assert read(source_file(str(path), path.name, STORAGE), 0) == list(range(SHARD))
    path.write_bytes(gzip.compress(to_lines([{"text": "new"}] * 200)))
    changed = source_file(str(path), path.name, STORAGE)
    assert [record for _, record in jsonl.read_records(changed, SHARD, 1)] == [{"text": "new"}]
