"""Invariant: a file whose content does not match its ending, or that is damaged, gives an error with its name.

If this breaks, an error of a library without the file name stops the build, or damaged files are silently skipped.
"""

import gzip
from pathlib import Path

import pytest
import zstandard

from lorif_core.corpus.shards import list_shards
from lorif_core.errors import DamagedFileError
from tests.unit.corpus.corpus_files import STORAGE, corpus, listing_error, make_rows, write


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
        ("a.jsonl", b'{"text": 5}\n', "must contain strings, but contains integer"),
        ("a.jsonl", b'{"text": null}\n', "must contain strings, but contains null"),
        ("a.jsonl", b'{"txt": "a", "n": 1}\n', "has no column 'text'; it has txt, n; did you mean 'txt'?"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    write(tmp_path / "0.jsonl", make_rows(2))
    (tmp_path / name).write_bytes(content)
    message = listing_error(tmp_path)
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
def test_a_damaged_file_is_reported_and_the_others_are_listed(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedFileError, match=reason):
        list_shards(corpus(tmp_path), STORAGE)
    write(tmp_path / "z.jsonl", make_rows(2))
    listing = list_shards(corpus(tmp_path), STORAGE)
    assert [shard.name for shard in listing.shards] == ["z.jsonl"]
    ((damaged, cause),) = listing.damaged
    assert damaged == name and reason in cause and str(tmp_path / name) in cause
