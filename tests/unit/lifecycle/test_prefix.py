"""Invariant: an update of a prefix sees what lies under it, and takes the rest to be as the generation has it."""

from pathlib import Path

import pytest

from lorif_core.errors import UserError
from lorif_core.lifecycle.manifest import compare, known_files
from lorif_core.lifecycle.prefix import names_under, unchanged_outside
from lorif_core.spec import FileTag
from tests.unit.lifecycle.test_manifest import held, listing, shards


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
    assert names_under(corpus, prefix) == names


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
def test_a_prefix_that_names_nothing_is_refused(prefix: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        names_under("s3://b/corpus", prefix)
    assert "secret" not in str(caught.value)


def test_what_lies_outside_is_left_as_it_is() -> None:
    before = held(
        [*shards("in/same", "1", 1), *shards("in/changed", "1", 1), *shards("in/gone", "2", 1),
         *shards("out/changed", "1", 1), *shards("out/gone", "3", 1), *shards("out/moved", "77", 1)]
    )  # fmt: skip
    looked_at = [*shards("in/changed", "2", 1), *shards("in/new", "4", 1), *shards("in/moved", "77", 1)]
    others = [FileTag("in/same", "1", 10), FileTag("out/changed", "9", 10), FileTag("out/new", "5", 10)]
    seen = unchanged_outside(listing(looked_at, others), before, "in/")
    found = compare(before, seen, remove_vanished=True)
    assert found.new == ("in/moved", "in/new") and found.changed == ("in/changed",)
    assert found.moved == ("out/moved",) and found.vanished == ("in/gone",)
    assert found.shards == tuple(looked_at) and found.dropped_rows == 12
    assert {key.partition("[")[0] for _, key in found.kept} == {"in/same", "out/changed", "out/gone"}
    assert FileTag("in/same", "1", 10) in known_files(before, [])


def test_without_a_prefix_the_listing_is_what_it_was() -> None:
    before = held([*shards("a", "1", 1), *shards("gone", "2", 1)])
    whole = listing(shards("b", "1", 1), [FileTag("a", "1", 10)])
    assert unchanged_outside(whole, before, "") == whole
