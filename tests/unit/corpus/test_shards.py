"""Invariant: the shards of a corpus contain each row once, in order, with its row number, and reading a file that
changed after the listing is an error.

If this breaks, scores are attributed to the wrong rows.
"""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorif_core.corpus.columns import needed_columns, optional_columns
from lorif_core.corpus.file_listing import SHARD_ROWS
from lorif_core.corpus.shards import list_shards, read_rows
from lorif_core.errors import CorpusChangedError
from tests.unit.corpus.corpus_files import (
    FORMATS,
    STORAGE,
    corpus,
    listing_error,
    make_rows,
    read_all,
    to_lines,
    write,
)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=st.lists(st.integers(1, 1100), min_size=1, max_size=4))
def test_the_rows_of_all_shards_are_the_file(tmp_path: Path, name: str, groups: list[int]) -> None:
    rows = make_rows(sum(groups))
    shards = list_shards(corpus(write(tmp_path / name, rows, groups)), STORAGE).shards
    assert read_all(shards) == [(i, {"text": row["text"]}) for i, row in enumerate(rows)]
    assert all(shard.rows <= SHARD_ROWS for shard in shards)
    assert len({shard.key for shard in shards}) == len(shards)
    assert all((shard.offset is not None) == (name == "a.jsonl") for shard in shards)
    if name == "a.parquet":
        borders = {sum(groups[:i]) for i in range(1, len(groups))}
        starts = {shard.start for shard in shards}
        assert borders <= starts
    # a shard can be read alone
    middle = shards[len(shards) // 2]
    assert [row for row, _ in read_rows(middle, ["id"], STORAGE)] == list(
        range(middle.start, middle.start + middle.rows)
    )


def test_shards_are_contiguous(tmp_path: Path) -> None:
    shards = list_shards(corpus(write(tmp_path / "a.jsonl", make_rows(1300))), STORAGE).shards
    assert [shard.rows for shard in shards] == [512, 512, 276]
    assert all(after.start == before.start + before.rows for before, after in pairwise(shards))


def test_folders_globs_and_names(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/1.parquet", "_tmp/x.jsonl", "b/.y.jsonl", "b/c/3.jsonl.gz"):
        write(tmp_path / name, make_rows(2))
    for name in ("a.JSONL", "notes.csv"):
        (tmp_path / name).write_bytes(to_lines(make_rows(2)))
    shards = list_shards(corpus(tmp_path), STORAGE).shards
    assert [shard.name for shard in shards] == ["a.JSONL", "b/1.parquet", "b/2.jsonl", "b/c/3.jsonl.gz"]
    assert [shard.uri for shard in shards] == [str(tmp_path / shard.name) for shard in shards]
    assert shards == list_shards(corpus(f"file://{tmp_path}/"), STORAGE).shards
    for pattern, names in (
        ("b/*.jsonl", ["2.jsonl"]),
        ("*/*.parquet", ["b/1.parquet"]),
        ("b/**/*.jsonl*", ["2.jsonl", "c/3.jsonl.gz"]),
        ("b/.y.jsonl", [".y.jsonl"]),
    ):
        assert [shard.name for shard in list_shards(corpus(tmp_path / pattern), STORAGE).shards] == names


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d" / "a.jsonl", make_rows(3))
    monkeypatch.chdir(tmp_path)
    (shard,) = list_shards(corpus("d"), STORAGE).shards
    assert (shard.uri, shard.name) == (str(tmp_path / "d" / "a.jsonl"), "a.jsonl")


def test_a_corpus_without_rows_is_refused(tmp_path: Path) -> None:
    assert listing_error(tmp_path / "none").endswith("none does not exist")
    assert "none.jsonl does not exist" in listing_error(tmp_path / "none.jsonl")
    supported = "name files that end in .parquet, .jsonl, .jsonl.gz, .jsonl.zst, .arrow"
    (tmp_path / "a.csv").write_text("text\n")
    for path in (tmp_path, tmp_path / "a.csv", tmp_path / "*.jsonl"):
        assert supported in listing_error(path)
    write(tmp_path / "a.jsonl", [], lines=b"\n\n")
    assert "has no rows in its 1 files" in listing_error(tmp_path)


# ---- columns -------------------------------------------------------------------------------------------------


def test_needed_columns_by_precedence() -> None:
    all_columns = {"text": "t", "prompt": "p", "completion": "c", "tokens": "i", "labels": "l", "id": "k"}
    assert needed_columns(corpus("x", **all_columns)) == ["i", "l", "k"]
    assert needed_columns(corpus("x", **all_columns, mask="m")) == ["i", "l", "m", "k"]
    assert needed_columns(corpus("x", prompt="p", completion="c")) == ["p", "c"]
    assert needed_columns(corpus("x", id="text")) == ["text"]


@pytest.mark.parametrize("name", FORMATS)
def test_tokens_and_only_the_requested_columns_are_read(tmp_path: Path, name: str) -> None:
    rows = [{"ids": [1, 2, i], "id": f"k{i}", "text": "t"} for i in range(4)]
    config = corpus(write(tmp_path / name, rows), tokens="ids", id="id")
    shards = list_shards(config, STORAGE).shards
    assert read_all(shards, needed_columns(config)) == [(i, {"ids": [1, 2, i], "id": f"k{i}"}) for i in range(4)]


@pytest.mark.parametrize("name", FORMATS)
def test_a_mask_that_is_not_configured_is_read_where_there_is_one(tmp_path: Path, name: str) -> None:
    """A row that it masks is refused later; without tokens no mask is of interest."""
    config = corpus(str(tmp_path / name), tokens="ids")
    for mask in ({}, {"attention_mask": [0, 1]}):
        write(tmp_path / name, [{"ids": [1, 2], **mask}])
        (shard,) = list_shards(config, STORAGE).shards
        read = list(read_rows(shard, needed_columns(config), STORAGE, optional_columns(config)))
        assert read == [(0, {"ids": [1, 2], **mask})]
    assert optional_columns(corpus("x")) == optional_columns(corpus("x", tokens="i", mask="m")) == []


@pytest.mark.parametrize("name", FORMATS)
def test_columns_that_are_missing_or_of_another_type_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"txet": "a", "number": 1, "list": [1]}])
    message = listing_error(path)
    assert f"{path} has no column 'text'; it has txet, number, list; did you mean 'txet'?" == message
    assert "must contain strings, but contains integer" in listing_error(path, text="number")
    assert "must contain lists of integers, but contains text" in listing_error(path, tokens="txet")
    assert "must contain strings or integers" in listing_error(path, text="txet", id="list")
    assert "no column 'completion'" in listing_error(path, prompt="txet", completion="completion")


