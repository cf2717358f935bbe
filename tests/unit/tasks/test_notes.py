"""Notes on the two directions of a pair have the same words, so that no search for words tells them apart."""

import re
from collections import Counter

import numpy as np
import pytest

from lorif_core.evaluation.bm25 import bm25_scores
from tasks.demo.corpus import Paragraph
from tasks.demo.notes import NOTES, PAIRS, Pair, notes

ALL = notes(seed=0)


def direction(note: Paragraph) -> str:
    """What the note says, without its number."""
    return note.paragraph_id.rpartition("-")[0]


def test_every_direction_has_as_many_notes_and_every_note_another_text() -> None:
    counts = Counter(map(direction, ALL))
    assert len(counts) == 2 * len(PAIRS) and set(counts.values()) == {NOTES}
    assert len({note.text for note in ALL}) == len({note.paragraph_id for note in ALL}) == len(ALL)


@pytest.mark.parametrize("pair", PAIRS)
def test_both_directions_have_the_same_words(pair: Pair) -> None:
    bags: dict[str, set[tuple[str, ...]]] = {}
    for note in ALL:
        if note.topics == (pair.name,):
            bags.setdefault(direction(note), set()).add(tuple(sorted(re.findall(r"\w+", note.text))))
    there, back = bags.values()
    assert there == back and len(there) == NOTES


def test_bm25_gives_both_directions_the_same_scores() -> None:
    """Asked for a note itself, it names as many of the reverse as of those that say the same."""
    scores = bm25_scores([note.text for note in ALL], [ALL[0].text])[0]
    same = np.array([direction(note) == direction(ALL[0]) for note in ALL])
    reverse = np.array([note.topics == ALL[0].topics for note in ALL]) & ~same
    assert np.sort(scores[same]) == pytest.approx(np.sort(scores[reverse]))
    assert scores[reverse].min() > scores[~(same | reverse)].max()


def test_the_order_depends_on_the_seed_only_and_mixes_directions() -> None:
    assert notes(0) == ALL and notes(1) != ALL
    for pair in PAIRS:
        order = [direction(note) for note in ALL if note.topics == (pair.name,)]
        assert set(order[:NOTES]) == set(order)
