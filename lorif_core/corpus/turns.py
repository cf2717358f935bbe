"""Turns of a rendered conversation: who speaks, and where in the text that the model reads."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import astuple, dataclass

from lorif_core.corpus.messages import Message, message_text

TEMPLATE = "template"
"""Role of a longer text that only the template has, such as a default system prompt or the list of tools."""

_SHORTEST_TEMPLATE_TEXT = 80  # characters; what stands between turns is mostly markup


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn: its role, and start and end of what is said, in characters of the rendered text."""

    role: str
    start: int
    end: int


def turns_to_json(turns: Sequence[Turn]) -> str | None:
    """The stored form, [[role, start, end], ...]; None without turns."""
    return json.dumps([astuple(turn) for turn in turns], separators=(",", ":")) if turns else None


def turns_from_json(text: str | None) -> tuple[Turn, ...]:
    """Inverse of `turns_to_json`."""
    return tuple(Turn(*values) for values in json.loads(text)) if text else ()


def spoken_line(text: str, turns: Sequence[Turn]) -> str:
    """The turns on one line, each with its role; the text itself without turns."""
    said = (f"{turn.role}: {text[turn.start : turn.end]}" for turn in turns if turn.role != TEMPLATE)
    return " ".join((" ".join(said) or text).split())


def find_turns(
    text: str, messages: Sequence[Message], spans: dict[int, tuple[int, int]], special: Collection[str]
) -> tuple[Turn, ...]:
    """Where each message stands in the rendered text.

    Args:
        text: the rendered text.
        messages: the conversation.
        spans: what the assistant says, by the number of the message, where that is known.
        special: special tokens, which are no part of what is said.
    """
    places: list[tuple[int, int] | None] = []
    cursor = 0
    for number, message in enumerate(messages):
        place = spans.get(number) or _find(
            text, message_text(message).strip(), cursor, _limit(spans, number, text)
        )
        if number in spans and place is not None:
            place = _without_markup(text, place, special)
        places.append(place)
        cursor = cursor if place is None else max(cursor, place[1])
    turns: list[Turn] = []
    for number, message in enumerate(messages):
        place = places[number]
        if place is None:  # the template has written it in another way: all that stands between its neighbours
            before = turns[-1].end if turns else 0
            after = next((later[0] for later in places[number + 1 :] if later is not None), len(text))
            place = _without_markup(text, (before, max(before, after)), special)
        if place[0] < place[1]:
            turns.append(Turn(message["role"], *place))
    return tuple(_with_template_texts(text, turns, special))


def _find(text: str, said: str, start: int, stop: int) -> tuple[int, int] | None:
    found = text.find(said, start, stop) if said else -1
    return None if found < 0 else (found, found + len(said))


def _limit(spans: dict[int, tuple[int, int]], number: int, text: str) -> int:
    """Where the next known turn of the assistant begins."""
    return next((spans[later][0] for later in sorted(spans) if later > number), len(text))


def _without_markup(text: str, place: tuple[int, int], special: Collection[str]) -> tuple[int, int]:
    """The place without white space and special tokens at both ends."""
    start, end = place
    while start < end:
        said = text[start:end]
        front = len(said) - len(said.lstrip()) or _longest(said.startswith, special)
        back = len(said) - len(said.rstrip()) or _longest(said.endswith, special)
        if not front and not back:
            break
        start, end = start + front, max(start + front, end - back)
    return start, end


def _longest(matches: Callable[[str], bool], special: Collection[str]) -> int:
    return max((len(token) for token in special if token and matches(token)), default=0)


def _with_template_texts(text: str, turns: Sequence[Turn], special: Collection[str]) -> list[Turn]:
    """The turns, and the longer texts between them."""
    complete: list[Turn] = []
    edges = [0, *(turn.end for turn in turns)]
    starts = [*(turn.start for turn in turns), len(text)]
    for number, (before, after) in enumerate(zip(edges, starts, strict=True)):
        place = _without_markup(text, (before, max(before, after)), special)
        if place[1] - place[0] >= _SHORTEST_TEMPLATE_TEXT:
            complete.append(Turn(TEMPLATE, *place))
        complete += turns[number : number + 1]
    return complete
