"""Invariant: what a span of a passage adds to the tokens of an answer adds up over spans and over tokens."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from lorif_core.errors import UserError
from lorif_core.search.index import Index
from tests.small_index import build_small, save_model

QUERY = {"prompt": "the dog ", "completion": "likes the tree"}
OTHER = {"prompt": "the dog ", "completion": "sees λ"}
QUERIES: dict[str, Any] = {"single": QUERY, "contrast": {"contrast": [QUERY, OTHER]}}
TEXTS = ["the old dog likes the red tree", "a bird runs and then it sees the cat", "Zürich likes the λ tree"]


@pytest.fixture(scope="module", params=["compact", "quality"])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in 4 * TEXTS))
    corpus = {"uri": str(folder / "c.jsonl"), "max_length": 24}
    sections: dict[str, Any] = {"preset": request.param}
    if request.param == "compact":
        sections["code"] = {"kind": "cut", "rank": 2, "dtype": "sign"}
    return build_small(folder / "index", save_model(folder / "model", bos=True), corpus, **sections)


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("kind", QUERIES)
def test_spans_add_up_to_the_tokens_of_the_answer_and_tokens_to_the_span(
    index: Index, kind: str, row: int
) -> None:
    name, query = f"c.jsonl#{row}", QUERIES[kind]
    tokens, by_token = index.token_scores(query, [name])
    shares = index.training_shares(query, [name]).tokens[name]
    cuts = [0, 5, 11, shares[-1].end]
    pairs = [index.pair_shares(query, name, start, end) for start, end in pairwise(cuts)]
    largest = np.abs([token.share for token in shares]).sum()
    assert all(pair.tokens == tuple(tokens) for pair in pairs)
    np.testing.assert_allclose(sum(pair.shares for pair in pairs), by_token[:, 0], atol=1e-4 * largest)
    for pair, (start, end) in zip(pairs, pairwise(cuts), strict=True):
        expected = sum(token.share for token in shares if token.start < end and start < token.end)
        assert pair.shares.sum() == pytest.approx(expected, abs=1e-4 * largest)


def test_the_tokens_of_a_contrast_are_those_of_both_queries_with_opposite_signs(index: Index) -> None:
    names = [f"c.jsonl#{row}" for row in range(3)]
    (first, plus), (second, minus) = (index.token_scores(query, names) for query in (QUERY, OTHER))
    tokens, by_token = index.token_scores(QUERIES["contrast"], names)
    assert tokens == [*first, " minus ", *second]
    zero = np.zeros((1, len(names)), np.float32)
    np.testing.assert_allclose(by_token, np.concatenate([plus, zero, -minus]), rtol=1e-4, atol=1e-4)
    ids, scores = index.scores(QUERIES["contrast"])
    expected = [scores[0, ids.index(name)] for name in names]
    largest = np.abs(by_token).sum(axis=0)
    assert (np.abs(by_token.sum(axis=0) - expected) < 1e-4 * largest).all()


def test_a_span_without_tokens_is_refused(index: Index) -> None:
    for start, end in ((40, 50), (3, 3), (100, 200)):
        with pytest.raises(UserError, match=r"no token of 'c\.jsonl#1' that was indexed"):
            index.pair_shares(QUERY, "c.jsonl#1", start, end)  # its last words are beyond max_length
    with pytest.raises(UserError, match="has no example 'x'"):
        index.pair_shares(QUERY, "x", 0, 5)
    with pytest.raises(UserError, match="consists of several queries"):
        index.pair_shares({"group": [QUERY]}, "c.jsonl#1", 0, 5)
