"""Invariant: every line of a jsonl file that is not blank is one row, plain or compressed; a bad line is named."""

import gzip
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorif_core.corpus import jsonl
from lorif_core.corpus.shards import SHARD_ROWS, list_shards
from lorif_core.errors import UserError
from lorif_core.storage.filesystem import source_file
from tests.unit.corpus.corpus_files import STORAGE, corpus, listing_error, make_rows, read_all, to_lines, write

PIECES = ['{"text": "a"}', '  {"text": "é"} ', "", " ", "\t \r", "\x0c"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=30),
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
    assert "has a line of more than 1 MiB" in listing_error(path)
