"""The changes between two acts: former ranks, counts and costs match the acts, and the costs add up."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from flows.tables import change_lines
from lorif_core.report.block_answers import Attribution
from lorif_core.report.changes import Change, PartDrift, QueryChange, RankedProponent, Recorded, StageCost
from lorif_core.search.queries import Query
from lorif_core.search.top_k import Scored, TopK
from lorif_core.tables.generation import Generation
from tasks.demo.acts import Act, compare, stage_costs


def answer(query_id: str, loss: float, strongest_first: str) -> Attribution:
    hits = [Scored(float(-rank), example_id) for rank, example_id in enumerate(strongest_first)]
    return Attribution(Query(query_id, "text"), loss, TopK(len(hits), hits, hits[::-1]))


def make_act(tokens: int, seconds: float, timings: Mapping[str, float]) -> Act:
    generation = Generation(
        generation=1, created_at=datetime.now(UTC), factors_version=1, curvature_version=1, spec="s",
        checkpoint="c", rows=1, tokens=tokens, parts_json="[]", coverage_json="{}", skipped_json="[]",
        timings_json=json.dumps(timings),
    )  # fmt: skip
    return Act(generation, [answer("q", 1.0, "abc")], {**timings, "plan, publish": seconds}, 1.0)


def test_proponents_are_new_or_have_their_former_rank() -> None:
    """A former rank counts all rows of the former generation, not only the strongest ones."""
    before = [answer("one", 3.0, "abcdefg"), answer("two", 4.0, "gfedcba")]
    after = [answer("one", 2.0, "axgbycdefz"), answer("two", 5.0, "gfedcbaxyz")]
    one, two = compare(before, after, 4)
    assert one.proponents == (
        RankedProponent("a", 1),
        RankedProponent("x", None),
        RankedProponent("g", 7),
        RankedProponent("b", 2),
    )
    assert (one.new, one.risen, one.stayed) == (1, 1, 2)
    assert (two.new, two.risen, two.stayed) == (0, 0, 4)
    assert (one.loss_before, one.loss_after, two.loss_before, two.loss_after) == (3.0, 2.0, 4.0, 5.0)


def test_answers_to_different_queries_are_not_compared() -> None:
    with pytest.raises(ValueError, match="shorter"):
        list(compare([answer("one", 1.0, "ab")], [], 1))


def test_first_k_keeps_both_ends_of_the_ranking() -> None:
    (first,) = make_act(1, 1.0, {}).first(2)
    assert [hit.example_id for hit in first.top.proponents] == ["a", "b"]
    assert [hit.example_id for hit in first.top.opponents] == ["c", "b"]


def test_costs_add_up_to_the_seconds_of_the_acts() -> None:
    """Stages that grow with the data are scaled by the tokens; calibration and planning are not."""
    before = make_act(100, 18.0, {"calibrate": 10.0, "index": 20.0, "curvature": 2.0})
    after = make_act(
        150, 13.0, {"record: rows": 3.0, "calibrate": 11.0, "drift": 6.0, "index": 9.0, "curvature": 1.0}
    )
    costs = {cost.stage: cost for cost in stage_costs(before, after)}
    assert sum(cost.update for cost in costs.values()) == after.build_seconds == 43.0
    assert costs["record: rows"] == StageCost("record: rows", 3.0, 0.0)
    assert costs["index"] == StageCost("index", 9.0, 30.0)
    assert costs["curvature"] == StageCost("curvature", 1.0, 3.0)
    assert costs["drift"] == StageCost("drift", 6.0, 0.0)
    assert costs["calibrate"] == StageCost("calibrate", 11.0, 10.0)
    assert costs["plan, publish"] == StageCost("plan, publish", 13.0, 18.0)


@pytest.mark.parametrize(("seconds", "saved"), [(3.0, 0.75), (15.0, -0.25)])
def test_a_recording_is_compared_with_the_passes_of_a_build(seconds: float, saved: float) -> None:
    """The start of workers and publishing are no passes over the corpus."""
    costs = (
        StageCost("record: metric", 1.0, 0.0), StageCost("record: rows", seconds - 1.0, 0.0),
        StageCost("start", 0.0, 50.0), StageCost("calibrate", 9.0, 4.0), StageCost("index", 0.0, 8.0),
        StageCost("plan, publish", 7.0, 60.0),
    )  # fmt: skip
    change = Change(1, 10, 14, 4, 0, 1, 2, (), costs, (), Recorded(2, 14, 3, 9))
    summary = json.loads(json.dumps(change.to_dict()))
    assert summary["recorded"] == {
        "generation": 2, "rows": 14, "first_step": 3, "last_step": 9, "recording_seconds": seconds,
        "pass_seconds_estimated": 12.0, "saved": saved,
    }  # fmt: skip
    text = "\n".join(change_lines(summary))
    assert f"14 rows were recorded while the model trained on, which took {seconds} s more" in text
    assert f"saved {saved:.0%}" in text and "the update took" not in text


def test_a_change_without_a_recording_mentions_none() -> None:
    assert "recorded" not in Change(1, 1, 1, 0, 0, 1, 1, (), (), ()).to_dict()


@pytest.mark.parametrize("correlation", [0.5, None])
def test_a_change_is_reported_as_json_and_as_text(correlation: float | None) -> None:
    change = Change(
        former_generation=1, rows_before=10, rows_after=14, rows_added=4, rows_refreshed=0, bytes_before=1024,
        bytes_after=2048,
        older_rows=(PartDrift("old", 10, 5, 0.75, correlation, "refreshed", 1.5),),
        costs=(StageCost("index", 2.0, 3.0), StageCost("drift", 1.5, 0.0)),
        queries=(QueryChange("q", 3.0, 2.0, (RankedProponent("x", None), RankedProponent("g", 7))),),
    )  # fmt: skip
    summary = json.loads(json.dumps(change.to_dict()))
    assert summary["queries"][0]["proponents"] == [
        {"example_id": "x", "rank": 1, "former_rank": None}, {"example_id": "g", "rank": 2, "former_rank": 7},
    ]  # fmt: skip
    assert summary["update_seconds"] == {"index": 2.0, "drift": 1.5, "all": 3.5}
    assert summary["rebuild_seconds_estimated"]["all"] == 3.0
    assert summary["proponents"] == {"new_data": 1, "risen": 1, "stayed": 0}
    text = "\n".join(change_lines(summary))
    for fact in ("14 rows (10 before)", "cosine 0.750", "computed again", "3.5 s", "1 from new data, 1 risen"):
        assert fact in text
    assert ("0.500" in text) == (correlation is not None)
