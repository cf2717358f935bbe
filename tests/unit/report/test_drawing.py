"""The tokens of a query are drawn as its full text; shades and percentages follow from their contributions."""

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorif_core.report.answer import answer_section, source_totals
from lorif_core.report.answer_sections import QuerySection, Source
from lorif_core.report.drawing import QueryTokens, source_rows
from lorif_core.report.page import render_answer
from lorif_core.search.explanation import Explanation
from lorif_core.search.queries import Query
from lorif_core.search.token_texts import token_texts
from lorif_core.search.top_k import Scored, TopK
from tests.tiny_tokenizer import byte_tokenizer

ROWS = {
    name: {"example_id": name, "uri": uri, "row": row, "text": f"text {name}", "shard": "s", "language": "en"}
    for row, (name, uri) in enumerate([("a", "x/one.jsonl"), ("b", "x/two.jsonl"), ("c", "x/one.jsonl")])
}
TOP = TopK(2, [Scored(4.0, "a"), Scored(1.0, "b")], [Scored(-2.0, "c"), Scored(1.0, "b")])
QUERY = Query("q", prompt="a b", completion=" cd ef")
TOKENS = ("a", " b", " c", "d", " ", "ef")
CONTRIBUTIONS = {
    "a": np.array([0, 0, 4, 1, 0, -1], np.float32),
    "b": np.array([0, 0, 2, 0, 0, -1], np.float32),
    "c": np.array([0, 0, -3, 0, 1, 0], np.float32),
}


@pytest.fixture
def section() -> QuerySection:
    return answer_section(QUERY, 1.5, TOP, ROWS, Explanation(TOKENS, CONTRIBUTIONS))


def test_shades_come_from_the_proponents_or_from_one_example(section: QuerySection) -> None:
    tokens = QueryTokens(section)
    assert [token.contribution for token in section.tokens or ()] == [0, 0, 6, 1, 0, -2]
    assert "".join(shade.space + shade.text for shade in tokens.prompt) == "a b"
    assert [(shade.space, shade.text, shade.level) for shade in tokens.answer] == [
        (" ", "c", 4), ("", "d", 1), ("", " ", 0), ("", "ef", -1),
    ]  # fmt: skip
    assert [tokens.levels_of(hit) for hit in section.hits] == ["8543", "8442", "0454", "8442"]
    assert [(token.text, token.share) for token in tokens.strongest] == [
        ("c", 6 / 9),
        ("ef", -2 / 9),
        ("d", 1 / 9),
    ]
    assert [token.text for token in tokens.strongest_of(section.opponents[0])] == ["c", "\N{OPEN BOX}"]


def test_an_answer_shows_its_contributions_and_columns(section: QuerySection) -> None:
    page = render_answer(section, relative=True)
    assert re.search(
        r'<span class="completion"> <span class="t t8"[^>]*>c</span><span class="t t5"[^>]*>d</span>', page
    )
    assert 'data-levels="0454"' in page and "67\N{NO-BREAK SPACE}%" in page
    assert "divided by the query" in page and "<dt>language</dt><dd>en</dd>" in page


def test_the_reason_for_a_missing_explanation_is_shown() -> None:
    section = answer_section(QUERY, 1.5, TOP, ROWS, Explanation((), {}, "it is too <long>"))
    page = render_answer(section, relative=False)
    assert "are not coloured: it is too &lt;long&gt;." in page and 'class="t ' not in page


def test_the_part_of_a_query_that_the_model_does_not_read_is_marked() -> None:
    cut = answer_section(
        replace(QUERY, completion=" cd ef beyond"), 1.5, TOP, ROWS, Explanation(TOKENS, CONTRIBUTIONS)
    )
    page = render_answer(cut, relative=False)
    assert '<span class="cut">beyond</span>' in page and "reads 6 tokens of it at most" in page
    whole = answer_section(QUERY, 1.5, TOP, ROWS, Explanation(TOKENS, CONTRIBUTIONS))
    assert 'class="cut' not in render_answer(whole, relative=False)


@pytest.mark.parametrize("special", [("<s>",), ("<|begin_of_text|>",), ("[gMASK]", "<sop>")])
@pytest.mark.parametrize("space", ["", " "])
@pytest.mark.parametrize("end", [(), ("</s>",)])
@pytest.mark.parametrize("lost", ["", "much more "])
def test_tokens_around_the_text_do_not_move_the_answer(
    special: tuple[str, ...], space: str, end: tuple[str, ...], lost: str
) -> None:
    """Tokenizers may put special tokens before and behind a text, and a space before its first word."""
    tokens = (*special, space + TOKENS[0], *TOKENS[1:], *end)
    around = {
        name: np.concatenate([np.zeros(len(special)), values, np.zeros(len(end))]).astype(np.float32)
        for name, values in CONTRIBUTIONS.items()
    }
    query = replace(QUERY, prompt=f"{lost}a b")
    drawn = QueryTokens(answer_section(query, 1.5, TOP, ROWS, Explanation(tokens, around)))
    prompt, answer = (
        "".join(shade.space + shade.text for shade in shades) for shades in (drawn.prompt, drawn.answer)
    )
    cut = "".join(shade.space + shade.text for shade in drawn.prompt if shade.is_cut)
    assert cut == (lost.rstrip() if space else lost) and drawn.is_cut == bool(lost)
    assert prompt == f"{cut}{''.join(special)}{space}a b" and answer == " cd ef" + "".join(end)


