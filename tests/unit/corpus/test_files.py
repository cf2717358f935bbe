"""Invariant: every file at the URI of a corpus is read, or named with the reason why it is not.

If this breaks, a part of the training data is missing from the index, and nobody is told.
"""

import gzip
import json
import os
from pathlib import Path

import pytest
import zstandard

from lorif_core.corpus.files import COMPANION, NO_ENDING
from lorif_core.corpus.notes import CorpusNotes, make_notes
from lorif_core.corpus.records import EMPTY
from lorif_core.corpus.shards import Listing, check_first_file, list_shards
from lorif_core.errors import DamagedFileError, UserError
from lorif_core.storage.filesystem import MATCHED_FOLDER, UnreadFile
from lorif_core.storage.local_files import BROKEN_LINK, FOLLOWED, FORBIDDEN, HIDDEN, LOOP, NOT_A_FILE
from tests.unit.corpus.corpus_files import STORAGE, corpus, listing_error, make_rows, read_all, to_lines, write

LINES = to_lines(make_rows(2))
COMPRESS = {".json": bytes, ".json.gz": gzip.compress, ".json.zst": zstandard.compress}


def listing_of(path: Path | str) -> Listing:
    return list_shards(corpus(path), STORAGE)


def names(listing: Listing) -> list[str]:
    return [shard.name for shard in listing.shards]


def reasons(listing: Listing) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {group.reason: (group.files, group.first) for group in listing.notes.unread}


# ---- endings and contents ------------------------------------------------------------------------------------


def test_every_file_is_read_or_named(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.jsonl", make_rows(2))
    for name in ("b.csv", "c.CSV", "d.txt.gz", "e", "f.jsonl.bz2", ".git/HEAD", "_tmp/x.jsonl", "a/.y.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINES)
    for name in ("README.md", ".gitattributes", "_SUCCESS", ".1.jsonl.crc", "dataset_info.json", "a/state.json"):
        (tmp_path / name).write_text("{}")
    for name, content in (
        ("0.jsonl", b""),
        ("1.jsonl", b"\n \r\n"),
        ("2.json", b""),
        ("3.jsonl.gz", gzip.compress(b"")),
    ):
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.jsonl")
    listing = listing_of(tmp_path)
    assert names(listing) == ["a/1.jsonl"]
    found = reasons(listing)
    assert found == {
        "files that end in .csv": (1, ("b.csv",)),
        "files that end in .CSV": (1, ("c.CSV",)),
        "files that end in .txt.gz": (1, ("d.txt.gz",)),
        "files that end in .jsonl.bz2": (1, ("f.jsonl.bz2",)),
        NO_ENDING: (1, ("e",)),
        HIDDEN: (3, (".git/HEAD", "_tmp/x.jsonl", "a/.y.jsonl")),
        COMPANION: (6, (".1.jsonl.crc", ".gitattributes", "README.md")),
        EMPTY: (4, ("0.jsonl", "1.jsonl", "2.json")),
        NOT_A_FILE: (1, ("pipe.jsonl",)),
    }
    everything = sum(len(files) for _, _, files in os.walk(tmp_path))
    assert sum(count for count, _ in found.values()) + len(listing.shards) == everything
    assert all(reason in " ".join(listing.notes.sentences()) for reason in found)


@pytest.mark.parametrize("ending", COMPRESS)
def test_json_lines_are_read_under_the_ending_of_json(tmp_path: Path, ending: str) -> None:
    """Dolma has .json.gz beside .jsonl.gz; half of a folder was lost."""
    write(tmp_path / "a.jsonl.gz", make_rows(2))
    (tmp_path / f"b{ending}").write_bytes(COMPRESS[ending](to_lines(make_rows(3))))
    listing = listing_of(tmp_path)
    assert names(listing) == ["a.jsonl.gz", f"b{ending}"] and len(read_all(listing.shards)) == 5
    assert listing.notes == CorpusNotes()
    assert names(listing_of(tmp_path / f"b{ending}")) == [f"b{ending}"]
    check_first_file(corpus(tmp_path / f"*{ending}"), STORAGE)


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (json.dumps(make_rows(2)), "not JSON lines"),
        (json.dumps(make_rows(1)[0], indent=2), "not JSON lines"),
        ('{"loss": 1.5, "step": 1}\n{"loss": 1.4, "step": 2}\n', "no column 'text'"),
        ("5\n", "not JSON lines"),
    ],
)
def test_other_json_is_named(tmp_path: Path, ending: str, content: str, reason: str) -> None:
    other = tmp_path / f"b{ending}"
    other.write_bytes(COMPRESS[ending](content.encode()))
    for path in (other, tmp_path):
        assert reason in listing_error(path) and other.name in listing_error(path)
        with pytest.raises(UserError, match=reason):
            check_first_file(corpus(path), STORAGE)
    write(tmp_path / "a.jsonl", make_rows(2))
    listing = listing_of(tmp_path)
    ((found, where),) = reasons(listing).items()
    assert names(listing) == ["a.jsonl"] and reason in found and where == (1, (other.name,))
    assert [file.name for file in listing.files] == ["a.jsonl"]