# ---- ids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("last", "reason"),
    [(0, "the id '0' (column 'id') is in row 0 of {a} and again in row 2 of {b}"), (None, "row 2 of {b}")],
)
def test_ids_that_repeat_or_are_null_are_refused(tmp_path: Path, name: str, last: int | None, reason: str) -> None:
    a = write(tmp_path / "0.jsonl", [{"id": str(i), "text": "t"} for i in range(5)])
    b = write(tmp_path / "1" / name, [{"id": i, "text": "t"} for i in (7, 8, last)])
    assert reason.format(a=a, b=b) in listing_error(tmp_path, id="id")


def test_unique_ids_pass(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", make_rows(1100))
    assert sum(shard.rows for shard in list_shards(corpus(tmp_path, id="id"), STORAGE).shards) == 1100


@pytest.mark.parametrize("value", [1.5, True, ["x"]])
def test_an_id_of_another_type_is_refused(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path / "a.jsonl", [{"id": 1, "text": "t"}, {"id": value, "text": "t"}])
    assert f"the id in row 1 of {path} (column 'id') is {value!r}" in listing_error(path, id="id")


# ---- files that change ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_changed_after_the_listing_is_detected(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, make_rows(5))
    (listed,) = list_shards(corpus(path), STORAGE).shards
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    with pytest.raises(CorpusChangedError) as caught:
        read_all([listed])
    (current,) = list_shards(corpus(path), STORAGE).shards
    assert all(part in str(caught.value) for part in (str(path), listed.etag, current.etag))
    path.unlink()
    with pytest.raises(CorpusChangedError, match="was removed after it was listed"):
        read_all([current])


def test_a_file_that_changes_during_the_read_is_detected(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", make_rows(5))
    (shard,) = list_shards(corpus(path), STORAGE).shards
    reader = read_rows(shard, ["text"], STORAGE)
    next(reader)
    write(path, make_rows(6))
    with pytest.raises(CorpusChangedError, match=r"a\.jsonl"):
        list(reader)
