"""Every way of asking agrees with the scores, for indexes of whatever parts."""

from typing import Any

import numpy as np
import pytest

from lorif_core.errors import UserError
from lorif_core.search.index import Index


def check_agreement(index: Index, queries: list[object]) -> None:
    """Tokens, layers, totals, selection and normalised scores follow from plain scores and self-influence."""
    ids, scores = index.scores(queries)  # type: ignore[arg-type]
    chosen = [0, len(ids) // 2, len(ids) - 1]
    names = [ids[place] for place in chosen]
    for query, expected in zip(queries, scores, strict=True):
        for contributions in (index.token_scores, index.layer_scores):
            _, found = contributions(query, names)  # type: ignore[arg-type]
            np.testing.assert_allclose(
                found.sum(axis=0), expected[chosen], rtol=1e-3, atol=1e-4 * np.abs(found).sum()
            )
    check_resident(index, queries)
    check_two_stage(index, queries)
    totals = index.totals(queries, by="checkpoint").to_pydict()  # type: ignore[arg-type]
    assert sum(totals["rows"]) == scores.size
    np.testing.assert_allclose(sum(totals["positive"]), scores[scores > 0].sum(), rtol=1e-4)

    found_ids, own = zip(*index.self_influence(), strict=True)
    assert [name for block in found_ids for name in block] == ids
    _, cosine = index.scores(queries, normalise="cosine")  # type: ignore[arg-type]
    undone, start = cosine * np.sqrt(np.concatenate(own)), 0
    for part in index.parts:  # a number per query and checkpoint is left of the division
        rows = slice(start, start + part.part.rows)
        ratio = np.median(undone[:, rows] / scores[:, rows], axis=1, keepdims=True)
        tolerance = 1e-4 * np.abs(undone[:, rows]).max()
        np.testing.assert_allclose(undone[:, rows], ratio * scores[:, rows], rtol=1e-3, atol=tolerance)
        start += part.part.rows
    (batch, *others) = index.select(queries, 1.0, normalise="cosine")  # type: ignore[arg-type]
    selected = np.concatenate([one.column("score").to_numpy() for one in (batch, *others)])
    np.testing.assert_allclose(selected, cosine.mean(axis=0), rtol=1e-3, atol=1e-5)


def check_resident(index: Index, queries: list[object]) -> None:
    """Codes in memory answer as those that are streamed, whichever rows are asked and whatever goes with them."""
    kept = Index(index.store, index.generation)
    assert all(part.keep_resident(2**30) for part in kept.parts)
    assert kept.resident_rows == index.generation.rows
    for where in (None, "tokens > 20"):
        terms: dict[str, Any] = {"where": where, "normalise": "none" if where is None else "cosine"}
        (ids, scores), (other_ids, others) = (one.scores(queries, **terms) for one in (index, kept))  # type: ignore[arg-type]
        assert ids == other_ids
        np.testing.assert_allclose(scores, others, rtol=1e-4, atol=1e-5 * np.abs(scores).max())
        first, second = (
            one.totals(queries, "shard", **terms).sort_by([("query_id", "ascending"), ("shard", "ascending")])  # type: ignore[arg-type]
            for one in (index, kept)
        )
        assert first.column("rows").equals(second.column("rows"))
        np.testing.assert_allclose(first["positive"].to_numpy(), second["positive"].to_numpy(), rtol=1e-3)


def check_two_stage(index: Index, queries: list[object]) -> None:
    """Where all rows are candidates it finds what an exact search finds; scores are exact; dense is refused."""
    if index.parts[-1].layout.code.kind == "dense":
        with pytest.raises(UserError, match="dense"):
            index.top_k(queries, 3, two_stage=True)  # type: ignore[arg-type]
        return
    rows, (ids, scores_QN) = index.generation.rows, index.scores(queries)  # type: ignore[arg-type]
    for where in (None, "tokens > 20"):
        exact, all_of = (
            index.top_k(queries, rows, where=where, two_stage=two_stage)  # type: ignore[arg-type]
            for two_stage in (False, True)
        )
        for found, expected in zip(all_of, exact, strict=True):
            by_id = {hit.example_id: hit.score for hit in expected.proponents}
            assert {hit.example_id for hit in found.proponents} == by_id.keys()
            largest = max(map(abs, by_id.values()))
            for hit in found.proponents:
                assert abs(hit.score - by_id[hit.example_id]) < 1e-4 * largest
    few = index.top_k(queries, 3, two_stage=True)  # type: ignore[arg-type]
    for top, scores in zip(few, scores_QN, strict=True):
        by_id = dict(zip(ids, scores, strict=True))
        for hits in (top.proponents, top.opponents):
            assert len(hits) == 3
            np.testing.assert_allclose(
                [hit.score for hit in hits], [by_id[hit.example_id] for hit in hits], rtol=1e-3,
                atol=1e-4 * np.abs(scores).max(),
            )  # fmt: skip
