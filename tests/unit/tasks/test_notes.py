"""All notes on a pair have the same words, so that no search for words tells them apart."""

import re
from collections import Counter

import pytest

from lorif_core.evaluation.bm25 import bm25_scores
from tasks.demo.corpus import Paragraph
from tasks.demo.notes import MISTAKEN, PAIRS, RIGHT, Pair, notes
from tasks.demo.own_answers import beginning

ALL = notes(seed=0)


def statement(note: Paragraph) -> str:
    """What the note says."""
    return note.text.partition(". ")[0]


def test_every_statement_has_its_number_of_notes_and_every_note_another_text() -> None:
    counts = Counter(map(statement, ALL))
    assert Counter(counts.values()) == {RIGHT: 2 * len(PAIRS), MISTAKEN: 2 * len(PAIRS)}
    assert len({note.text for note in ALL}) == len({note.paragraph_id for note in ALL}) == len(ALL)


def test_most_notes_on_a_question_agree() -> None:
    """So the model has one answer, of which it is not certain; a certain answer has hardly a gradient."""
    answers: dict[str, Counter[str]] = {}
    for note in ALL:
        answers.setdefault(beginning(note.text), Counter())[statement(note)] += 1
    assert len(answers) == 2 * len(PAIRS)
    for counts in answers.values():
        assert sorted(counts.values()) == [MISTAKEN, RIGHT]


@pytest.mark.parametrize("pair", PAIRS)
def test_all_notes_on_a_pair_have_the_same_words(pair: Pair) -> None:
    texts = [note.text.partition(" From a ")[0] for note in ALL if note.topics == (pair.name,)]
    assert len({tuple(sorted(re.findall(r"\w+", text))) for text in texts}) == 1 and len(set(texts)) == 4


def test_bm25_gives_all_notes_on_a_pair_equal_scores() -> None:
    question = statement(ALL[0])
    scores = bm25_scores([note.text for note in ALL], [question])[0]
    same = [score for note, score in zip(ALL, scores, strict=True) if note.topics == ALL[0].topics]
    others = [score for note, score in zip(ALL, scores, strict=True) if note.topics != ALL[0].topics]
    assert same == pytest.approx([same[0]] * len(same)) and min(same) > max(others)


def test_the_order_depends_on_the_seed_only_and_mixes_statements() -> None:
    assert notes(0) == ALL and notes(1) != ALL
    for pair in PAIRS:
        order = [statement(note) for note in ALL if note.topics == (pair.name,)]
        assert len(set(order[:RIGHT])) > 1
