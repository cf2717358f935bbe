"""Invariant: every line of a jsonl file that is not blank is one row, plain or compressed; a bad line is named."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorif_core.corpus import jsonl
from lorif_core.corpus.decompress import is_wide
from lorif_core.corpus.file_listing import SHARD_ROWS
from lorif_core.corpus.shards import list_shards
from lorif_core.errors import DamagedFileError, UserError
from lorif_core.storage.filesystem import source_file
from tests.patience import patience
from tests.unit.corpus.corpus_files import STORAGE, corpus, listing_error, make_rows, read_all, to_lines, write

MARK = b"\xef\xbb\xbf"
PIECES = ['{"text": "a"}', '  {"text": "é"} ', "", " ", "\t \r", "\x0c"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=30),
    ended=st.booleans(),
    mark=st.sampled_from([b"", MARK]),
    newline=st.sampled_from(["\n", "\r\n"]),
    block=st.integers(1, 40),
    every=st.integers(1, 4),
)
def test_blank_lines_are_never_rows(
    tmp_path: Path, pieces: list[str], ended: bool, mark: bytes, newline: str, block: int, every: int
) -> None:
    path = write(
        tmp_path / "a.jsonl", [], lines=mark + newline.join([*pieces, ""][: len(pieces) + ended]).encode()
    )
    expected = sum(bool(piece.strip()) for piece in pieces)
    file = source_file(str(path), path.name, STORAGE)
    with pytest.MonkeyPatch.context() as patch:  # small blocks, so that lines cross their borders
        patch.setattr(jsonl, "_SCAN_BYTES", block)
        patch.setattr(jsonl, "_READ_BYTES", block)
        rows, offsets = jsonl.index_rows(file, every)
        assert rows == expected == len(list(jsonl.read_records(file)))
        for start, offset in zip(range(0, rows, every), offsets, strict=True):
            from_offset = list(jsonl.read_records(file, start, every, offset))
            assert from_offset == list(jsonl.read_records(file, start, every))
            assert [row for row, _ in from_offset] == list(range(start, min(start + every, rows)))


def test_compressed_members_and_a_byte_order_mark(tmp_path: Path) -> None:
    parts = [to_lines(make_rows(3)), to_lines(make_rows(5)[3:])]
    for name, compress in (("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)):
        (tmp_path / name).write_bytes(b"".join(compress(part) for part in parts))
        assert len(read_all(list_shards(corpus(tmp_path / name), STORAGE).shards)) == 5
    marked = write(tmp_path / "bom.jsonl", [], lines=b"\xef\xbb\xbf" + parts[0])
    assert len(read_all(list_shards(corpus(marked), STORAGE).shards)) == 3


def test_later_lines_are_checked_when_they_are_read(tmp_path: Path) -> None:
    good = to_lines(make_rows(600)) + b"\n"
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


def test_a_line_above_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "_LONGEST_LINE", 2**20)
    path = write(tmp_path / "a.jsonl", [], lines=b'{"text": "' + b"x" * 3 * 2**20)
    assert "line 1 of" in listing_error(path) and "has more than 1 MiB" in listing_error(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_of_an_editor_for_windows_is_read(tmp_path: Path, name: str) -> None:
    lines = MARK + to_lines(make_rows(1100)).replace(b"\n", b"\r\n")
    shards = list_shards(corpus(write(tmp_path / name, [], lines=lines), id="id"), STORAGE).shards
    assert read_all(shards, ["text", "id"]) == [(i, {"text": f"text {i}", "id": i}) for i in range(1100)]
    write(tmp_path / name, [], lines=MARK)
    assert "has no rows in its 1 files" in listing_error(tmp_path / name)
    write(tmp_path / name, [], lines='{"text": "a"}\r\n'.encode("utf-16"))
    assert "line 1 of" in listing_error(tmp_path) and "UTF-16" in listing_error(tmp_path)


# ---- compression ---------------------------------------------------------------------------------------------


def with_window(log: int, content: bytes) -> bytes:
    """A frame with a window of 2^log bytes, as `zstd --ultra --long` makes it of a stream."""
    settings = zstandard.ZstdCompressionParameters(window_log=log, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return stream.compress(content) + stream.flush()


@pytest.mark.parametrize("log", [10, 27, 28, 31])
def test_frames_of_any_window_are_read(tmp_path: Path, log: int) -> None:
    skippable = b"\x5a\x2a\x4d\x18\x03\x00\x00\x00abc"
    parts = [to_lines(make_rows(600)), b"", to_lines(make_rows(700)[600:])]
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(skippable + skippable.join(with_window(log, part) for part in parts))
    assert zstandard.get_frame_parameters(with_window(log, parts[0])).window_size == 2**log
    assert is_wide(source_file(str(path), path.name, STORAGE)) is False  # its first frame is skippable
    assert len(read_all(list_shards(corpus(path), STORAGE).shards)) == 700
    path.write_bytes(with_window(log, parts[0]))
    assert is_wide(source_file(str(path), path.name, STORAGE)) == (log > 27)
    assert len(read_all(list_shards(corpus(path), STORAGE).shards)) == 600


def test_a_window_that_zstd_does_not_make_is_named(tmp_path: Path) -> None:
    frame = bytearray(with_window(31, to_lines(make_rows(9))))
    frame[5] = 22 << 3  # the exponent of the window, above 2^10
    (tmp_path / "a.jsonl.zst").write_bytes(frame)
    with pytest.raises(DamagedFileError, match=r"a\.jsonl\.zst needs a window of more than 2 GiB.*--long=31"):
        list_shards(corpus(tmp_path), STORAGE)


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
@pytest.mark.parametrize("members", [1, 2])
def test_every_cut_of_a_compressed_file_is_noticed(
    tmp_path: Path, compress: Callable[[bytes], bytes], members: int
) -> None:
    """At every byte but between two members, where the file is whole."""
    content = compress(to_lines(make_rows(3)))
    path = tmp_path / ("a.jsonl.gz" if compress is gzip.compress else "a.jsonl.zst")
    for stop in range(8, len(content) * members):
        if stop != len(content):
            path.write_bytes((content * members)[:stop])
            with pytest.raises(DamagedFileError, match="damaged or cut off"):
                list_shards(corpus(path), STORAGE)


BOMBS = """
import gzip, resource, sys, time
from pathlib import Path
import zstandard
from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.corpus.decompress import is_wide
from lorif_core.corpus.shards import list_shards, read_rows
from lorif_core.errors import DamagedFileError, UserError

