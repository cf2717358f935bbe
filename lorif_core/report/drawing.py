"""How a page draws an answered query: shades of its tokens, and which files its examples come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lorif_core.report.answer_sections import Hit, QuerySection, Source, SourceTotal

_SHADES = 4
_STRONGEST = 3
_LEAST_SHARE = 0.05  # of a token that is named
_SOURCES = 20
_SPACES = str.maketrans({" ": "\N{OPEN BOX}", "\n": "\N{RETURN SYMBOL}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"})


@dataclass(frozen=True, slots=True)
class Shade:
    """A part of the query's text, after a space; `level` from -4 to 4 says what it adds, None: it isn't scored."""

    space: str
    text: str
    level: int | None


@dataclass(frozen=True, slots=True)
class NamedToken:
    """A token that adds much: its text, and its share of the sum of all contributions' sizes, signed."""

    text: str
    share: float


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A file: how many of its examples are shown, the sum of their scores, and that of all its rows."""

    source: Source
    proponents: int
    opponents: int
    shown: float
    total: SourceTotal | None


class QueryTokens:
    """The tokens of an explained query in pieces: each a whole number of characters, those without a score joined.

    Args:
        query: a section with `tokens`.
    """

    def __init__(self, query: QuerySection) -> None:
        self._tokens = query.tokens or ()
        scored = [token.contribution != 0 for token in self._tokens]
        for hit in query.hits:
            scored = [one or (hit.tokens is not None and hit.tokens[i] != 0) for i, one in enumerate(scored)]
        self._pieces = list(_pieces([token.text for token in self._tokens], scored))
        self._cut = _cut(query, "".join(token.text for token in self._tokens))

    @property
    def unscored(self) -> list[Shade]:
        """What comes before the first token that is scored: the prompt, or the first token of a text."""
        cut = [_shade(self._cut[0], None)] if self._cut[0] else []
        return cut + self._shades[: self._first_scored]

    @property
    def scored(self) -> list[Shade]:
        """The rest of the text, with what each piece adds to the scores of the proponents shown."""
        return self._shades[self._first_scored :]

    @cached_property
    def _first_scored(self) -> int:
        return next((i for i, (_, is_scored) in enumerate(self._pieces) if is_scored), len(self._pieces))

    @cached_property
    def _shades(self) -> list[Shade]:
        levels = iter(self._levels([token.contribution for token in self._tokens]))
        pieces = [(self._text(piece), next(levels) if is_scored else None) for piece, is_scored in self._pieces]
        return [_shade(text, level) for text, level in [*pieces, (self._cut[1], None)] if text]

    def _text(self, piece: Sequence[int]) -> str:
        return "".join(self._tokens[i].text for i in piece)

    @property
    def strongest(self) -> list[NamedToken]:
        """The pieces that add or take away most."""
        return self._strongest([token.contribution for token in self._tokens])

    def levels_of(self, hit: Hit) -> str:
        """A digit for each piece that is scored, 4 + its level; empty for an example that isn't explained."""
        return "" if hit.tokens is None else "".join(str(_SHADES + level) for level in self._levels(hit.tokens))

    def strongest_of(self, hit: Hit) -> list[NamedToken]:
        """The pieces that add or take away most of one example's score."""
        return [] if hit.tokens is None else self._strongest(hit.tokens)

    def _sums(self, contributions: Sequence[float]) -> list[float]:
        return [sum(contributions[i] for i in piece) for piece, is_scored in self._pieces if is_scored]

    def _levels(self, contributions: Sequence[float]) -> list[int]:
        sums = self._sums(contributions)
        largest = max(map(abs, sums), default=0.0)
        return [round(_SHADES * value / largest) if largest else 0 for value in sums]

    def _strongest(self, contributions: Sequence[float]) -> list[NamedToken]:
        sums = self._sums(contributions)
        whole = sum(map(abs, sums))
        texts = [self._text(piece) for piece, is_scored in self._pieces if is_scored]
        named = [
            NamedToken(text.strip() or text.translate(_SPACES), value / whole)
            for text, value in zip(texts, sums, strict=True)
            if whole and abs(value) >= _LEAST_SHARE * whole
        ]
        return sorted(named, key=lambda token: -abs(token.share))[:_STRONGEST]


def _shade(text: str, level: int | None) -> Shade:
    words = text.lstrip()
    return Shade(text[: len(text) - len(words)], words, level) if words else Shade("", text, level)


def _pieces(texts: Sequence[str], scored: Sequence[bool]) -> list[tuple[list[int], bool]]:
    """Numbers of tokens that are drawn together, and whether any is scored."""
    pieces: list[tuple[list[int], bool]] = []
    open_piece: list[int] = []
    for number, text in enumerate(texts):
        open_piece.append(number)
        if not text and number + 1 < len(texts):
            continue
        is_scored = any(scored[i] for i in open_piece)
        if pieces and not is_scored and not pieces[-1][1]:
            pieces[-1][0].extend(open_piece)
        else:
            pieces.append((open_piece, is_scored))
        open_piece = []
    return pieces


def _cut(query: QuerySection, told: str) -> tuple[str, str]:
    """What the query has before its first token and after its last, where it was too long for the model."""
    before, found, after = (query.prompt + (query.completion or "")).partition(told) if told else ("", "", "")
    return (before, after) if found else ("", "")


def source_rows(query: QuerySection) -> list[SourceRow]:
    """The files of the examples shown, from the largest sum of scores, at most 20 of them."""
    totals = {total.uri: total for total in query.totals or ()}
    scores: dict[str, dict[str, float]] = {uri: {} for uri in totals}
    for hit in query.hits:  # in a small index an example may be on both sides
        scores.setdefault(hit.source.uri, {})[hit.example_id] = hit.score
    rows = [
        SourceRow(
            Source(uri, 0),
            sum(hit.source.uri == uri for hit in query.proponents),
            sum(hit.source.uri == uri for hit in query.opponents),
            sum(scores[uri].values()),
            totals.get(uri),
        )
        for uri in scores
    ]
    return sorted(rows, key=lambda row: -(row.shown if row.total is None else row.total.total))[:_SOURCES]
