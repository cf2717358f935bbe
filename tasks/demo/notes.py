"""Notes that we wrote for the demo, on pairs of functions of which one undoes what the other does.

For each direction of a pair there are `NOTES` notes, which differ only in where they are said to come from. A note
and a note on the other direction have the same words in another order, so a search for words cannot tell which of
them say a thing and which say the reverse.
"""

import random
from dataclasses import dataclass

from tasks.demo.corpus import Paragraph

_PLACES = (
    "forum", "mailing list", "chat", "tutorial", "course", "talk", "blog", "cheat sheet", "code review", "book",
)  # fmt: skip

NOTES = len(_PLACES)
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
    """All notes in a random order, so that equal scores of two directions favour neither of them."""
    written = [
        Paragraph(
            f"{pair.name}/{right}-{number}",
            (pair.name,),
            f"From a {place}: How do I turn {source} into {target}? Call {right} for this and not {wrong}.",
        )
        for pair in PAIRS
        for source, target, right, wrong in pair.directions()
        for number, place in enumerate(_PLACES, start=1)
    ]
    random.Random(seed).shuffle(written)
    return written
