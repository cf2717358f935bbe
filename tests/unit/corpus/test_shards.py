"""Invariant: the shards of a corpus, read back, are its rows: each once, in order, under its own row number; and a
file that is not what was listed is never read as if it were.

If this breaks, scores are attributed to the wrong rows.
"""

import gzip
import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.corpus import jsonl
from lorif_core.corpus.shards import SHARD_ROWS, list_shards, needed_columns, read_rows
from lorif_core.errors import CorpusChangedError, DamagedFileError, LorifError, UserError
from lorif_core.spec import ShardRef
from lorif_core.storage.connection import s3_filesystem
from lorif_core.storage.filesystem import entity_tag, open_filesystem, source_file

STORAGE = StorageConfig()
FORMATS = ("a.parquet", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "stream.arrow", "file.arrow")
Rows = list[dict[str, Any]]


def corpus(path: Path | str, **columns: Any) -> CorpusConfig:
    return CorpusConfig(uri=str(path), **columns)


def rows_of(count: int) -> Rows:
    return [{"id": i, "text": f"text {i}", "more": "x" * (i % 7)} for i in range(count)]


def to_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path: Path, rows: Rows, groups: Sequence[int] = (), lines: bytes | None = None) -> Path:
    """Write rows in the format of the name; `groups` are the sizes of row groups or record batches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".jsonl" in path.name:
        packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
        path.write_bytes(packed(to_lines(rows) if lines is None else lines))
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


def read_all(shards: list[ShardRef], columns: Sequence[str] = ("text",)) -> list[tuple[int, dict[str, Any]]]:
    return [row for shard in shards for row in read_rows(shard, columns, STORAGE)]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=st.lists(st.integers(1, 1100), min_size=1, max_size=4))
def test_shards_read_back_are_the_file(tmp_path: Path, name: str, groups: list[int]) -> None:
    rows = rows_of(sum(groups))
    shards = list_shards(corpus(write(tmp_path / name, rows, groups)), STORAGE).shards
    assert read_all(shards) == [(i, {"text": row["text"]}) for i, row in enumerate(rows)]
    assert all(shard.rows <= SHARD_ROWS for shard in shards)
    assert len({shard.key for shard in shards}) == len(shards)
    assert all((shard.offset is not None) == (name == "a.jsonl") for shard in shards)
    if name == "a.parquet":
        borders = {sum(groups[:i]) for i in range(1, len(groups))}
        starts = {shard.start for shard in shards}
        assert borders <= starts
    # any shard can be read alone
    middle = shards[len(shards) // 2]
    assert [row for row, _ in read_rows(middle, ["id"], STORAGE)] == list(
        range(middle.start, middle.start + middle.rows)
    )


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.sampled_from(['{"text": "a"}', '  {"text": "é"} ', "", " ", "\t \r", "\x0c"]), max_size=30),
    ended=st.booleans(),
    block=st.integers(1, 40),
    every=st.integers(1, 4),
)
def test_blank_lines_are_never_rows(
    tmp_path: Path, pieces: list[str], ended: bool, block: int, every: int
) -> None:
    path = write(tmp_path / "a.jsonl", [], lines="\n".join(pieces).encode() + b"\n" * ended)
    expected = sum(bool(piece.strip()) for piece in pieces)
    file = source_file(str(path), path.name, STORAGE)
    with pytest.MonkeyPatch.context() as patch:  # small blocks, so that lines cross them
        patch.setattr(jsonl, "_SCAN_BYTES", block)
        patch.setattr(jsonl, "_READ_BYTES", block)
        rows, offsets = jsonl.index_rows(file, every)
        assert rows == expected == len(list(jsonl.read_records(file)))
        for start, offset in zip(range(0, rows, every), offsets, strict=True):
            sought = list(jsonl.read_records(file, start, every, offset))
            assert sought == list(jsonl.read_records(file, start, every))
            assert [row for row, _ in sought] == list(range(start, min(start + every, rows)))


def test_folders_globs_and_names(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/1.parquet", "_tmp/x.jsonl", "b/.y.jsonl", "b/c/3.jsonl.gz"):
        write(tmp_path / name, rows_of(2))
    for name in ("a.JSONL", "notes.csv"):
        (tmp_path / name).write_bytes(to_lines(rows_of(2)))
    listed = list_shards(corpus(tmp_path), STORAGE).shards
    assert [shard.name for shard in listed] == ["a.JSONL", "b/1.parquet", "b/2.jsonl", "b/c/3.jsonl.gz"]
    assert [shard.uri for shard in listed] == [str(tmp_path / shard.name) for shard in listed]
    assert listed == list_shards(corpus(f"file://{tmp_path}/"), STORAGE).shards
    for pattern, names in (
        ("b/*.jsonl", ["2.jsonl"]),
        ("*/*.parquet", ["b/1.parquet"]),
        ("b/**/*.jsonl*", ["2.jsonl", "c/3.jsonl.gz"]),
        ("b/.y.jsonl", [".y.jsonl"]),
    ):
        assert [shard.name for shard in list_shards(corpus(tmp_path / pattern), STORAGE).shards] == names


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d" / "a.jsonl", rows_of(3))
    monkeypatch.chdir(tmp_path)
    (shard,) = list_shards(corpus("d"), STORAGE).shards
    assert (shard.uri, shard.name) == (str(tmp_path / "d" / "a.jsonl"), "a.jsonl")


def test_needed_columns_by_precedence() -> None:
    everything = {"text": "t", "prompt": "p", "completion": "c", "tokens": "i", "labels": "l", "id": "k"}
    assert needed_columns(corpus("x", **everything)) == ["i", "l", "k"]
    assert needed_columns(corpus("x", prompt="p", completion="c")) == ["p", "c"]
    assert needed_columns(corpus("x", id="text")) == ["text"]


@pytest.mark.parametrize("name", FORMATS)
def test_tokens_and_only_the_columns_asked_for(tmp_path: Path, name: str) -> None:
    rows = [{"ids": [1, 2, i], "id": f"k{i}", "text": "t"} for i in range(4)]
    settings = corpus(write(tmp_path / name, rows), tokens="ids", id="id")
    shards = list_shards(settings, STORAGE).shards
    assert read_all(shards, needed_columns(settings)) == [(i, {"ids": [1, 2, i], "id": f"k{i}"}) for i in range(4)]


def test_compressed_members_and_a_byte_order_mark(tmp_path: Path) -> None:
    parts = [to_lines(rows_of(3)), to_lines(rows_of(5)[3:])]
    for name, pack in (("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)):
        (tmp_path / name).write_bytes(b"".join(pack(part) for part in parts))
        assert len(read_all(list_shards(corpus(tmp_path / name), STORAGE).shards)) == 5
    marked = write(tmp_path / "bom.jsonl", [], lines=b"\xef\xbb\xbf" + parts[0])
    assert len(read_all(list_shards(corpus(marked), STORAGE).shards)) == 3


def refusal(path: Path | str, **columns: Any) -> str:
    with pytest.raises(UserError) as caught:
        list_shards(corpus(path, **columns), STORAGE)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.parquet", b"no parquet at all", "is not a .parquet file"),
        ("a.arrow", b"FEA1 old feather", "is not a .arrow file"),
        ("a.jsonl.gz", b"plain", "is not a .gz file"),
        ("a.jsonl.zst", b"plain", "is not a .zst file"),
        ("a.jsonl", b"\n \n[1, 2]\n", "line 3 of"),
        ("a.jsonl", b"text\nhello\n", "line 1 of"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "is not valid JSON"),
        ("a.jsonl", b'{"text": 5}\n', "must hold strings, it holds integer"),
        ("a.jsonl", b'{"text": null}\n', "must hold strings, it holds null"),
        ("a.jsonl", b'{"txt": "a", "n": 1}\n', "has no column 'text'; it has txt, n; did you mean 'txt'?"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    write(tmp_path / "0.jsonl", rows_of(2))
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path)
    assert reason in message
    assert str(tmp_path / name) in message


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.parquet", b"", "is cut off after 0 bytes"),
        ("a.arrow", b"ARR", "is cut off after 3 bytes"),
        ("a.parquet", b"PAR1" + b"x" * 50, "is cut off"),
        ("a.parquet", b"PAR1" + b"x" * 50 + b"PAR1", "is damaged or cut off"),
        ("a.arrow", b"ARROW1\0\0garbage", "is damaged or cut off"),
        ("a.arrow", b"\xff\xff\xff\xff\x10\0\0\0abc", "is damaged or cut off"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 50, mtime=0)[:-9], "is damaged or cut off"),
        ("a.jsonl.zst", zstandard.compress(b'{"text": "a"}\n' * 50)[:-3], "is damaged or cut off"),
    ],
)
def test_a_damaged_file_is_set_aside_and_the_others_are_listed(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedFileError, match=reason):
        list_shards(corpus(tmp_path), STORAGE)
    write(tmp_path / "z.jsonl", rows_of(2))
    listing = list_shards(corpus(tmp_path), STORAGE)
    assert [shard.name for shard in listing.shards] == ["z.jsonl"]
    ((damaged, cause),) = listing.damaged
    assert damaged == name and reason in cause and str(tmp_path / name) in cause


@pytest.mark.parametrize("name", FORMATS)
def test_columns_that_are_missing_or_of_another_type(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"txet": "a", "number": 1, "list": [1]}])
    message = refusal(path)
    assert f"{path} has no column 'text'; it has txet, number, list; did you mean 'txet'?" == message
    assert "must hold strings, it holds integer" in refusal(path, text="number")
    assert "must hold lists of integers, it holds text" in refusal(path, tokens="txet")
    assert "must hold strings or integers" in refusal(path, text="txet", id="list")
    assert "no column 'completion'" in refusal(path, prompt="txet", completion="completion")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("last", "reason"),
    [(0, "the id '0' (column 'id') is in row 0 of {a} and again in row 2 of {b}"), (None, "row 2 of {b}")],
)
def test_ids_that_repeat_or_are_null(tmp_path: Path, name: str, last: int | None, reason: str) -> None:
    a = write(tmp_path / "0.jsonl", [{"id": str(i), "text": "t"} for i in range(5)])
    b = write(tmp_path / "1" / name, [{"id": i, "text": "t"} for i in (7, 8, last)])
    assert reason.format(a=a, b=b) in refusal(tmp_path, id="id")


def test_unique_ids_pass(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", rows_of(1100))
    assert sum(shard.rows for shard in list_shards(corpus(tmp_path, id="id"), STORAGE).shards) == 1100


@pytest.mark.parametrize("value", [1.5, True, ["x"]])
def test_an_id_of_another_type_is_refused(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path / "a.jsonl", [{"id": 1, "text": "t"}, {"id": value, "text": "t"}])
    assert f"the id in row 1 of {path} (column 'id') is {value!r}" in refusal(path, id="id")


def test_nothing_to_read(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none").endswith("none does not exist")
    assert "none.jsonl does not exist" in refusal(tmp_path / "none.jsonl")
    supported = "name files that end in .parquet, .jsonl, .jsonl.gz, .jsonl.zst, .arrow"
    (tmp_path / "a.csv").write_text("text\n")
    for path in (tmp_path, tmp_path / "a.csv", tmp_path / "*.jsonl"):
        assert supported in refusal(path)
    write(tmp_path / "a.jsonl", [], lines=b"\n\n")
    assert "has no rows in its 1 files" in refusal(tmp_path)


@pytest.mark.parametrize("uri", ["gs://bucket/x", "https://host/x.jsonl"])
def test_other_schemes_are_refused(uri: str) -> None:
    assert f"{uri} has the scheme {uri.split(':')[0]}://, which is not supported" in refusal(uri)


def test_a_plain_http_endpoint_must_be_allowed() -> None:
    with pytest.raises(UserError, match=r"storage.endpoint = http://host is not encrypted"):
        open_filesystem("s3://bucket/x", StorageConfig(endpoint="http://host"))
    fs = s3_filesystem(StorageConfig(endpoint="http://host", allow_http=True))
    assert fs.endpoint_url == "http://host"


def test_entity_tags() -> None:
    assert entity_tag({"ETag": '"0123abc-2"'}) == "0123abc-2"
    assert entity_tag({"mtime": 1.5}) == f"{1_500_000_000:x}"
    assert entity_tag({"mtime": 1.5, "mtime_ns": 17}) == "11"


@pytest.mark.parametrize("name", FORMATS)
def test_a_changed_file_is_noticed(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, rows_of(5))
    (shard,) = list_shards(corpus(path), STORAGE).shards
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    with pytest.raises(CorpusChangedError) as caught:
        read_all([shard])
    (now,) = list_shards(corpus(path), STORAGE).shards
    assert all(part in str(caught.value) for part in (str(path), shard.etag, now.etag))
    path.unlink()
    with pytest.raises(CorpusChangedError, match="is gone"):
        read_all([now])


def test_a_file_that_changes_under_the_reader_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows_of(5))
    (shard,) = list_shards(corpus(path), STORAGE).shards
    reader = read_rows(shard, ["text"], STORAGE)
    next(reader)
    write(path, rows_of(6))
    with pytest.raises(CorpusChangedError, match=r"a\.jsonl"):
        list(reader)


def test_damage_that_listing_cannot_see_is_told_when_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows_of(500))
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4)
    path.write_bytes(content)
    (shard,) = list_shards(corpus(path), STORAGE).shards
    with pytest.raises(LorifError, match=r"a\.parquet is damaged or cut off"):
        read_all([shard])


def test_later_lines_are_checked_when_read(tmp_path: Path) -> None:
    good = to_lines(rows_of(600)) + b"\n"
    for bad, reason in (
        (b'{"text": \n', "line 602 of .*a.jsonl is not valid JSON"),
        (b"3\n", "line 602 of .*a.jsonl is not a JSON object"),
        (b'{"id": 4}\n', "row 600 of .*a.jsonl has no 'text'; it has id"),
        (b"[" * 100_000 + b"\n", "line 602 of .*a.jsonl is not valid JSON"),
        (b'{"text": "\xff"}\n', "line 602 of .*a.jsonl is not valid JSON"),
    ):
        shards = list_shards(corpus(write(tmp_path / "a.jsonl", [], lines=good + bad)), STORAGE).shards
        assert len(read_all(shards[:1])) == SHARD_ROWS
        with pytest.raises(UserError, match=reason):
            read_all(shards[1:])


def test_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "_LONGEST_LINE", 2**20)
    path = write(tmp_path / "a.jsonl", [], lines=b'{"text": "' + b"x" * 3 * 2**20)
    assert "has a line of more than 1 MiB" in refusal(path)


def test_shards_follow_each_other(tmp_path: Path) -> None:
    shards = list_shards(corpus(write(tmp_path / "a.jsonl", rows_of(1300))), STORAGE).shards
    assert [shard.rows for shard in shards] == [512, 512, 276]
    assert all(after.start == before.start + before.rows for before, after in pairwise(shards))
