"""Invariant: a folder of `save_to_disk` gives the rows of its dataset, as its own index file names them.

If this breaks, rows of a former `map` are indexed as if the model had been trained on them. Most tests write the
files in the layout of Hugging Face datasets; the last one compares that layout with what the library writes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lorif_core.corpus.files import COMPANION
from lorif_core.corpus.saved_datasets import LEFT_OVER, OTHER_SPLIT
from lorif_core.corpus.shards import Listing, list_shards
from lorif_core.errors import DamagedFileError
from tests.unit.corpus.corpus_files import STORAGE, corpus, listing_error, make_rows, read_all, write


def save_dataset(folder: Path, parts: Sequence[int], **state: Any) -> None:
    """Arrow streams, `state.json` and `dataset_info.json` as `Dataset.save_to_disk` writes them."""
    names = [f"data-{number:05}-of-{len(parts):05}.arrow" for number in range(len(parts))]
    for name, rows in zip(names, parts, strict=True):
        write(folder / "stream.arrow", make_rows(rows)).rename(folder / name)
    (folder / "dataset_info.json").write_text('{"citation": "", "description": "", "features": {}}')
    index = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "0ab1c2d3e4f56789",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
        **state,
    }
    (folder / "state.json").write_text(json.dumps(index, indent=2, sort_keys=True))


def leave_over(folder: Path) -> None:
    """What `map` and an interrupted run leave in the folder of a dataset."""
    for name in ("cache-1f0e2d3c4b5a6978.arrow", "tmp_x1y2z3.arrow", "data-00000-of-00009.arrow"):
        write(folder / "stream.arrow", make_rows(50)).rename(folder / name)
    (folder / "tmpabcdef").write_bytes(b"")


def listing_of(path: Path | str) -> Listing:
    return list_shards(corpus(path), STORAGE)


def rows_of(listing: Listing) -> int:
    return len(read_all(listing.shards))


@pytest.mark.parametrize("pattern", ["", "*.arrow", "**/*.arrow"])
def test_a_saved_dataset_is_read_without_left_overs(tmp_path: Path, pattern: str) -> None:
    save_dataset(tmp_path, [3, 4])
    leave_over(tmp_path)
    listing = listing_of(tmp_path / pattern)
    assert rows_of(listing) == 7 and len(listing.files) == 2
    counts = {group.reason: group.files for group in listing.notes.unread}
    assert counts[LEFT_OVER] == 3
    if not pattern:
        assert counts == {LEFT_OVER: 3, COMPANION: 2, "files without an ending": 1}


def test_a_dict_of_datasets_is_read_split_by_split(tmp_path: Path) -> None:
    for split in ("train", "test", "old"):
        save_dataset(tmp_path / split, [2, 2])
        leave_over(tmp_path / split)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    write(tmp_path / "more" / "a.jsonl", make_rows(1))  # no saved dataset
    message = listing_error(tmp_path)
    assert "DatasetDict with the splits test, train" in message and f"{tmp_path}/train" in message
    assert f"{tmp_path}/*/*.arrow" in message
    listing = listing_of(tmp_path / "*" / "*.arrow")
    assert rows_of(listing) == 8 and {file.name.split("/")[0] for file in listing.files} == {"test", "train"}
    assert {group.reason: group.files for group in listing.notes.unread}[OTHER_SPLIT] == 5
    assert rows_of(listing_of(tmp_path / "train")) == 4
    assert rows_of(listing_of(tmp_path / "old")) == 4
    assert listing.damaged == ()


def test_a_file_that_is_named_alone_is_read(tmp_path: Path) -> None:
    save_dataset(tmp_path, [3])
    leave_over(tmp_path)
    assert rows_of(listing_of(tmp_path / "tmp_x1y2z3.arrow")) == 50


def test_missing_files_and_splits_are_damage(tmp_path: Path) -> None:
    save_dataset(tmp_path / "train", [2, 2])
    (tmp_path / "train" / "data-00001-of-00002.arrow").unlink()
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    listing = listing_of(tmp_path)
    assert rows_of(listing) == 2
    assert [name for name, _ in listing.damaged] == ["train/data-00001-of-00002.arrow"]
    (tmp_path / "train" / "state.json").unlink()
    assert [name for name, _ in listing_of(tmp_path).damaged] == ["train/state.json"]
    assert all("is missing" in cause for _, cause in listing.damaged)
    save_dataset(tmp_path / "train", [2, 2])
    (tmp_path / "train" / "data-00001-of-00002.arrow").unlink()
    assert listing_of(tmp_path / "train" / "*00000*.arrow").damaged == ()


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "_indices_data_files"),
        ({"_data_files": [{"filename": "../elsewhere.arrow"}]}, "is not a file of its folder"),
        ({"_data_files": [{}]}, "is not a file of its folder"),
        (None, "is not valid JSON"),
    ],
)
def test_an_index_file_that_cannot_be_followed_is_damage(
    tmp_path: Path, state: dict[str, Any] | None, reason: str
) -> None:
    save_dataset(tmp_path / "a", [2], **(state or {}))
    if state is None:
        (tmp_path / "a" / "state.json").write_text('{"_data_files": [')
    with pytest.raises(DamagedFileError, match=reason):
        listing_of(tmp_path)
    write(tmp_path / "b.jsonl", make_rows(5))
    listing = listing_of(tmp_path)
    assert rows_of(listing) == 5 and [name for name, _ in listing.damaged] == ["a/state.json"]


def test_the_state_of_another_program_has_no_say(tmp_path: Path) -> None:
    write(tmp_path / "file.arrow", make_rows(3))
    for content in ('{"step": 7}', "[1, 2]"):
        (tmp_path / "state.json").write_text(content)
        assert rows_of(listing_of(tmp_path)) == 3


def test_what_datasets_itself_saves_is_read(tmp_path: Path) -> None:
    """Its own writer, with two shards, the cache files of a `map`, and rows that were selected."""
    datasets = pytest.importorskip("datasets")
    rows = make_rows(7)
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "one", num_shards=2)
    loaded = datasets.load_from_disk(str(tmp_path / "one"))
    loaded.map(lambda row: {"text": row["text"].upper()})  # leaves a cache file in the folder
    listing = listing_of(tmp_path / "one")
    assert [record["text"] for _, record in read_all(listing.shards)] == [row["text"] for row in rows]
    splits = datasets.DatasetDict({"train": saved.select(range(1, 4)), "test": saved})
    splits.save_to_disk(tmp_path / "dict")
    assert "DatasetDict with the splits test, train" in listing_error(tmp_path / "dict")
    assert [record["text"] for _, record in read_all(listing_of(tmp_path / "dict" / "train").shards)] == [
        row["text"] for row in rows[1:4]
    ]
