"""The text of an example is drawn whole, in the shades of its tokens' shares, its shared words marked apart."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorif_core.report.answer_sections import Hit, QuerySection, Source
from lorif_core.report.page import render_answer
from lorif_core.report.passage import text_pieces
from lorif_core.report.turns import example_excerpt
from lorif_core.search.shares import TrainingToken

HIT = Hit(1, "a", 2.0, "the else clause runs", Source("a.jsonl", 0))


def tokens(*shares: tuple[int, int, float]) -> tuple[TrainingToken, ...]:
    return tuple(TrainingToken(start, end, share) for start, end, share in shares)


def section(*proponents: Hit) -> QuerySection:
    return QuerySection("q", "p", "c", 1.0, proponents, ())


@given(st.text(max_size=600), st.data())
def test_pieces_concatenate_to_the_text_and_to_its_excerpt(text: str, data: st.DataObject) -> None:
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=20))})
    shares = data.draw(st.lists(st.floats(-3, 3), min_size=len(cuts), max_size=len(cuts)))
    parts = tuple(TrainingToken(a, b, share) for a, b, share in zip(cuts, cuts[1:], shares, strict=False))
    shared = tuple(zip(cuts[::3], cuts[1::3], strict=False))
    hit = replace(HIT, text=text, training_tokens=parts, overlap=shared)
    pieces = list(text_pieces(hit))
    assert "".join(piece.text for piece in pieces) == text
    assert all(piece.text == text[piece.start : piece.end] for piece in pieces)
    assert "".join(piece.text for piece in pieces if piece.is_shared) == "".join(text[a:b] for a, b in shared)
    part = example_excerpt(hit)
    if part is not None:
        assert "".join(piece.text for piece in text_pieces(hit, part)) == text[slice(*part)]


def test_shades_are_relative_to_the_strongest_token_and_join_over_spaces() -> None:
    shaded = replace(HIT, training_tokens=tokens((0, 3, 0.0), (3, 8, 2.0), (8, 15, 1.9), (15, 20, -1.0)))
    drawn = [(piece.text, piece.level) for piece in text_pieces(shaded) if piece.text.strip()]
    assert drawn == [("the ", 0), ("else clause", 4), ("runs", -2)]


def test_shades_of_an_opponent_show_what_lowers_the_likelihood() -> None:
    opponent = replace(HIT, score=-2.0, training_tokens=tokens((0, 8, -2.0), (8, 20, 0.5)))
    assert [piece.level for piece in text_pieces(opponent) if piece.level] == [-4, 1]


def test_a_text_without_shares_has_no_shades_and_one_of_zero_shares_neither() -> None:
    for hit in (HIT, replace(HIT, training_tokens=()), replace(HIT, training_tokens=tokens((0, 20, 0.0)))):
        assert [(piece.text, piece.level) for piece in text_pieces(hit)] == [(HIT.text, 0)]


@pytest.mark.parametrize("is_shaded", [True, False])
def test_a_page_shades_the_passage_and_only_underlines_shared_words(is_shaded: bool) -> None:
    hit = replace(
        HIT, overlap=((4, 8),), training_tokens=tokens((4, 8, 1.0), (8, 15, -0.5)) if is_shaded else None
    )
    page = render_answer(section(hit), relative=False)
    if is_shaded:
        assert '<span class="s t t8 w" data-start="4" data-end="8">else</span>' in page
        assert '<span class="s t t2" data-start="9" data-end="15">clause</span>' in page
    else:
        assert 'the <span class="w">else</span> clause' in page and 'class="s t' not in page
    assert "<mark" not in page and "Underline words that passage and question share" in page
