"""Invariant: any range of rows of a parquet or Arrow file is read with the right numbers, wherever groups end."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorif_core.corpus import columnar
from lorif_core.corpus.shards import list_shards
from lorif_core.errors import LorifError
from lorif_core.storage.filesystem import SourceFile, source_file
from tests.unit.corpus.corpus_files import STORAGE, corpus, listing_error, make_rows, read_all, write

FORMATS = ("a.parquet", "stream.arrow", "file.arrow")


def written(path: Path, groups: list[int]) -> SourceFile:
    write(path, make_rows(sum(groups)), groups)
    return source_file(str(path), path.name, STORAGE)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.lists(st.integers(1, 700), min_size=1, max_size=4),
    start=st.integers(0, 1000),
    count=st.none() | st.integers(1, 1000),
)
def test_a_range_of_rows_is_read_across_groups(
    tmp_path: Path, name: str, groups: list[int], start: int, count: int | None
) -> None:
    file = written(tmp_path / name, groups)
    rows = list(columnar.read_records(file, ["text"], start, count))
    stop = sum(groups) if count is None else min(sum(groups), start + count)
    assert rows == [(i, {"text": f"text {i}"}) for i in range(start, stop)]


def test_only_parquet_files_have_row_groups(tmp_path: Path) -> None:
    assert columnar.group_sizes(written(tmp_path / "a.parquet", [3, 600, 1])) == [3, 600, 1]
    for name in ("stream.arrow", "file.arrow"):
        assert columnar.group_sizes(written(tmp_path / name, [3, 600, 1])) == [604]


def test_damage_that_the_listing_cannot_detect_is_reported_when_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", make_rows(500))
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4)
    path.write_bytes(content)
    (shard,) = list_shards(corpus(path), STORAGE).shards
    with pytest.raises(LorifError, match=r"a\.parquet is damaged or cut off"):
        read_all([shard])


@pytest.mark.parametrize("name", FORMATS)
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    columns = [pa.array(["a"]), pa.array([1]), pa.array(["b"])]
    table = pa.Table.from_arrays(columns, ["text", "id", "text"])
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        new = pa.ipc.new_stream if name == "stream.arrow" else pa.ipc.new_file
        with new(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    message = listing_error(tmp_path)
    assert message == f"{tmp_path / name} has several columns named 'text'; rename or drop all but one"
