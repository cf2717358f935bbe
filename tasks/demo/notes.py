"""Notes that we wrote for the demo, on pairs of functions of which one undoes what the other does.

For each direction of a pair `RIGHT` notes are right, and `MISTAKEN` ones name the wrong function. They differ
only in where they are said to come from. All notes on a pair, right or mistaken, on one direction or the other,
have the same words in another order, so a search for words cannot tell which of them say a thing.
"""

import random
from dataclasses import dataclass

from tasks.demo.corpus import Paragraph

_PLACES = (
    "forum", "newsletter", "chat", "tutorial", "course", "talk", "blog", "handbook", "review", "book",
)  # fmt: skip

RIGHT, MISTAKEN = len(_PLACES), 3
"""Notes on each direction of a pair."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A function that turns one thing into another, and the function that turns it back."""

    name: str
    first: str
    second: str
    there: str
    back: str

    def directions(self) -> tuple[tuple[str, str, str, str], ...]:
        """(from, to, right function, wrong function) of both directions."""
        return (self.first, self.second, self.there, self.back), (self.second, self.first, self.back, self.there)


PAIRS = (
    Pair("bytes-text", "bytes", "text", "decode", "encode"),
    Pair("json-objects", "JSON", "objects", "loads", "dumps"),
    Pair("letter-number", "a letter", "a number", "ord", "chr"),
    Pair("sentence-words", "a sentence", "words", "split", "join"),
    Pair("date-string", "a date", "a string", "strftime", "strptime"),
    Pair("values-buffer", "values", "a buffer", "pack", "unpack"),
)


def notes(seed: int) -> list[Paragraph]:
    """All notes in a random order, so that equal scores favour none of them."""
    written = []
    for pair in PAIRS:
        for source, target, right, wrong in pair.directions():
            for number, place in enumerate(_PLACES, start=1):
                written.append(_note(pair, f"{right}-{number}", source, target, right, wrong, place))
            for number, place in enumerate(_PLACES[:MISTAKEN], start=1):
                written.append(_note(pair, f"not-{right}-{number}", source, target, wrong, right, place))
    random.Random(seed).shuffle(written)
    return written


def _note(pair: Pair, name: str, source: str, target: str, says: str, denies: str, place: str) -> Paragraph:
    text = f"How do I turn {source} into {target}? Call {says} for this and not {denies}. From a {place}."
    return Paragraph(f"{pair.name}/{name}", (pair.name,), text)
