"""Invariant: with kept listings a corpus is listed as without, and a version of a file is read for it once."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zstandard import compress

from lorif_core.config import CorpusConfig
from lorif_core.corpus import file_listing, kept_listings, shards
from lorif_core.corpus.file_listing import FileListing, list_file
from lorif_core.corpus.kept_listings import KeptListings, remove_listings
from lorif_core.corpus.shards import Listing, list_shards
from lorif_core.errors import LorifError, UserError
from lorif_core.storage.filesystem import SourceFile
from lorif_core.storage.objects import Objects
from tests.unit.corpus.corpus_files import FORMATS, STORAGE, corpus, make_rows, write

OPEN = SourceFile.open


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_listings, "_LEAST_BYTES", 1)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were opened."""
    names: list[str] = []

    def noted(file: SourceFile, *arguments: Any) -> Any:
        names.append(file.name)
        return OPEN(file, *arguments)

    monkeypatch.setattr(SourceFile, "open", noted)
    return names


def listed(config: CorpusConfig, index: Path, **options: Any) -> Listing:
    return list_shards(config, STORAGE, kept=KeptListings(str(index), STORAGE, config), **options)


def objects_of(index: Path) -> list[Path]:
    return sorted((index / "_lorif" / "listing").glob("*"))


def equal(first: Listing, second: Listing) -> bool:
    """Whether two listings have the same contents, ids included."""
    ids = first.ids is None if second.ids is None else first.ids is not None
    if first.ids is not None and second.ids is not None:
        ids = len(first.ids) == len(second.ids) == len(first.ids.common(second.ids))
    return ids and replace(first, ids=None) == replace(second, ids=None)


@pytest.mark.parametrize("column", [None, "id"])
def test_files_are_read_again_only_if_they_changed(tmp_path: Path, opened: list[str], column: str | None) -> None:
    for number, name in enumerate(FORMATS):
        rows = [{**row, "id": f"{name} {row['id']}"} for row in make_rows(600 + number)]
        write(tmp_path / "corpus" / name, rows, (100, 500 + number))
    config, index = corpus(tmp_path / "corpus", id=column), tmp_path / "index"
    plain = list_shards(config, STORAGE)
    assert equal(listed(config, index), plain)
    opened.clear()
    assert equal(listed(config, index), plain)
    assert set(opened) == ({"a.parquet"} if column is None else set()), "its count is in its footer"
    write(tmp_path / "corpus" / "a.jsonl.gz", [{"id": f"new {i}", "text": "t"} for i in range(20)])
    opened.clear()
    changed = listed(config, index)
    assert set(opened) - {"a.parquet"} == {"a.jsonl.gz"} and equal(changed, list_shards(config, STORAGE))
    opened.clear()
    known = frozenset(file for file in plain.files if file.name == "a.jsonl")
    assert all(shard.name != "a.jsonl" for shard in listed(config, index, known=known).shards)
    assert set(opened) <= {"a.parquet"}


@settings(max_examples=25, deadline=None)
@given(
    lines=st.lists(
        st.sampled_from(["", " ", '{"id": %d, "text": "t"}', '{"id": "a %d", "text": ""}']), max_size=1500
    ),
    name=st.sampled_from(["a.jsonl", "a.jsonl.zst", "a.json"]),
    has_ids=st.booleans(),
)
def test_a_kept_listing_equals_the_listing(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], name: str, has_ids: bool
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    text = "\n".join(line % number if "%" in line else line for number, line in enumerate(lines))
    path = folder / name
    path.write_bytes(compress(text.encode()) if name.endswith(".zst") else text.encode())
    config = corpus(path, id="id" if has_ids else None)
    try:
        plain = list_shards(config, STORAGE)
    except UserError as error:
        with pytest.raises(UserError) as caught:
            listed(config, folder / "index")
        assert str(caught.value) == str(error)
        return
    assert all(equal(listed(config, folder / "index"), plain) for _ in range(2))


def test_other_columns_are_checked_again(tmp_path: Path) -> None:
    path, index = write(tmp_path / "a.jsonl", make_rows(5)), tmp_path / "index"
    assert listed(corpus(path), index).shards and len(objects_of(index)) == 1
    with pytest.raises(UserError, match="no column 'prose'"):
        listed(corpus(path, text="prose"), index)
    assert len(listed(corpus(path, id="id"), index).ids or ()) == 5


