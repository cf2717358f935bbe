"""Invariant: files of equal content are told, in a folder as in an object store, and all are read."""

import os
from pathlib import Path

import pytest

from lorif_core.config import StorageConfig
from lorif_core.corpus.copies import find_copies
from lorif_core.corpus.shards import list_shards
from lorif_core.storage.filesystem import walk_files
from tasks.demo.object_store import MotoServer
from tests.unit.corpus.corpus_files import STORAGE, corpus, listing_error, make_rows, to_lines, write


def test_copies_are_counted_and_read(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", make_rows(2000))
    content = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "b.jsonl").write_bytes(content)
    (tmp_path / "c").mkdir()
    os.link(tmp_path / "a.jsonl", tmp_path / "c" / "d.jsonl")
    (tmp_path / "link.jsonl").symlink_to("b.jsonl")
    for name, text in (("e.jsonl", b"text 1000"), ("f.jsonl", b"text 1"), ("g.jsonl", b"text 1999")):
        (tmp_path / name).write_bytes(content.replace(text, text[::-1], 1))  # the same size
    listing = list_shards(corpus(tmp_path), STORAGE)
    assert sum(shard.rows for shard in listing.shards) == 7 * 2000
    assert listing.notes.copies == 3
    assert listing.notes.first_copies == (("a.jsonl", "b.jsonl", "c/d.jsonl"),)
    assert "3 (a.jsonl = b.jsonl = c/d.jsonl)" in listing.notes.sentences()[0]


def test_ids_that_repeat_in_a_copy_are_explained(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, make_rows(2))
    assert "these files have the same content: remove one" in listing_error(tmp_path, id="id")


def test_only_groups_with_a_new_file_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, make_rows(2))
    known = frozenset(list_shards(corpus(tmp_path), STORAGE).files)
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "x"}\n')
    monkeypatch.setattr("lorif_core.corpus.copies._ends", lambda file: pytest.fail(f"{file.name} was read"))
    assert list_shards(corpus(tmp_path), STORAGE, known).notes.copies == 0


def test_empty_files_are_no_copies(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(b"")
    files = walk_files(str(tmp_path), STORAGE).files
    assert find_copies(files, {file.name for file in files}) == ()


def test_objects_of_equal_tag_and_size_are_copies(moto: MotoServer) -> None:
    client = moto.client()
    client.create_bucket(Bucket="copies")
    for key, body in (("a.jsonl", make_rows(3)), ("x/b.jsonl", make_rows(3)), ("c.json", make_rows(4))):
        client.put_object(Bucket="copies", Key=f"corpus/{key}", Body=to_lines(body))
    for key in ("notes.csv", "_SUCCESS", "x/", "empty.jsonl"):
        client.put_object(Bucket="copies", Key=f"corpus/{key}", Body=b"")
    storage = StorageConfig(endpoint=moto.url, allow_http=True)
    listing = list_shards(corpus("s3://copies/corpus"), storage)
    assert [shard.name for shard in listing.shards] == ["a.jsonl", "c.json", "x/b.jsonl"]
    assert listing.notes.first_copies == (("a.jsonl", "x/b.jsonl"),)
    assert sorted(group.first for group in listing.notes.unread) == [
        ("_SUCCESS",),
        ("empty.jsonl",),
        ("notes.csv",),
    ]