def test_compressed_json_that_is_cut_off_is_damaged(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", make_rows(2))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(LINES, mtime=0)[:-9])
    assert [name for name, _ in listing_of(tmp_path).damaged] == ["b.json.gz"]


def test_a_folder_that_a_pattern_matches_is_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b/c.jsonl", "b/d/e.jsonl"):
        write(tmp_path / name, make_rows(1))
    listing = listing_of(tmp_path / "*")
    assert names(listing) == ["a.jsonl"] and reasons(listing) == {MATCHED_FOLDER: (1, ("b",))}
    assert names(listing_of(tmp_path / "**")) == ["a.jsonl", "b/c.jsonl", "b/d/e.jsonl"]


# ---- links, names and permissions ----------------------------------------------------------------------------


def test_a_hub_cache_of_links_is_read(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "5f3a"
    for number, blob in enumerate(("aa", "bb")):
        write(tmp_path / "data.parquet", make_rows(2 + number)).rename(
            write(blobs / "x.jsonl", []).with_name(blob)
        )
        (snapshot / "data").mkdir(parents=True, exist_ok=True)
        (snapshot / "data" / f"{number}.parquet").symlink_to(f"../../../blobs/{blob}")
    (snapshot / "README.md").symlink_to("../../blobs/aa")
    listing = listing_of(snapshot)
    assert names(listing) == ["data/0.parquet", "data/1.parquet"] and len(read_all(listing.shards)) == 5
    assert names(listing_of(snapshot / "*" / "*.parquet")) == ["data/0.parquet", "data/1.parquet"]
    assert reasons(listing) == {COMPANION: (1, ("README.md",))}
    (shard,) = listing_of(snapshot / "data" / "0.parquet").shards
    assert shard.etag == listing.shards[0].etag


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    write(root / "a" / "1.jsonl", make_rows(1))
    write(tmp_path / "outside" / "deep" / "2.jsonl", make_rows(2))
    (root / "b").symlink_to(tmp_path / "outside")
    (root / "a" / "self").symlink_to(root / "a")
    (tmp_path / "outside" / "deep" / "back").symlink_to(root)
    (root / "circle").symlink_to(root / "circle")
    (root / "gone.jsonl").symlink_to(tmp_path / "gone")
    (root / ".hidden").symlink_to(tmp_path / "outside")
    listing = listing_of(root)
    assert names(listing) == ["a/1.jsonl", "b/deep/2.jsonl"]
    assert reasons(listing) == {
        LOOP: (2, ("a/self", "b/deep/back")),
        BROKEN_LINK: (2, ("circle", "gone.jsonl")),
        HIDDEN: (1, (".hidden",)),
    }
    linked = tmp_path / "link"
    linked.symlink_to(root)
    assert names(listing_of(linked)) == names(listing)
    assert names(listing_of(root / "**" / "*.jsonl")) == names(listing)


def test_crossing_links_do_not_multiply(tmp_path: Path) -> None:
    """Twenty folders with two links each to the next have 2^20 paths."""
    for number in range(20):
        write(tmp_path / "corpus" / f"{number:02}" / "x.jsonl", make_rows(1))
    for number in range(19):
        for name in ("l", "r"):
            (tmp_path / "corpus" / f"{number:02}" / name).symlink_to(tmp_path / "corpus" / f"{number + 1:02}")
    listing = listing_of(tmp_path / "corpus")
    assert len(listing.shards) <= 3 * 20 and reasons(listing)[FOLLOWED][0] > 0
    assert {f"{number:02}/x.jsonl" for number in range(20)} <= set(names(listing))


def test_a_name_that_is_not_utf8_is_damage_and_the_others_are_read(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", make_rows(2))
    for name in (b"caf\xe9.jsonl", b"caf\xe9.csv", b"d\xe9r/b.jsonl"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(LINES)
    listing = listing_of(tmp_path)
    assert names(listing) == ["a.jsonl"]
    assert [name for name, _ in listing.damaged] == [r"caf\xe9.jsonl", r"d\xe9r/b.jsonl"]
    assert all("is not UTF-8" in cause and "rename it" in cause for _, cause in listing.damaged)
    assert reasons(listing) == {"files that end in .csv": (1, (r"caf\xe9.csv",))}
    json.dumps(listing.notes.as_dict()).encode()
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DamagedFileError, match="is not UTF-8"):
        listing_of(tmp_path)


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", make_rows(2))
    write(tmp_path / "closed" / "b.jsonl", make_rows(2))
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # tests may run as root, who may list everything
    listing = listing_of(tmp_path)
    assert names(listing) == ["a.jsonl"] and reasons(listing) == {FORBIDDEN: (1, ("closed",))}
    assert "closed may not be read" in listing_error(tmp_path / "closed")


# ---- notes ---------------------------------------------------------------------------------------------------


def test_many_kinds_are_counted_in_few_lines() -> None:
    unread = [UnreadFile(f"{kind}/{number}", f"kind {kind}") for kind in range(50) for number in range(kind + 1)]
    notes = make_notes(unread, [("a", "b", "c", "d", "e"), ("f", "g")])
    assert sum(group.files for group in notes.unread) == len(unread) and len(notes.sentences()) <= 22
    assert notes.unread[0].files == 50 and notes.copies == 5
    assert CorpusNotes.from_dict(json.loads(json.dumps(notes.as_dict()))) == notes
    assert CorpusNotes().sentences() == []
