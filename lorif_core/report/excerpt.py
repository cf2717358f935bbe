"""Excerpts of long texts."""

from collections import deque
from collections.abc import Sequence
from itertools import accumulate

from lorif_core.search.shares import TrainingToken

EXCERPT_CHARS = 360
_CONTEXT_CHARS = 60  # shown before the first marked span of an excerpt
_SPAN_CHARS = 80  # the strongest span of a text; the excerpt shows a third of the rest of its length before it
_MIN_ADVANTAGE = 2  # an excerpt leaves the beginning only for more than this multiple of its marked characters

Spans = Sequence[tuple[int, int]]


def excerpt(text: str, spans: Spans, tokens: Sequence[TrainingToken] | None = None) -> tuple[int, int] | None:
    """(start, end) of the part of a long text to show first, cut between words; None if the text is short enough.

    The part surrounds the strongest span. If the shares of the tokens are not known, it is the beginning of the
    text, unless another part has far more marked characters.

    Args:
        text: the full text.
        spans: (start, end) of the marked characters, ascending and disjoint.
        tokens: the tokens of the text with their shares of a score, ascending; None if they are not known.
    """
    if len(text) <= EXCERPT_CHARS * 1.25:
        return None
    if tokens:
        start = max(0, strongest_span(tokens)[0] - (EXCERPT_CHARS - _SPAN_CHARS) // 3)
    else:
        start = _best_start(spans)
    if start:
        space = text.find(" ", start, start + _CONTEXT_CHARS // 2)
        start = space + 1 if space >= 0 else start
    end = start + EXCERPT_CHARS
    if end >= len(text):
        return start, len(text)
    space = text.rfind(" ", start + 1, end)
    return start, space if space > 0 else end


def strongest_span(tokens: Sequence[TrainingToken]) -> tuple[int, int]:
    """(start, end) of the tokens of at most 80 characters whose shares add most to the score, in its direction.

    Args:
        tokens: at least one, ascending.
    """
    sign = 1.0 if sum(token.share for token in tokens) >= 0 else -1.0
    before = list(accumulate((sign * token.share for token in tokens), initial=0.0))
    firsts: deque[int] = deque()  # possible first tokens, with ever larger sums of the tokens before them
    best = (float("-inf"), 0, 0)
    for last, token in enumerate(tokens):
        while firsts and before[firsts[-1]] >= before[last]:
            firsts.pop()
        firsts.append(last)
        while firsts[0] < last and token.end - tokens[firsts[0]].start > _SPAN_CHARS:
            firsts.popleft()
        best = max(best, (before[last + 1] - before[firsts[0]], firsts[0], last), key=lambda found: found[0])
    return tokens[best[1]].start, tokens[best[2]].end


def _best_start(spans: Spans) -> int:
    """Start of the best part. Spans ascend, so a window with two moving ends needs one pass."""
    best, most_marked, marked, last = 0, 0, 0, 0
    for first in range(-1, len(spans)):
        start = 0 if first < 0 else max(0, spans[first][0] - _CONTEXT_CHARS)
        while last < len(spans) and spans[last][1] <= start + EXCERPT_CHARS:
            marked += spans[last][1] - spans[last][0]
            last += 1
        if first < 0:
            most_marked = _MIN_ADVANTAGE * marked
        elif marked > most_marked:
            best, most_marked = start, marked
        if 0 <= first < last:
            marked -= spans[first][1] - spans[first][0]
        last = max(last, first + 1)
    return best
