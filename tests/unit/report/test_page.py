"""The report shows all of its data, escapes all text, and loads nothing from elsewhere."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lorif_core.errors import LorifError
from lorif_core.formatting import format_bytes, format_percentile, format_score, format_seconds
from lorif_core.report.answer_sections import Hit, QuerySection, Source
from lorif_core.report.changes import Change, PartDrift, QueryChange, RankedProponent, Recorded, StageCost
from lorif_core.report.counterfactual import Counterfactual, Difference, Removal
from lorif_core.report.page import Report, Storage, render
from lorif_core.report.spectrum import LayerSection
from lorif_core.search.likelihood import Likelihood, words_of
from lorif_core.spec import Coverage, ProjectionSpec
from lorif_core.tables.generation import metric_words

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
ATTACK = "<script>alert('x')</script>"
PROPONENTS = tuple(
    Hit(i + 1, f"for/{i}", 12.5 / (i + 1), f"proponent text {i}", Source("train.jsonl", i)) for i in range(3)
)
OPPONENTS = (
    Hit(1, "while/1", -3.25, "opponent " + "word " * 400 + "the very end", Source("train.jsonl", 9)),
    Hit(2, "while/2", -1.5, None, Source("train.jsonl", 10)),
)


@pytest.fixture
def report() -> Report:
    return Report(
        title="What made the model say it",
        generation=3,
        checkpoint="demo-model@0123abcd",
        spec="89abcdef01234567",
        created_at="2026-01-02 03:04 UTC",
        curvature="woodbury, rank 4",
        queries=(
            QuerySection("loop-else", "When does else run? ", "When no break.", 7.25, PROPONENTS, OPPONENTS),
            QuerySection("plain", "A whole text.", None, 1e-7, PROPONENTS[:1], ()),
        ),
        layers=(
            LayerSection("h.0.attn", 128, 384, 8, 24, (9.0, 4.0, 0.0, 1e-30), 0.5, 0.875),
            LayerSection("h.0.mlp", 128, 512, 8, 32, (), 1.0, None),
            LayerSection("h.1.mlp", 128, 512, 8, 32, (2.0,), 1.0, None),
        ),
        coverage=Coverage(750, 1000, (("wte", 200), ("norms", 50))),
        storage=Storage(1234.0, 12340.0, 555, 555 * 1234),
        timings=(("Train the demo model", 61.2), ("Index", 0.25)),
        skipped=(("empty/1", "no scored token"),),
    )


@pytest.fixture
def change() -> Change:
    """The former generation ranked the second proponent 40th and did not have the third."""
    proponents = (RankedProponent("for/0", 1), RankedProponent("for/1", 40), RankedProponent("for/2", None))
    return Change(
        former_generation=2, rows_before=400, rows_after=555, rows_added=155, rows_refreshed=0,
        bytes_before=400 * 1234, bytes_after=555 * 1234,
        older_rows=(PartDrift("demo-model@old", 400, 128, 0.9375, 0.875, "follows", 4.5),),
        costs=(StageCost("index", 5.5, 61.25), StageCost("drift", 4.5, 0.0)),
        queries=(QueryChange("loop-else", 9.5, 7.25, proponents), QueryChange("plain", 1.0, 1e-7, proponents[:1])),
    )  # fmt: skip


def test_every_hit_and_score_is_shown(report: Report) -> None:
    page = render(report)
    for hit in (*PROPONENTS, *OPPONENTS):
        assert hit.example_id in page
        assert f"{hit.source.uri}, row {hit.source.row}" in page
        assert format_score(hit.score, 12.5) in page
        assert hit.text is None or hit.text in page
    for fact in (
        "75.0 %",
        "1,234",
        "12,340",
        "no scored token",
        "87.5 %",
        f"1.000 {TIMES} 10⁻⁷",
        "h.0.attn",
    ):
        assert fact in page
    assert page.count('<span class="completion">When no break.</span>') == 1


@pytest.mark.parametrize(
    "where", ["text", "prompt", "completion", "example_id", "source", "title", "layer", "query_id"]
)
def test_markup_in_user_text_is_escaped(report: Report, where: str) -> None:
    query, layer = report.queries[0], report.layers[0]
    if where in ("text", "example_id", "source"):
        changed = {where: Source(ATTACK, 0) if where == "source" else ATTACK}
        query = replace(query, proponents=(replace(PROPONENTS[0], **changed),))
    elif where == "layer":
        layer = replace(layer, name=f'"{ATTACK}')
    elif where != "title":
        query = replace(query, **{where: ATTACK})
    page = render(replace(report, title=ATTACK if where == "title" else "t", queries=(query,), layers=(layer,)))
    assert "<script>alert" not in page and page.count("<script") == 1
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page


def test_a_change_is_shown_with_its_facts(report: Report, change: Change) -> None:
    page = render(replace(report, change=change))
    for fact in (
        "What changed since generation 2", "400 before; 155 added", "0.9375", "0.8750", "128 of them",
        "keeps the old codes", "1 min 01 s", "10.0 s", "1 of 4", "1 risen", "2 were among",
    ):  # fmt: skip
        assert fact in page, fact
    refreshed = replace(change, older_rows=(replace(change.older_rows[0], decision="refreshed"),))
    assert "keeps the old codes" not in (page := render(replace(report, change=refreshed)))
    assert "computed again at the new checkpoint" in page


def test_a_proponent_is_marked_only_if_its_rank_changed(report: Report, change: Change) -> None:
    page = render(replace(report, change=change))
    queries = re.sub(
        '<section (class="overview"|aria-labelledby="change").*?</section>', "", page, flags=re.DOTALL
    )
    first, second, third = queries.split('<li class="hit')[1:4]
    assert "former-rank" not in first
    assert '<span class="former-rank">was rank 40</span>' in second
    assert '<span class="former-rank new">new data</span>' in third
    assert queries.count('class="former-rank') == 2, "neither opponents nor the other query are marked"


def test_a_report_without_a_change_does_not_mention_one(report: Report) -> None:
    body = render(report).partition("<body>")[2]
    assert "What changed" not in body and 'class="former-rank' not in body


@pytest.mark.parametrize("where", ["query", "checkpoint", "stage"])
def test_markup_in_a_change_is_escaped(report: Report, change: Change, where: str) -> None:
    if where == "query":
        change = replace(change, queries=(replace(change.queries[0], query_id=ATTACK),))
    elif where == "checkpoint":
        change = replace(change, older_rows=(replace(change.older_rows[0], checkpoint=ATTACK),))
    else:
        change = replace(change, costs=(StageCost(ATTACK, 1.0, 1.0),))
    page = render(replace(report, change=change))
    assert "<script>alert" not in page and page.count("<script") == 1
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page


def test_nothing_is_loaded_from_the_network(report: Report, change: Change) -> None:
    page = render(replace(report, change=change))
    assert not re.search(r"https?://|\bsrc\s*=|@import|url\(|<link|<iframe|\bstyle=|\son\w+=", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))


def test_identifiers_are_unique_and_links_have_targets(report: Report, change: Change) -> None:
    page = render(replace(report, change=change)).partition("<script")[0]
    identifiers = re.findall(r'\bid="([^"]*)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r'href="#([^"]*)"', page)) <= set(identifiers)


def test_bars_are_relative_to_the_largest_score_of_the_query(report: Report) -> None:
    widths = re.findall(r'<rect width="([\d.]+)"', render(report))
    assert widths[:5] == ["100.0", "50.0", "33.33", "26.0", "12.0"]


def test_empty_parts_still_render(report: Report) -> None:
    empty = replace(
        report,
        queries=(
            QuerySection("q", "p", None, 0.0, (), ()),
            QuerySection("z", "p", None, 0.0, (Hit(1, "i", 0.0, "", Source("", 0)),), ()),
        ),
        layers=(replace(report.layers[1], damping=0.0), LayerSection("zero", 1, 1, 1, 1, (0.0, 0.0), 0.0, 0.0)),
        coverage=Coverage(0, 0, ()),
        storage=Storage(0.0, 0.0, 0, 0),
        timings=(),
        skipped=(),
    )
    page = render(empty)
    assert "No example was skipped." in page
    assert "<polyline" not in page


def test_control_characters_do_not_reach_the_page(report: Report) -> None:
    query = replace(report.queries[0], prompt="a\x00b\x1bc\ud800d\n\te é 中")
    page = render(replace(report, queries=(query,)))
    assert "a\ufffdb\ufffdc\ufffdd\n\te é 中" in page
    page.encode()


def test_characters_that_join_others_reach_the_page(report: Report) -> None:
    """Emoji and Persian need them. Those that turn the direction of the text around them do not."""
    text = "\N{MAN}\N{ZERO WIDTH JOINER}\N{GIRL} می\N{ZERO WIDTH NON-JOINER}خواهم so\N{SOFT HYPHEN}ft"
    query = replace(report.queries[0], prompt=f"{text} a\N{RIGHT-TO-LEFT OVERRIDE}b")
    assert f"{text} a\ufffdb" in render(replace(report, queries=(query,)))


def test_numbers_that_are_not_finite_are_refused(report: Report) -> None:
    bad_hit = replace(report.queries[0], opponents=(replace(OPPONENTS[0], score=float("nan")),))
    bad_loss = replace(report.queries[0], loss=float("inf"))
    for query in (bad_hit, bad_loss):
        with pytest.raises(LorifError, match="loop-else"):
            render(replace(report, queries=(query,)))


def test_the_first_question_comes_first_and_facts_are_folded(report: Report, change: Change) -> None:
    removal = Removal("m", 1, (0.5,), (False,), 0.5, 0.5, 0.5)
    test = Counterfactual(1, 555, ("plain",), (1.0,), (removal, removal), Difference(0.0, 0.0, 0.0))
    page = render(replace(report, change=change, counterfactual=test)).partition("<main>")[2]
    places = [page.index(mark) for mark in (
        'id="query-1"', 'class="overview"', 'id="change"', 'id="counterfactual"', 'id="query-2"',
        'id="how-to-read"', 'id="layers"', 'id="coverage"', 'id="storage"', 'id="timings"', 'id="skipped"',
    )]  # fmt: skip
    assert places == sorted(places)
    assert '<details class="fold" open' not in page and page.count('<details class="fold">') == 7


@pytest.mark.parametrize(("nats", "is_own"), [(2.0, True), (2.0002, True), (2.05, False), (4.5, False)])
def test_an_answer_is_called_the_models_own_only_if_the_model_says_it_by_itself(
    report: Report, nats: float, is_own: bool
) -> None:
    likelihood = Likelihood(nats, 2.0, words_of(nats - 2.0))
    page = render(replace(report, queries=(replace(report.queries[0], likelihood=likelihood),)))
    assert ('<span class="completion own">' in page) == is_own
    assert '.own::before { content: "The model\'s own answer"; }' in page
    assert "The model answered" not in page and "The model said" not in page


def test_a_recording_is_told_with_what_it_saved(report: Report, change: Change) -> None:
    costs = (StageCost("record: rows", 1.0, 0.0), StageCost("index", 0.0, 4.0))
    page = render(replace(report, change=replace(change, recorded=Recorded(2, 1234, 21, 1063), costs=costs)))
    for fact in ("1,234\n    rows of generation 2", "steps 21\n    to 1,063", "saved 75 % of them", "4.0 s"):
        assert fact in page
    assert "saved" not in render(replace(report, change=change)).partition('id="change"')[2].partition("<table")[0]


def test_a_report_of_one_question_has_no_table_of_questions(report: Report) -> None:
    page = render(replace(report, queries=report.queries[:1]))
    assert 'class="overview"' not in page and 'href="#query-1"' in page


def test_three_examples_a_side_are_open_and_the_rest_folded(report: Report) -> None:
    hits = tuple(replace(PROPONENTS[0], rank=rank, example_id=f"for/{rank}") for rank in range(1, 11))
    page = render(replace(report, queries=(replace(report.queries[0], proponents=hits),)))
    open_list, _, folded = page.partition('<details class="rest">')
    assert open_list.count('<li class="hit positive"') == 3 and "<summary>7 more</summary>" in folded
    assert folded.partition("</details>\n  <p")[0].count('<li class="hit positive"') == 7


@pytest.mark.parametrize(
    ("kind", "curvature", "words"),
    [
        ("folded-whitened", "none", "K-FAC, in the projections"),
        ("folded-adam", "none", "Adam's second moments"),
        ("folded-adam-whitened", "none", "K-FAC, damped by Adam's second moments"),
        ("random", "none", "none"),
        ("random", "woodbury", "woodbury"),
    ],
)
def test_a_whitened_index_without_a_curvature_has_the_metric_of_kfac(
    kind: Any, curvature: str, words: str
) -> None:
    spec = SimpleNamespace(projection=ProjectionSpec(kind=kind))
    generation: Any = SimpleNamespace(newest=SimpleNamespace(curvature_kind=curvature, index_spec=spec))
    assert metric_words(generation) == words


@pytest.mark.parametrize(
    ("percentile", "shown"),
    [
        (0.0, "0"),
        (50.4, "50"),
        (89.99, "89"),
        (99.9, "99.9"),
        (99.987, "99.98"),
        (99.99999, "99.9999"),
        (100.0, "100"),
    ],
)
def test_percentiles_are_told_from_100(percentile: float, shown: str) -> None:
    assert format_percentile(percentile) == f"{shown}\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize(
    ("score", "largest", "shown"),
    [
        (12.5, 12.5, "+12.50"),
        (-0.004, 12.5, f"{MINUS}0.00"),
        (0.0, 12.5, "0"),
        (-0.01234, 0.01234, f"{MINUS}0.01234"),
        (1234567.0, 2e6, f"+1.235 {TIMES} 10⁶"),
        (-1.5e-9, 3e-9, f"{MINUS}1.500 {TIMES} 10⁻⁹"),
    ],
)
def test_score_digits(score: float, largest: float, shown: str) -> None:
    assert format_score(score, largest) == shown


def test_byte_units() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 5 * 1024**3, 2**60)] == [
        "0 B",
        "1,023 B",
        "1.5 KiB",
        "5.0 GiB",
        "1,024.0 PiB",
    ]


def test_durations() -> None:
    shown = [format_seconds(seconds) for seconds in (0.25, 61.2, 9.87, 59.99, 7260.0)]
    assert shown == ["0.25 s", "1 min 01 s", "9.9 s", "60.0 s", "2 h 01 min"]