folder, kind = Path(sys.argv[1]), sys.argv[2]
fill = {"blank": b"\\n", "windows": b" \\r\\n\\t\\n", "long": b"x"}[kind]
first = b'{"text": "a b"}\\n' + (b'{"text": "' if kind == "long" else b"")
for name, compress in (("a.jsonl.gz", gzip.compress), ("b.jsonl.zst", zstandard.compress)):
    middle = compress(fill * (2**24 // len(fill)))
    times = 17 if kind == "long" else 8
    (folder / name).write_bytes(compress(first) + times * middle + compress(b'\\n{"text": "c d"}'))
assert sum(path.stat().st_size for path in folder.iterdir()) < 2**21
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
try:
    shards = list_shards(CorpusConfig(uri=str(folder)), StorageConfig()).shards
    print([[record["text"] for _, record in read_rows(shard, ["text"], StorageConfig())] for shard in shards])
except UserError as error:
    print(error)
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("blank", "[['a b', 'c d'], ['a b', 'c d']]"),
        ("windows", "[['a b', 'c d'], ['a b', 'c d']]"),
        ("long", "has more than 256 MiB; write one JSON record per line"),
    ],
)
def test_a_few_bytes_that_unpack_to_a_lot_cost_bounded_memory(tmp_path: Path, kind: str, expected: str) -> None:
    command = [sys.executable, "-c", BOMBS, str(tmp_path), kind]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=patience(120))
    *answer, mebibytes = run.stdout.splitlines()
    assert expected in answer[0]
    assert int(mebibytes) < 128


# ---- keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["text", "id", "é"])
def test_a_key_twice_is_refused(tmp_path: Path, key: str) -> None:
    columns = {"text": "text" if key == "id" else key, "id": "id"}
    rows = [
        {"id": 1, "text": "t", "é": "t"},
        {"id": 2, "text": '"text"', "é": {"text": "é", "text2": ["id", "id"]}},
    ]
    fine = "".join(json.dumps({**row, "é": "t"}, ensure_ascii=False) + "\n" for row in rows)
    nested = '{"id": "id", "text": "text", "é": "é", "more": {"text": 1, "text": 2, "id": {"é": 0, "é": 1}}}\n'
    twice = f'{{"id": "x", "text": "a", "é": "b", "{key}": "c"}}\n'
    path = write(tmp_path / "a.jsonl", [], lines=(fine + nested + "\n" + twice).encode())
    without_ids = corpus(path, text=columns["text"])
    if key == "id":
        assert f"line 5 of {path} has the key 'id' twice" in listing_error(path, **columns)
        assert len(read_all(list_shards(without_ids, STORAGE).shards)) == 4
        return
    with pytest.raises(UserError, match=rf"line 5 of .*a\.jsonl has the key '{key}' twice"):
        read_all(list_shards(without_ids, STORAGE).shards, [key])
    path.write_text(twice)
    assert f"line 1 of {path} has the key {key!r} twice" in listing_error(path, text=key)
