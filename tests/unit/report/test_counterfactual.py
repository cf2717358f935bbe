"""The report shows trainings without some passages: a bar and an interval per method, a rise per answer."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorif_core.report.answer_sections import QuerySection
from lorif_core.report.counterfactual import Counterfactual, Difference, Removal
from lorif_core.report.page import Report, Storage, render
from lorif_core.spec import Coverage

MINUS = "\N{MINUS SIGN}"
ATTACK = "<script>alert('x')</script>"
REMOVALS = (
    Removal("the 20 strongest", 131, (0.9, 0.3), (False, True), 0.6, 0.31, 0.88),
    Removal("20 at random", 148, (0.02, -0.07), (True, True), -0.025, -0.07, 0.02),
)
TEST = Counterfactual(
    20,
    866,
    ("own-with", "own-for"),
    (1.25, 0.875),
    REMOVALS,
    Difference(0.625, 0.37, 0.88),
    "Two answers are few.",
)


def report_of(test: Counterfactual | None, note: str | None = None) -> Report:
    queries = tuple(
        QuerySection(name, "prompt", "completion", 3.0, (), (), note=note)
        for name in ("typed", "own-for", "own-with")
    )
    return Report(
        title="t", generation=1, checkpoint="c", spec="s", created_at="now", curvature="none", queries=queries,
        layers=(), coverage=Coverage(1, 1, ()), storage=Storage(1.0, 1.0, 866, 866), timings=(), skipped=(),
        counterfactual=test,
    )  # fmt: skip


def section(page: str) -> str:
    return page.partition('<h2 id="counterfactual">')[2].partition("</section>")[0]


def test_every_method_has_its_passages_mean_and_interval() -> None:
    rows = re.findall(r"<tr.*?</tr>", section(render(report_of(TEST))), re.DOTALL)
    ours, chance = rows[1:3]
    assert "131 of 866" in ours and "+0.60 <small>[+0.31, +0.88]</small>" in ours
    assert "1 of 2</td>" in ours and "2 of 2</td>" in chance
    assert "148 of 866" in chance and f"{MINUS}0.03 <small>[{MINUS}0.07, +0.02]</small>" in chance


def test_every_answer_has_a_rise_per_method_and_a_link_to_its_section() -> None:
    """The order of the page differs from that of the trainings, and one question has no training."""
    rows = re.findall(r"<tr.*?</tr>", section(render(report_of(TEST))), re.DOTALL)[4:]
    shown = [re.findall(r'href="(#query-\d)"|class="n">([^<]*)<', row) for row in rows]
    assert [[link or number for link, number in row] for row in shown] == [
        ["#query-2", "0.8750", "+0.30 ", f"{MINUS}0.07 "],
        ["#query-3", "1.250", "+0.90", "+0.02 "],
    ]
    assert [row.count("still given") for row in rows] == [2, 1]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 0.5, "Leaving out the 20 strongest did more than leaving out 20 at random"),
        (-0.5, -0.1, "Leaving out the 20 strongest did less than leaving out 20 at random"),
        (-0.1, 0.1, "The answers are too few to tell the 20 strongest from 20 at random"),
    ],
)
def test_the_page_says_what_the_difference_means_even_if_another_method_is_better(
    low: float, high: float, words: str
) -> None:
    page = section(render(report_of(replace(TEST, difference=Difference((low + high) / 2, low, high)))))
    assert f"<strong>{words}</strong>" in page and TEST.remark in page


def test_the_summary_is_what_json_gives_back() -> None:
    summary = TEST.to_dict()
    assert json.loads(json.dumps(summary)) == summary
    assert [removal["rises"] for removal in summary["removals"]] == [[0.9, 0.3], [0.02, -0.07]]
    assert [removal["given"] for removal in summary["removals"]] == [[False, True], [True, True]]
    assert summary["difference"] == {"mean": 0.625, "low": 0.37, "high": 0.88}


def test_a_report_without_trainings_does_not_mention_them() -> None:
    assert "Trained again" not in render(report_of(None))


@pytest.mark.parametrize("note", [None, "The model's own answer.", ATTACK])
def test_a_note_on_a_query_is_shown_as_text(note: str | None) -> None:
    page = render(report_of(TEST, note)).partition("<body>")[2]
    assert page.count("own answer.") == (3 if note and "own" in note else 0)
    assert "<script>alert" not in page


def test_markup_in_the_name_of_a_method_is_escaped() -> None:
    page = render(report_of(replace(TEST, removals=(replace(REMOVALS[0], method=ATTACK), REMOVALS[1]))))
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


NUMBERS = st.floats(-5, 5)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=4))
def test_bars_share_an_axis_and_start_at_zero(triples: list[tuple[float, float, float]]) -> None:
    removals = tuple(Removal("m", 1, (), (), mean, low, high) for low, mean, high in map(sorted, triples))
    test = replace(TEST, removals=removals)
    bars = [test.bar(removal) for removal in removals]
    assert len({bar.zero for bar in bars}) == 1
    for bar, removal in zip(bars, removals, strict=True):
        assert bar.left >= -1e-9 and bar.left + bar.width <= 100 + 1e-9
        assert -1e-9 <= bar.low <= bar.high <= 100 + 1e-9
        end = bar.left if removal.mean < 0 else bar.left + bar.width
        other = bar.left + bar.width if removal.mean < 0 else bar.left
        assert other == pytest.approx(bar.zero)
        assert bar.low - 1e-9 <= end <= bar.high + 1e-9