def test_a_part_of_an_answer_stays_within_the_answer() -> None:
    """With a span only its tokens are scored; the words before them belong to the answer, not to the prompt."""
    part = {name: np.where(np.arange(6) == 5, values + 1, 0) for name, values in CONTRIBUTIONS.items()}
    section = answer_section(QUERY, 1.5, TOP, ROWS, Explanation(TOKENS, part))
    tokens = QueryTokens(section)
    assert "".join(shade.space + shade.text for shade in tokens.prompt) == "a b"
    assert [(shade.text, shade.level is None) for shade in tokens.answer] == [("cd ", True), ("ef", False)]
    page = render_answer(section, relative=False)
    assert '<span class="prompt">a b</span><span class="completion"> <span class="beside">cd </span>' in page


@given(st.text(max_size=30))
def test_token_texts_concatenate_to_the_text(text: str) -> None:
    """A token is one byte here; a character belongs to the token that completes it."""
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    texts = token_texts(ids, tokenizer)
    assert "".join(texts) == text and len(texts) == len(ids)


@given(st.text(min_size=1, max_size=20), st.data())
def test_pieces_are_complete_characters(text: str, data: st.DataObject) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    texts = token_texts(ids, tokenizer)
    values = data.draw(st.lists(st.floats(-9, 9, width=32), min_size=len(ids), max_size=len(ids)))
    contributions = {name: np.array(values, np.float32) for name in ROWS}
    section = answer_section(
        Query("q", text=text + "beyond"), 1.0, TOP, ROWS, Explanation(tuple(texts), contributions)
    )
    tokens = QueryTokens(section)
    assert "".join(shade.space + shade.text for shade in [*tokens.prompt, *tokens.answer]) == text + "beyond"
    drawn = [shade for shade in tokens.answer if shade.level is not None]
    assert all(len(tokens.levels_of(hit)) == len(drawn) for hit in section.hits)


def test_files_are_listed_with_shown_examples_and_totals_of_all_rows(section: QuerySection) -> None:
    assert [(row.source.uri, row.proponents, row.opponents, row.shown_sum) for row in source_rows(section)] == [
        ("x/one.jsonl", 1, 1, 2.0), ("x/two.jsonl", 1, 1, 1.0),
    ]  # fmt: skip
    table = pa.table(
        {
            "query_id": ["q"] * 2, "uri": ["x/three.jsonl", "x/one.jsonl"], "rows": [7, 9], "total": [5.0, -3.0],
            "positive": [6.0, 1.0], "negative": [-1.0, -4.0], "proponents": [4, 1], "opponents": [3, 8],
            "share_of_tokens": [0.4, 0.6], "share_of_positive": [6 / 7, 1 / 7],
        }
    )  # fmt: skip
    with_totals = answer_section(QUERY, 1.5, TOP, ROWS, None, source_totals(table))
    rows = source_rows(with_totals)
    assert [(row.source.uri, row.proponents, row.total and row.total.total) for row in rows] == [
        ("x/three.jsonl", 0, 5.0), ("x/two.jsonl", 1, None), ("x/one.jsonl", 1, -3.0),
    ]  # fmt: skip
    assert "x/three.jsonl" in render_answer(with_totals, relative=False)


@pytest.mark.parametrize(
    ("uri", "link"),
    [
        ("https://a.org/b.jsonl", "https://a.org/b.jsonl"),
        ("hf://datasets/some/set@v1/data/a.parquet", "https://huggingface.co/datasets/some/set/blob/v1/data/a.parquet"),
        ("hf://datasets/some/set/a.parquet", "https://huggingface.co/datasets/some/set/blob/main/a.parquet"),
        ("s3://bucket/a.jsonl", None), ("/tmp/a.jsonl", None), ("javascript:alert(1)", None),
        ("data:text/html,x", None), (" https://a.org", None), ("hf://datasets/../x", None),
    ],
)  # fmt: skip
def test_only_addresses_that_a_browser_may_open_are_links(uri: str, link: str | None) -> None:
    assert Source(uri, 0).link == link
