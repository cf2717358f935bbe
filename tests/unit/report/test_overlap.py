"""Shared spans are whole words that occur in both texts, and the time is linear in the lengths of the texts."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorif_core.report.answer_sections import Hit, Source
from lorif_core.report.excerpt import EXCERPT_CHARS, excerpt, strongest_span
from lorif_core.report.overlap import STOP_WORDS, Overlap, words_of
from lorif_core.report.passage import text_pieces
from lorif_core.search.shares import TrainingToken
from tests.patience import patience

WORDS = st.lists(st.sampled_from(["loop", "else", "the", "of", "break", "Break", "if", "\n", "é"]), max_size=30)
TEXT = st.one_of(st.text(max_size=80), WORDS.map(" ".join))


@given(TEXT, TEXT)
def test_spans_are_ascending_runs_of_the_query(query: str, text: str) -> None:
    spans = Overlap([query]).spans(text)
    flat = [position for span in spans for position in span]
    assert flat == sorted(flat) and all(0 <= start < end <= len(text) for start, end in spans)
    query_words = [word for word, _, _ in words_of(query)]
    for start, end in spans:
        run = [word for word, _, _ in words_of(text[start:end])]
        assert set(run) <= set(query_words) and set(pairwise(run)) <= set(pairwise(query_words))


@given(TEXT)
def test_a_text_shares_all_but_stop_words_with_itself(text: str) -> None:
    shared = {word for start, end in Overlap([text]).spans(text) for word, _, _ in words_of(text[start:end])}
    left_out = {word for word, _, _ in words_of(text)} - shared
    assert all(word in STOP_WORDS or len(word) < 4 for word in left_out)


@pytest.mark.parametrize(
    ("query", "text", "shared"),
    [
        ("the else clause of a loop", "An ELSE clause; of a kind", ["ELSE clause; of"]),
        ("it is of the kind", "of the it is", []),
        ("one two", "two one", []),
        ("run break", "to break, it", ["break"]),
        ("天地玄黄", "玄黄 地", ["玄黄"]),
        ("x = __exit__(1)", "the __exit__ method", ["__exit__"]),
        ("", "anything", []),
    ],
)
def test_shared_words(query: str, text: str, shared: list[str]) -> None:
    assert [text[start:end] for start, end in Overlap([query]).spans(text)] == shared


def test_words_of_different_texts_are_not_adjacent() -> None:
    assert Overlap(["of a", "b of"]).spans("a b") == ()
    assert Overlap(["of a b of"]).spans("a b") == ((0, 3),)


def test_time_is_linear_in_the_lengths() -> None:
    """A million words against a hundred thousand; quadratic work would take hours."""
    started = time.perf_counter()
    text = "the loop breaks " * 330_000
    spans = Overlap(["loop " * 100_000]).spans(text)
    assert len(spans) == 330_000
    part = excerpt(text, spans)
    assert part is not None
    assert sum(1 for _ in text_pieces(Hit(1, "a", 1.0, text, Source("u", 0), spans), part)) < EXCERPT_CHARS
    assert time.perf_counter() - started < patience(30)


@given(st.text(max_size=900), st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900)), max_size=12))
def test_an_excerpt_is_a_part_of_a_long_text(text: str, bounds: list[tuple[int, int]]) -> None:
    cuts = sorted({min(position, len(text)) for bound in bounds for position in bound})
    spans = [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False) if a < b]
    part = excerpt(text, spans)
    assert (part is None) == (len(text) <= 1.25 * EXCERPT_CHARS)
    if part is not None:
        assert 0 <= part[0] < part[1] <= len(text) and part[1] - part[0] <= EXCERPT_CHARS


def test_an_excerpt_covers_shared_words_if_the_beginning_has_none() -> None:
    text = "filler words " * 100 + "the shared words themselves" + " and more of it" * 100
    start = text.index("shared")
    part = excerpt(text, [(start, start + 12)])
    assert part is not None and part[0] <= start < part[1] and text[part[0] - 1] == " "
    assert excerpt(text, [(5, 12), (start, start + 12)])[0] == 0  # type: ignore[index]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-5, 9)), min_size=1, max_size=60))
def test_the_strongest_span_is_short_and_no_other_span_of_whole_tokens_is_stronger(
    sizes: list[tuple[int, int]],
) -> None:
    tokens, stop = [], 0
    for length, share in sizes:
        tokens.append(TrainingToken(stop, stop + length, float(share)))
        stop += length
    sign = 1 if sum(token.share for token in tokens) >= 0 else -1

    def strength(start: int, end: int) -> float:
        return sign * sum(token.share for token in tokens if start <= token.start and token.end <= end)

    start, end = strongest_span(tokens)
    assert end - start <= 80
    for first in tokens:
        for last in tokens:
            if first.start < last.end <= first.start + 80:
                assert strength(first.start, last.end) <= strength(start, end)


def test_an_excerpt_surrounds_the_strongest_span_with_context_on_both_sides() -> None:
    words = [f"word{number:03d}" for number in range(200)]
    text, tokens = " ".join(words), []
    for number, word in enumerate(words):
        start = 8 * number
        tokens.append(TrainingToken(start, start + len(word), 5.0 if 120 <= number < 124 else 0.1))
    start, end = excerpt(text, [(0, 50)], tokens) or (0, 0)
    assert start + 60 < 8 * 120 < 8 * 124 < end - 60 and end - start <= EXCERPT_CHARS
    assert (excerpt(text, [], None) or (1, 1))[0] == 0
    opposed = [TrainingToken(token.start, token.end, -token.share) for token in tokens]
    assert excerpt(text, [], opposed) == (start, end), "an opponent is shown where it opposes"
