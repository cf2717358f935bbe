"""Texts as a page writes them: the part of a long one that is shown at first, and what is marked in it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

EXCERPT_CHARS = 360
_BEFORE = 60  # characters ahead of what an excerpt is about
_MUCH_BETTER = 2  # times what the beginning shares: only then does an excerpt begin elsewhere

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text, marked or not."""

    text: str
    is_marked: bool


def excerpt(text: str, spans: Spans) -> tuple[int, int] | None:
    """(start, end) of the part to show at first, cut between words; None where all of the text is short enough.

    It is the beginning, unless there is a part with far more of what is marked.
    """
    if len(text) <= EXCERPT_CHARS * 1.25:
        return None
    start = _best_start(spans)
    if start:
        space = text.find(" ", start, start + _BEFORE // 2)
        start = space + 1 if space >= 0 else start
    end = start + EXCERPT_CHARS
    if end >= len(text):
        return start, len(text)
    space = text.rfind(" ", start + 1, end)
    return start, space if space > 0 else end


def _best_start(spans: Spans) -> int:
    """Where the part begins; spans ascend, so one pass with two ends."""
    best, most, held, last = 0, 0, 0, 0
    for first in range(-1, len(spans)):
        start = 0 if first < 0 else max(0, spans[first][0] - _BEFORE)
        while last < len(spans) and spans[last][1] <= start + EXCERPT_CHARS:
            held += spans[last][1] - spans[last][0]
            last += 1
        if first < 0:
            most = _MUCH_BETTER * held
        elif held > most:
            best, most = start, held
        if 0 <= first < last:
            held -= spans[first][1] - spans[first][0]
        last = max(last, first + 1)
    return best


def pieces(text: str, spans: Spans, part: tuple[int, int] | None = None) -> Iterator[Piece]:
    """A text, or a part of it, cut at the spans; together they are that text."""
    position, stop = part or (0, len(text))
    for start, end in spans:
        start, end = max(start, position), min(end, stop)
        if start >= end:
            continue
        if start > position:
            yield Piece(text[position:start], False)
        yield Piece(text[start:end], True)
        position = end
    if position < stop:
        yield Piece(text[position:stop], False)
