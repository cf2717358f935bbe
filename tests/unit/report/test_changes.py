"""What changed between two acts: former ranks, counts and costs are those of the acts, and add up."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from flows.tables import change_lines
from lorif_core.report.block_answers import Attribution
from lorif_core.report.changes import Change, PartDrift, QueryChange, StageCost, Standing
from lorif_core.search.queries import Query
from lorif_core.search.top_k import Scored, TopK
from lorif_core.tables.generation import Generation
from tasks.demo.acts import Act, compare, stage_costs


def answer(query_id: str, loss: float, strongest_first: str) -> Attribution:
    hits = [Scored(float(-rank), example_id) for rank, example_id in enumerate(strongest_first)]
    return Attribution(Query(query_id, "text"), loss, TopK(len(hits), hits, hits[::-1]))


def made(tokens: int, seconds: float, timings: Mapping[str, float]) -> Act:
    generation = Generation(
        generation=1, created_at=datetime.now(UTC), factors_version=1, curvature_version=1, spec="s",
        checkpoint="c", rows=1, tokens=tokens, parts_json="[]", coverage_json="{}", skipped_json="[]",
        timings_json=json.dumps(timings),
    )  # fmt: skip
    return Act(generation, [answer("q", 1.0, "abc")], seconds, 1.0)


def test_proponents_are_new_or_have_the_rank_that_they_had() -> None:
    """A rank counts over all rows of then, not over the strongest ones only."""
    before = [answer("one", 3.0, "abcdefg"), answer("two", 4.0, "gfedcba")]
    after = [answer("one", 2.0, "axgbycdefz"), answer("two", 5.0, "gfedcbaxyz")]
    one, two = compare(before, after, 4)
    assert one.proponents == (Standing("a", 1), Standing("x", None), Standing("g", 7), Standing("b", 2))
    assert (one.new, one.risen, one.stayed) == (1, 1, 2)
    assert (two.new, two.risen, two.stayed) == (0, 0, 4)
    assert (one.loss_before, one.loss_after, two.loss_before, two.loss_after) == (3.0, 2.0, 4.0, 5.0)


def test_answers_to_different_queries_are_not_compared() -> None:
    with pytest.raises(ValueError, match="shorter"):
        list(compare([answer("one", 1.0, "ab")], [], 1))


def test_both_ends_of_a_ranking_are_cut_from_the_same_answer() -> None:
    (first,) = made(1, 1.0, {}).first(2)
    assert [hit.example_id for hit in first.top.proponents] == ["a", "b"]
    assert [hit.example_id for hit in first.top.opponents] == ["c", "b"]


def test_costs_add_up_to_the_seconds_of_the_acts() -> None:
    """What grows with the data is scaled by the tokens; a sample of a fixed size, and planning, are not."""
    before = made(100, 50.0, {"calibrate": 10.0, "index": 20.0, "curvature": 2.0})
    after = made(150, 40.0, {"calibrate": 11.0, "drift": 6.0, "index": 9.0, "curvature": 1.0})
    costs = {cost.stage: cost for cost in stage_costs(before, after)}
    assert sum(cost.update for cost in costs.values()) == 40.0
    assert costs["index"] == StageCost("index", 9.0, 30.0)
    assert costs["curvature"] == StageCost("curvature", 1.0, 3.0)
    assert costs["drift"] == StageCost("drift", 6.0, 0.0)
    assert costs["calibrate"] == StageCost("calibrate", 11.0, 10.0)
    assert costs["plan, publish"] == StageCost("plan, publish", 13.0, 18.0)


@pytest.mark.parametrize("correlation", [0.5, None])
def test_a_change_is_told_in_json_and_in_words(correlation: float | None) -> None:
    change = Change(
        former=1, rows_before=10, rows_after=14, rows_added=4, rows_refreshed=0, bytes_before=1024,
        bytes_after=2048,
        older_rows=(PartDrift("old", 10, 5, 0.75, correlation, "refreshed", 1.5),),
        costs=(StageCost("index", 2.0, 3.0), StageCost("drift", 1.5, 0.0)),
        queries=(QueryChange("q", 3.0, 2.0, (Standing("x", None), Standing("g", 7))),),
    )  # fmt: skip
    told = json.loads(json.dumps(change.to_dict()))
    assert told["queries"][0]["proponents"] == [
        {"example_id": "x", "rank": 1, "former_rank": None}, {"example_id": "g", "rank": 2, "former_rank": 7},
    ]  # fmt: skip
    assert told["update_seconds"] == {"index": 2.0, "drift": 1.5, "all": 3.5}
    assert told["rebuild_seconds_estimated"]["all"] == 3.0
    assert told["proponents"] == {"new_data": 1, "risen": 1, "stayed": 0}
    words = "\n".join(change_lines(told))
    for fact in ("14 rows (10 before)", "cosine 0.750", "computed anew", "3.5 s", "1 from new data, 1 risen"):
        assert fact in words
    assert ("0.500" in words) == (correlation is not None)
