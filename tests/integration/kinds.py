"""Checks that all kinds of results of an index agree with its scores, for any parts and codes."""

from typing import Any

import numpy as np
import pytest

from lorif_core.errors import UserError
from lorif_core.search.index import Index


def check_agreement(index: Index, queries: list[object]) -> None:
    """Tokens of both sides, layers, totals, selections and normalised scores agree with plain scores."""
    ids, scores = index.scores(queries)  # type: ignore[arg-type]
    rows = [0, len(ids) // 2, len(ids) - 1]
    row_ids = [ids[row] for row in rows]
    for query, expected in zip(queries, scores, strict=True):
        for contributions in (index.token_scores, index.layer_scores):
            _, parts = contributions(query, row_ids)  # type: ignore[arg-type]
            tolerance = 1e-4 * np.abs(parts).sum()
            np.testing.assert_allclose(parts.sum(axis=0), expected[rows], rtol=1e-3, atol=tolerance)
        training = index.training_shares(query, row_ids)  # type: ignore[arg-type]
        assert training.reason is None
        for row, row_id in zip(rows, row_ids, strict=True):
            for shares in (training.tokens[row_id], training.layers[row_id]):
                assert sum(share.share for share in shares) == pytest.approx(expected[row], rel=1e-2)
    check_resident(index, queries)
    check_two_stage(index, queries)
    totals = index.totals(queries, by="checkpoint").to_pydict()  # type: ignore[arg-type]
    assert sum(totals["rows"]) == scores.size
    np.testing.assert_allclose(sum(totals["positive"]), scores[scores > 0].sum(), rtol=1e-4)

    block_ids, self_influence = zip(*index.self_influence(), strict=True)
    assert [example_id for block in block_ids for example_id in block] == ids
    _, cosine = index.scores(queries, normalise="cosine")  # type: ignore[arg-type]
    undone, start = cosine * np.sqrt(np.concatenate(self_influence)), 0
    for part in index.parts:  # one factor per query and checkpoint remains
        part_rows = slice(start, start + part.part.rows)
        part_undone, part_scores = undone[:, part_rows], scores[:, part_rows]
        ratio = np.median(part_undone / part_scores, axis=1, keepdims=True)
        tolerance = 1e-4 * np.abs(part_undone).max()
        np.testing.assert_allclose(part_undone, ratio * part_scores, rtol=1e-3, atol=tolerance)
        start += part.part.rows
    batches = list(index.select(queries, 1.0, normalise="cosine"))  # type: ignore[arg-type]
    selected = np.concatenate([batch.column("score").to_numpy() for batch in batches])
    np.testing.assert_allclose(selected, cosine.mean(axis=0), rtol=1e-3, atol=1e-5)


def check_resident(index: Index, queries: list[object]) -> None:
    """Resident codes give the same results as streamed codes, with and without conditions and extra columns."""
    resident = Index(index.store, index.generation)
    assert all(part.keep_resident(2**30) for part in resident.parts)
    assert resident.resident_rows == index.generation.rows
    for where in (None, "tokens > 20"):
        options: dict[str, Any] = {"where": where, "normalise": "none" if where is None else "cosine"}
        ids, scores = index.scores(queries, **options)  # type: ignore[arg-type]
        resident_ids, resident_scores = resident.scores(queries, **options)  # type: ignore[arg-type]
        assert ids == resident_ids
        np.testing.assert_allclose(scores, resident_scores, rtol=1e-4, atol=1e-5 * np.abs(scores).max())
        order = [("query_id", "ascending"), ("shard", "ascending")]
        streamed, in_memory = (
            opened.totals(queries, "shard", **options).sort_by(order)  # type: ignore[arg-type]
            for opened in (index, resident)
        )
        assert streamed.column("rows").equals(in_memory.column("rows"))
        np.testing.assert_allclose(streamed["positive"].to_numpy(), in_memory["positive"].to_numpy(), rtol=1e-3)


def check_two_stage(index: Index, queries: list[object]) -> None:
    """With all rows as candidates it equals an exact search; scores are exact; dense codes are refused."""
    if index.parts[-1].layout.code.kind == "dense":
        with pytest.raises(UserError, match="dense"):
            index.top_k(queries, 3, two_stage=True)  # type: ignore[arg-type]
        return
    rows, (ids, scores_QN) = index.generation.rows, index.scores(queries)  # type: ignore[arg-type]
    for where in (None, "tokens > 20"):
        exact, two_stage_tops = (
            index.top_k(queries, rows, where=where, two_stage=two_stage)  # type: ignore[arg-type]
            for two_stage in (False, True)
        )
        for top, expected in zip(two_stage_tops, exact, strict=True):
            by_id = {hit.example_id: hit.score for hit in expected.proponents}
            assert {hit.example_id for hit in top.proponents} == by_id.keys()
            largest = max(map(abs, by_id.values()))
            for hit in top.proponents:
                assert abs(hit.score - by_id[hit.example_id]) < 1e-4 * largest
    short_tops = index.top_k(queries, 3, two_stage=True)  # type: ignore[arg-type]
    for top, scores in zip(short_tops, scores_QN, strict=True):
        by_id = dict(zip(ids, scores, strict=True))
        for hits in (top.proponents, top.opponents):
            assert len(hits) == 3
            np.testing.assert_allclose(
                [hit.score for hit in hits], [by_id[hit.example_id] for hit in hits], rtol=1e-3,
                atol=1e-4 * np.abs(scores).max(),
            )  # fmt: skip