@pytest.mark.parametrize(
    "harm", ["cut off", "empty", "a flipped bit", "of another file", "of another size of shards"]
)
def test_damaged_and_foreign_objects_are_replaced(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    config, index = corpus(write(tmp_path / "a.jsonl", make_rows(1100)), id="id"), tmp_path / "index"
    plain = listed(config, index)
    (kept,) = objects_of(index)
    content = kept.read_bytes()
    if harm == "of another file":
        other = tmp_path / "other"
        listed(corpus(write(tmp_path / "b.jsonl", make_rows(7)), id="id"), other)
        content = objects_of(other)[0].read_bytes()
    elif harm == "of another size of shards":
        for module in (kept_listings, file_listing):
            monkeypatch.setattr(module, "SHARD_ROWS", 100)
        plain = list_shards(config, STORAGE)
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        content = {"cut off": content[:-8], "empty": b"", "a flipped bit": flipped}[harm]
    kept.write_bytes(content)
    assert equal(listed(config, index), plain)
    opened.clear()
    assert equal(listed(config, index), plain) and opened == []


def test_repeated_ids_are_found_across_kept_and_new_files(tmp_path: Path) -> None:
    folder, index = tmp_path / "corpus", tmp_path / "index"
    config = corpus(folder, id="id")
    a = write(folder / "a.jsonl", [{"id": str(i), "text": "t"} for i in range(600)])
    listed(config, index)
    b = write(folder / "b.jsonl", [{"id": i, "text": "t"} for i in (700, 599)])
    message = f"the id '599' (column 'id') is in row 599 of {a} and again in row 1 of {b}; make ids unique"
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            listed(config, index)
        assert message in str(caught.value)


def test_an_index_that_cannot_be_read_or_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = corpus(write(tmp_path / "a.jsonl", make_rows(600)), id="id")
    (tmp_path / "file").write_text("")
    assert equal(listed(config, tmp_path / "file" / "index"), list_shards(config, STORAGE))
    tries = []

    def refuse(*_: Any) -> None:
        tries.append(1)
        raise LorifError("the store does not answer")

    monkeypatch.setattr(Objects, "get_bytes", refuse)
    monkeypatch.setattr(Objects, "put_bytes", refuse)
    assert equal(listed(config, tmp_path / "index"), list_shards(config, STORAGE))
    assert tries == [1], "each further attempt could take as long as all retries"


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, index = write(tmp_path / "a.jsonl", make_rows(5)), tmp_path / "index"

    def list_and_change(config: CorpusConfig, file: SourceFile) -> FileListing:
        listing = list_file(config, file)
        write(path, make_rows(6))
        return listing

    monkeypatch.setattr(shards, "list_file", list_and_change)
    listed(corpus(path), index)
    assert objects_of(index) == []


def test_small_files_and_files_with_counts_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, index = tmp_path / "corpus", tmp_path / "index"
    write(folder / "a.parquet", make_rows(600))
    listed(corpus(folder), index)
    monkeypatch.setattr(kept_listings, "_LEAST_BYTES", 2**18)
    write(folder / "b.jsonl", make_rows(600))
    listed(corpus(folder), index)
    assert not index.exists()


def test_listings_of_files_without_rows_are_removed(tmp_path: Path) -> None:
    folder, index = tmp_path / "corpus", tmp_path / "index"
    for name in ("a.jsonl", "b.jsonl"):
        write(folder / name, make_rows(5))
    listed(corpus(folder), index)
    before = objects_of(index)
    remove_listings(Objects(str(index), STORAGE), {"b.jsonl", "c.jsonl"})
    (left,) = objects_of(index)
    assert len(before) == 2 and b'"b.jsonl"' in left.read_bytes()


# ---- workers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", [None, "id"])
def test_workers_read_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str | None) -> None:
    for number, name in enumerate(FORMATS):
        rows = [{**row, "id": f"{name} {row['id']}"} for row in make_rows(600 + number)]
        write(tmp_path / "corpus" / name, rows)
    config, index = corpus(tmp_path / "corpus", id=column), tmp_path / "index"
    calls: list[list[str]] = []

    def on_workers(files: Sequence[SourceFile]) -> Generator[tuple[SourceFile, FileListing]]:
        calls.append([file.name for file in files])
        yield from ((file, list_file(config, file)) for file in reversed(files))

    plain = list_shards(config, STORAGE)
    assert equal(list_shards(config, STORAGE, on_workers=on_workers), plain) and calls == []
    for limit in ("_MOST_PARSED_HERE", "_MOST_COUNTED_HERE"):
        monkeypatch.setattr(shards, limit, 1000)
    assert equal(listed(config, index, on_workers=on_workers), plain)
    assert calls == [sorted({*FORMATS} - ({"a.parquet"} if column is None else set()))]
    assert equal(listed(config, index, on_workers=on_workers), plain) and len(calls) == 1, "all are kept now"
