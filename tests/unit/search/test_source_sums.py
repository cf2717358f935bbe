"""Invariant: the scan for the strongest rows adds up scores by file as a scan of its own would."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lorif_core.search import part_reader, source_sums
from lorif_core.search.index import Index
from lorif_core.search.options import SearchOptions
from lorif_core.search.queries import parse_queries
from lorif_core.search.source_sums import SourceSums
from tests.small_index import WORDS, build_small, save_model

QUERIES = parse_queries(["the cat sees", {"prompt": "a ", "completion": "red dog"}, "an old tree"])
SHOWN = 2
SUMS = ["rows", "tokens", "positive", "negative", "share_of_tokens", "share_of_positive"]


def build(folder: Path, **sections: Any) -> Index:
    """An index of three files of unequal size."""
    (folder / "corpus").mkdir()
    for number, name in enumerate("abc"):
        texts = [f"{name} {WORDS[row % 9]} {WORDS[row * 5 % 11]} {row}" for row in range(9 + 8 * number)]
        (folder / "corpus" / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts)
        )
    corpus = {"uri": str(folder / "corpus"), "max_length": 48}
    return build_small(folder / "index", save_model(folder / "model"), corpus, **sections)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    code = {"kind": "cut", "rank": 2, "dtype": "sign"}
    return build(tmp_path_factory.mktemp("sources"), preset="compact", code=code)


def scanned(index: Index, options: SearchOptions, shown: int = SHOWN) -> SourceSums:
    """The sums of a scan whose fragments are divided among workers, as those of a batch are."""
    (part,) = index.parts
    prepared = part.prepare(index.fold(index.encode(QUERIES), options)[0])
    joined = SourceSums(shown)
    for fragment in part.fragments():
        sums = SourceSums(joined.queries)
        part.top_k(prepared, 2, [fragment], options=options, sums=sums)
        joined.merge(sums)
    return joined


def by_file(table: pa.Table) -> dict[str, list[float]]:
    return {row["uri"]: [row[name] for name in SUMS] for row in table.to_pylist()}


def check(index: Index, sums: SourceSums, options: SearchOptions, tolerance: float) -> None:
    tables = sums.tables([query.query_id for query in QUERIES[:SHOWN]])
    assert tables is not None and len(tables) == SHOWN
    for query, table in zip(QUERIES, tables, strict=False):
        expected = by_file(index.totals([query], where=options.where, normalise=options.normalise))
        assert by_file(table).keys() == expected.keys() and len(expected) > 1
        for uri, row in by_file(table).items():
            np.testing.assert_allclose(row, expected[uri], rtol=tolerance)


@pytest.mark.parametrize("where", [None, "tokens > 12"])
@pytest.mark.parametrize("normalise", ["none", "cosine"])
def test_sums_of_a_scan_equal_the_totals(index: Index, where: str | None, normalise: str) -> None:
    options = index.options(where, normalise)
    check(index, scanned(index, options), options, 1e-4)


def test_rows_that_a_prefilter_excludes_are_added_by_its_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_reader, "is_prefilter_worthwhile", lambda *_: True)
    index = build(tmp_path, preset="quality")
    (part,) = index.parts
    options = index.options()
    assert part.prepare(index.fold(index.encode(QUERIES))[0]).prefilter is not None
    check(index, scanned(index, options), options, 0.1)


def test_there_is_nothing_to_compare_in_one_file_or_in_very_many(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scanned(index, index.options("contains(uri, 'a.jsonl')")).tables(["0", "1"]) is None
    assert scanned(index, index.options(), shown=0).tables([]) is None
    monkeypatch.setattr(source_sums, "MOST_FILES", 2)
    assert scanned(index, index.options()).tables(["0", "1"]) is None
