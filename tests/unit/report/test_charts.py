"""Drawings show what their data say: bars for all rows, marks for the shown ones, cells by layer and passage."""

from dataclasses import replace

import pytest

from lorif_core.report.answer_sections import Hit, QuerySection, Source
from lorif_core.report.charts import HISTOGRAM, histogram, layer_map, passage_map
from lorif_core.report.page import render_answer
from lorif_core.search.distribution import Distribution
from lorif_core.search.shares import LayerShare


def hit(rank: int, name: str, score: float, **more: object) -> Hit:
    return Hit(rank, name, score, f"text {name}", Source("a.jsonl", rank), **more)  # type: ignore[arg-type]


QUERY = QuerySection(
    "q", "p", "c", 1.0, (hit(1, "a", 8.0), hit(2, "b", 4.0)), (hit(1, "z", -4.0),),
    distribution=Distribution((-4.0, -2.0, 0.0, 4.0, 8.0), (1, 0, 99, 2), "exact"),
)  # fmt: skip


def test_a_histogram_has_a_bar_for_each_bin_with_rows_and_marks_where_the_scores_are() -> None:
    chart = histogram(QUERY)
    assert chart is not None and chart.rows == 102
    assert [bar.height > 0 for bar in chart.bars] == [True, False, True, True]
    assert max(bar.height for bar in chart.bars) == HISTOGRAM["bottom"] - HISTOGRAM["top"] == chart.bars[2].height
    left, right = HISTOGRAM["left"], HISTOGRAM["right"]
    assert [(mark.side, mark.x) for mark in chart.marks] == [
        ("pro", right), ("pro", left + (right - left) * 8 / 12), ("con", left),
    ]  # fmt: skip
    assert chart.zero_x == left + (right - left) / 3


@pytest.mark.parametrize("edges", [(0.0, 0.0), (5.0, 6.0)])
def test_a_histogram_of_equal_or_far_scores_stays_within_its_frame(edges: tuple[float, float]) -> None:
    chart = histogram(replace(QUERY, distribution=Distribution(edges, (7,), "exact")))
    assert chart is not None
    for mark in chart.marks:
        assert HISTOGRAM["left"] <= mark.x <= HISTOGRAM["right"]
    assert histogram(replace(QUERY, distribution=Distribution((), (), "exact"))) is None


def test_layers_are_added_by_kind_and_block_and_a_missing_layer_has_no_cell() -> None:
    layers = [
        LayerShare("h.0.attn.q", 0, "attention", -1.0), LayerShare("h.0.attn.o", 0, "attention", -1.0),
        LayerShare("h.1.mlp", 1, "mlp", -2.5), LayerShare("h.0.mlp", 0, "mlp", 0.5),
        LayerShare("head", None, "other", 0.0),
    ]  # fmt: skip
    drawn = layer_map(layers)
    assert drawn is not None and drawn.blocks == ("0", "1", "other")
    cells = {kind: [cell and (cell.share, cell.level) for cell in row] for kind, _, row in drawn.rows}
    assert cells == {
        "attention": [(-0.5, -3), None, None],
        "mlp": [(0.125, 1), (-0.625, -4), None],
        "other": [None, None, (0.0, 0)],
    }
    assert [(kind, total) for kind, total, _ in drawn.rows] == [("attention", -0.5), ("mlp", -0.5), ("other", 0.0)]
    assert layer_map(()) is None and layer_map([LayerShare("a", 0, "mlp", 0.0)]) is None


def test_the_map_of_passages_puts_the_most_shared_first() -> None:
    other = replace(QUERY, proponents=(hit(1, "b", 2.0), hit(2, "c", 1.0)), opponents=(hit(1, "a", -2.0),))
    drawn = passage_map([QUERY, other])
    assert [(column.example_id, column.questions) for column in drawn.columns] == [
        ("a", 2),
        ("b", 2),
        ("c", 1),
        ("z", 1),
    ]
    assert [(cell.example_id, cell.share, cell.side) for cell in drawn.cells[1]] == [
        ("a", -1.0, "con"), ("b", 1.0, "pro"), ("c", 0.5, "pro"),
    ]  # fmt: skip


def test_the_map_of_passages_is_bounded() -> None:
    queries = [
        replace(QUERY, proponents=(hit(1, f"only {i}", 1.0),), opponents=(hit(1, "all", -1.0),)) for i in range(99)
    ]
    drawn = passage_map(queries)
    assert len(drawn.columns) == 40 and drawn.columns[0].example_id == "all" and drawn.left_out == 60


def test_an_answer_shows_percentile_hubs_layers_and_distribution() -> None:
    layers = (LayerShare("h.0.mlp", 0, "mlp", 8.0),)
    first = replace(QUERY.proponents[0], also_under=4, layers=layers)
    distribution = Distribution((-4.0, 8.0), (5000,), "exact")
    page = render_answer(
        replace(QUERY, proponents=(first,), layers=layers, distribution=distribution), relative=False
    )
    for fact in (
        "higher than 99.98\N{NO-BREAK SPACE}%",
        "lower than 99.98\N{NO-BREAK SPACE}%",
        "also under 4 other questions",
        "Histogram of 5000 scores",
        '<table class="layers">',
    ):
        assert fact in page, fact
