"""Draws conversations: the turns of an example in its text, and those of a query among its shaded tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from lorif_core.corpus.messages import ASSISTANT
from lorif_core.corpus.turns import TEMPLATE, Turn
from lorif_core.report.answer_sections import Hit, QuerySection
from lorif_core.report.drawing import QueryTokens, Shade
from lorif_core.report.excerpt import excerpt

_BACKGROUND = ("system", "developer", TEMPLATE)


@dataclass(frozen=True, slots=True)
class ShadedTurn:
    """Shades of a query's tokens in one turn. The role is None for markup of the template, which is not shown."""

    role: str | None
    shades: tuple[Shade, ...]


def example_excerpt(hit: Hit) -> tuple[int, int] | None:
    """(start, end) of the part of an example's text to show first; None if the text is short enough.

    It is where the tokens carry most of the score. If that is not known, the part of a conversation begins behind
    its system prompt, which many examples share, unless marked words make another part the better one.
    """
    text = hit.text or ""
    part = excerpt(text, hit.overlap, hit.training_tokens)
    if part is None or part[0] or hit.training_tokens or not hit.turns:
        return part
    start = next((turn.start for turn in hit.turns if turn.role not in _BACKGROUND), 0)
    following = excerpt(text[start:], ())
    return start, len(text) if following is None else start + following[1]


def turns_in(turns: Sequence[Turn], part: tuple[int, int] | None) -> list[Turn]:
    """The turns of a text, cut to a part of it; None for the whole text."""
    if part is None:
        return list(turns)
    cut = (replace(turn, start=max(turn.start, part[0]), end=min(turn.end, part[1])) for turn in turns)
    return [turn for turn in cut if turn.start < turn.end]


def shaded_turns(query: QuerySection, tokens: QueryTokens) -> list[ShadedTurn] | None:
    """All shades of a query of messages, turn by turn; None if no turn stands in the text of its tokens.

    Scored shades are neither split nor left out, because the page addresses them by their number.
    """
    shades = [*tokens.prompt, *tokens.answer]
    text = "".join(shade.space + shade.text for shade in shades)
    turns = _turns_in_text(query.turns, text)
    if turns is None:
        return None
    owned: list[tuple[int | None, Shade]] = []
    position = 0
    for shade in shades:
        end = position + len(shade.space) + len(shade.text)
        pieces = list(_pieces(turns, position, end))
        if shade.level is None:
            owned += [
                (_context(number, turns), Shade("", text[start:stop], None)) for number, start, stop in pieces
            ]
        else:
            owned.append((next((number for number, _, _ in pieces if number is not None), None), shade))
        position = end
    return [
        ShadedTurn(None if number is None else turns[number].role, tuple(shade for _, shade in group))
        for number, group in groupby(owned, lambda pair: pair[0])
    ]


def _context(number: int | None, turns: Sequence[Turn]) -> int | None:
    """The turn of a text without a loss; in a turn of the assistant such a text is markup."""
    return None if number is None or turns[number].role == ASSISTANT else number


def _turns_in_text(turns: Sequence[tuple[str, str]], text: str) -> list[Turn] | None:
    """Where each turn, (role, what is said), stands in a text; None if none of them does.

    A turn that the template has written in another way, or that is cut off, is what stands between its neighbours.
    """
    places: list[tuple[int, int] | None] = []
    cursor = 0
    for _, said in turns:
        start = text.find(said.strip(), cursor)
        cursor = cursor if start < 0 else start + len(said.strip())
        places.append(None if start < 0 else (start, cursor))
    if not any(places):
        return None
    found: list[Turn] = []
    for number, (role, _) in enumerate(turns):
        before = found[-1].end if found else 0
        after = next((place[0] for place in places[number + 1 :] if place is not None), len(text))
        found.append(Turn(role, *(places[number] or (before, after))))
    return found


def _pieces(turns: Sequence[Turn], start: int, stop: int) -> Iterator[tuple[int | None, int, int]]:
    """(number of the turn, or None between turns, start, end) of the pieces of a part of the text."""
    position = start
    for number, turn in enumerate(turns):
        first, last = max(turn.start, position), min(turn.end, stop)
        if first < last:
            if first > position:
                yield None, position, first
            yield number, first, last
            position = last
    if position < stop:
        yield None, position, stop
