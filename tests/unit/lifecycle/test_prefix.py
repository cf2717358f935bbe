"""Invariant: an update of a prefix compares the files under it, and treats all other files as unchanged."""

from pathlib import Path

import pytest

from lorif_core.errors import UserError
from lorif_core.lifecycle.manifest import compare, known_files
from lorif_core.lifecycle.prefix import relative_prefix, restrict_to_prefix
from lorif_core.spec import FileTag
from tests.unit.lifecycle.test_manifest import inventory_of, listing, shards


@pytest.mark.parametrize(
    ("corpus", "prefix", "names"),
    [
        ("s3://b/corpus", None, ""),
        ("s3://b/corpus", "s3://b/corpus/2026/11/", "2026/11/"),
        ("s3://b/corpus/", "s3://b/corpus/2026-1", "2026-1"),
        ("s3://b/corpus", "s3://b/corpus/", ""),
        ("s3://b/corpus", "s3://b/", ""),
        ("s3://b/corpus/*/part-?.parquet", "s3://b/corpus/new/", "new/"),
        ("s3://b/corpus/all.jsonl", "s3://b/corpus/", ""),
        ("/data/corpus", "file:///data/corpus/new/", "new/"),
        ("/data/x/../corpus", "/data/corpus/a.jsonl", "a.jsonl"),
        ("corpus", f"{Path('corpus').absolute()}/new/", "new/"),
    ],
)
def test_a_prefix_is_the_beginning_of_names(corpus: str, prefix: str | None, names: str) -> None:
    assert relative_prefix(corpus, prefix) == names


@pytest.mark.parametrize(
    ("prefix", "sentence"),
    [
        ("", "the prefix is empty: the payload of an event corpus.shard.arrived must have one"),
        ("  ", "the prefix is empty"),
        ("None", "the prefix None is not in the corpus s3://b/corpus; name a folder or file of it"),
        ("s3://b/queries/", "not in the corpus"),
        ("s3://b/corpus-2/", "not in the corpus"),
        ("s3://key:secret@b/corpus/", "carries credentials"),
    ],
)
def test_a_prefix_outside_the_corpus_is_refused(prefix: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        relative_prefix("s3://b/corpus", prefix)
    assert "secret" not in str(caught.value)


def test_files_outside_the_prefix_count_as_unchanged() -> None:
    before = inventory_of(
        [*shards("in/same", "1", 1), *shards("in/changed", "1", 1), *shards("in/gone", "2", 1),
         *shards("out/changed", "1", 1), *shards("out/gone", "3", 1), *shards("out/moved", "77", 1)]
    )  # fmt: skip
    read = [*shards("in/changed", "2", 1), *shards("in/new", "4", 1), *shards("in/moved", "77", 1)]
    others = [FileTag("in/same", "1", 10), FileTag("out/changed", "9", 10), FileTag("out/new", "5", 10)]
    restricted = restrict_to_prefix(listing(read, others), before, "in/")
    changes = compare(before, restricted, remove_vanished=True)
    assert changes.new == ("in/moved", "in/new") and changes.changed == ("in/changed",)
    assert changes.moved == ("out/moved",) and changes.vanished == ("in/gone",)
    assert changes.shards == tuple(read) and changes.dropped_rows == 12
    assert {key.partition("[")[0] for _, key in changes.retained} == {"in/same", "out/changed", "out/gone"}
    assert FileTag("in/same", "1", 10) in known_files(before, [])


def test_without_a_prefix_the_listing_is_unchanged() -> None:
    before = inventory_of([*shards("a", "1", 1), *shards("gone", "2", 1)])
    corpus = listing(shards("b", "1", 1), [FileTag("a", "1", 10)])
    assert restrict_to_prefix(corpus, before, "") == corpus
