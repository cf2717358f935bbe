"""Invariant: a local file has moved only if a new file of its time and size has its content, too."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.corpus.shards import Listing, list_shards
from lorif_core.lifecycle.index_shard import Tokenising, read_examples
from lorif_core.lifecycle.manifest import Changes, compare, known_files
from lorif_core.lifecycle.moved_files import find_not_moved
from lorif_core.lifecycle.prefix import restrict_to_prefix
from lorif_core.tables.receipts import Receipt
from lorif_core.tables.store import Store
from tests.unit.tables.small_store import SPEC, new_store, rows

TOKENS = Tokenising(None, 100)
TIME = 1_700_000_000


def write(path: Path, first: int) -> None:
    """Four records of two-digit tokens; all files have one size and one time."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"ids": [first + row, 10, 11]}) + "\n" for row in range(4)))
    os.utime(path, (TIME, TIME))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name, first in {"a": 20, "b": 30}.items():
        write(tmp_path / "corpus" / f"{name}.jsonl", first)
    return tmp_path / "corpus"


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> Config:
    """The config of an index that has both files."""
    store = new_store(tmp_path)
    section = {"uri": str(corpus), "tokens": "ids", "max_length": 16}
    config = parse_config({"index": store.uri, "model": {"path": "m"}, "corpus": section})
    for shard in list_shards(config.corpus, config.storage).shards:
        made = replace(rows(0), examples=list(read_examples(shard, config, TOKENS)))
        fragments = store.rows.write(iter([made]), shard, SPEC)
        store.rows.commit_wave([Receipt(shard.key, tuple(fragments), 4, 12, 12, (), 0.0)], store.rows.version())
    return config


def changes_of(config: Config, prefix: str = "") -> Changes:
    """The changes that an update finds."""
    store = Store(config.index)
    inventory = store.rows.inventory()
    listing: Listing = list_shards(config.corpus, config.storage, known_files(inventory, []), prefix)
    not_moved = find_not_moved(config, listing, inventory, store, TOKENS)
    listing = restrict_to_prefix(replace(listing, not_moved=not_moved), inventory, prefix)
    return compare(inventory, listing, remove_vanished=False)


def test_a_renamed_file_has_moved(config: Config, corpus: Path) -> None:
    (corpus / "a.jsonl").rename(corpus / "c.jsonl")
    write(corpus / "d.jsonl", 40)
    changes = changes_of(config)
    assert changes.moved == ("a.jsonl",) and changes.vanished == () and changes.dropped_rows == 4
    assert changes.new == ("c.jsonl", "d.jsonl")


@pytest.mark.parametrize("last_differs", [False, True])
def test_rows_of_a_vanished_file_stay_if_another_of_its_time_and_size_arrives(
    config: Config, corpus: Path, last_differs: bool
) -> None:
    content = (corpus / "a.jsonl").read_text()
    (corpus / "a.jsonl").unlink()
    write(corpus / "c.jsonl", 40)
    if last_differs:
        (corpus / "c.jsonl").write_text(content.replace("[23", "[93"))
        os.utime(corpus / "c.jsonl", (TIME, TIME))
    changes = changes_of(config)
    assert changes.moved == () and changes.vanished == ("a.jsonl",)
    assert changes.dropped_rows == 0 and changes.new == ("c.jsonl",)


def test_a_file_that_cannot_be_compared_counts_as_vanished(config: Config, corpus: Path) -> None:
    size = (corpus / "a.jsonl").stat().st_size
    (corpus / "a.jsonl").unlink()
    (corpus / "c.jsonl").write_text((json.dumps({"ids": [1000] * 3}) + "\n").ljust(size, "\n"))
    os.utime(corpus / "c.jsonl", (TIME, TIME))
    changes = changes_of(config)
    assert changes.vanished == ("a.jsonl",) and changes.dropped_rows == 0


@pytest.mark.parametrize("is_same", [True, False])
def test_a_file_moves_into_a_prefix_only_with_its_content(config: Config, corpus: Path, is_same: bool) -> None:
    (corpus / "a.jsonl").unlink()
    write(corpus / "in" / "c.jsonl", 20 if is_same else 40)
    changes = changes_of(config, "in/")
    assert changes.moved == (("a.jsonl",) if is_same else ()) and changes.vanished == ()
    assert changes.dropped_rows == (4 if is_same else 0)
