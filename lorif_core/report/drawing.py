"""Display data of an answered query: shades of its tokens, and the files that its examples come from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, product

from lorif_core.report.answer_sections import Hit, QuerySection, Source, SourceTotal

_SHADES = 4
_MAX_NAMED = 3
_MIN_NAMED_SHARE = 0.05
_MAX_SOURCES = 20
_MOST_SPECIAL = 2  # tokens that a tokenizer puts before a text
_SPACES = str.maketrans({" ": "\N{OPEN BOX}", "\n": "\N{RETURN SYMBOL}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"})


@dataclass(frozen=True, slots=True)
class Shade:
    """A part of the query's text.

    Attributes:
        space: the spaces before it.
        text: the rest.
        level: its contribution from -4 to 4; None if it is not scored.
        is_cut: whether the model does not read it, because the query is longer than `max_length`.
        tokens: (start, end) of its tokens, counted in the query; None if it is not scored.
    """

    space: str
    text: str
    level: int | None
    is_cut: bool = False
    tokens: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class TokenContribution:
    """A token's text, and its contribution divided by the sum of the absolute contributions of all tokens."""

    text: str
    share: float


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A file: its examples shown on each side, the sum of their scores, and the totals of all its rows."""

    source: Source
    proponents: int
    opponents: int
    shown_sum: float
    total: SourceTotal | None


class QueryTokens:
    """The tokens of an explained query, joined into pieces of complete characters; adjacent unscored pieces merge.

    Args:
        query: a section with `tokens`.
    """

    def __init__(self, query: QuerySection) -> None:
        self._tokens = query.tokens or ()
        scored = [token.contribution != 0 for token in self._tokens]
        for hit in query.hits:
            if hit.tokens is not None:
                scored = [flag or value != 0 for flag, value in zip(scored, hit.tokens, strict=True)]
        self._pieces = _pieces([token.text for token in self._tokens], scored)
        self._before, special, self._after = _surroundings(query, [token.text for token in self._tokens])
        self._prompt_chars = 0 if query.completion is None else len(query.prompt) + special

    @property
    def prompt(self) -> list[Shade]:
        """The prompt; empty for a query without one."""
        return self._divided[0]

    @property
    def answer(self) -> list[Shade]:
        """The completion or text, with the contribution of each piece to the scores of the proponents shown."""
        return self._divided[1]

    @property
    def is_partial(self) -> bool:
        """Whether more than the first word of the answer is not scored, because only a part is asked about."""
        return any(
            shade.level is None and not shade.is_cut and (place > 0 or len(shade.text.split()) > 1)
            for place, shade in enumerate(self.answer)
        )

    @property
    def is_cut(self) -> bool:
        """Whether the query is longer than what the model reads."""
        return bool(self._before or self._after)

    @property
    def read(self) -> int:
        """Number of tokens that the model reads."""
        return len(self._tokens)

    @cached_property
    def _divided(self) -> tuple[list[Shade], list[Shade]]:
        """The shades before and after the end of the prompt. A scored token that reaches over it comes after."""
        before, after, place = list[Shade](), list[Shade](), 0
        for shade in self._shades:
            text = shade.space + shade.text
            if place + len(text) <= self._prompt_chars:
                before.append(shade)
            elif place >= self._prompt_chars or shade.level is not None:
                after.append(shade)
            else:
                cut = self._prompt_chars - place
                before.append(_shade(text[:cut], None, is_cut=shade.is_cut))
                after.append(_shade(text[cut:], None, is_cut=shade.is_cut))
            place += len(text)
        return before, after

    @cached_property
    def _shades(self) -> list[Shade]:
        levels = iter(self._levels([token.contribution for token in self._tokens]))
        read = []
        for piece, is_scored in self._pieces:
            shade = _shade(self._text(piece), next(levels) if is_scored else None)
            read.append(replace(shade, tokens=(piece[0], piece[-1] + 1)) if is_scored else shade)
        before, after = ([_shade(text, None, is_cut=True)] if text else [] for text in (self._before, self._after))
        return before + [shade for shade in read if shade.space or shade.text] + after

    def _text(self, piece: Sequence[int]) -> str:
        return "".join(self._tokens[i].text for i in piece)

    @property
    def strongest(self) -> list[TokenContribution]:
        """The pieces with the largest contributions to the proponents shown, by absolute value."""
        return self._strongest([token.contribution for token in self._tokens])

    def levels_of(self, hit: Hit) -> str:
        """One digit per scored piece, 4 + its level; empty for an example that is not explained."""
        return "" if hit.tokens is None else "".join(str(_SHADES + level) for level in self._levels(hit.tokens))

    def strongest_of(self, hit: Hit) -> list[TokenContribution]:
        """The pieces with the largest contributions to one example's score, by absolute value."""
        return [] if hit.tokens is None else self._strongest(hit.tokens)

    def _sums(self, contributions: Sequence[float]) -> list[float]:
        return [sum(contributions[i] for i in piece) for piece, is_scored in self._pieces if is_scored]

    def _levels(self, contributions: Sequence[float]) -> list[int]:
        sums = self._sums(contributions)
        largest = max(map(abs, sums), default=0.0)
        return [round(_SHADES * value / largest) if largest else 0 for value in sums]

    def _strongest(self, contributions: Sequence[float]) -> list[TokenContribution]:
        sums = self._sums(contributions)
        total = sum(map(abs, sums))
        texts = [self._text(piece) for piece, is_scored in self._pieces if is_scored]
        named = [
            TokenContribution(text.strip() or text.translate(_SPACES), value / total)
            for text, value in zip(texts, sums, strict=True)
            if total and abs(value) >= _MIN_NAMED_SHARE * total
        ]
        return sorted(named, key=lambda token: -abs(token.share))[:_MAX_NAMED]


def _shade(text: str, level: int | None, *, is_cut: bool = False) -> Shade:
    words = text.lstrip()
    space = text[: len(text) - len(words)] if words else ""
    return Shade(space, words or text, level, is_cut)


def _pieces(texts: Sequence[str], scored: Sequence[bool]) -> list[tuple[list[int], bool]]:
    """Indices of the tokens of each piece, and whether any of them is scored."""
    pieces: list[tuple[list[int], bool]] = []
    open_piece: list[int] = []
    for index, text in enumerate(texts):
        open_piece.append(index)
        if not text and index + 1 < len(texts):
            continue
        is_scored = any(scored[i] for i in open_piece)
        if pieces and not is_scored and not pieces[-1][1]:
            pieces[-1][0].extend(open_piece)
        else:
            pieces.append((open_piece, is_scored))
        open_piece = []
    return pieces


def _surroundings(query: QuerySection, texts: Sequence[str]) -> tuple[str, int, str]:
    """The query's text that the tokens lack before and behind them, for a query longer than what the model reads.

    Between the two, the number of characters that tokenizers put before a text, such as a special token.
    """
    whole, text = query.prompt + (query.completion or ""), "".join(texts)
    starts = [0]
    for start in accumulate(map(len, texts[:_MOST_SPECIAL])):
        starts += [start, start + 1] if text.startswith(" ", start) else [start]
    for begin, end in product(starts, (len(text), len(text) - len(texts[-1])) if texts else ()):
        if begin < end and text[begin:end] in whole:
            before, _, after = whole.partition(text[begin:end])
            return before, begin, after
    return "", 0, ""


def source_rows(query: QuerySection) -> list[SourceRow]:
    """The files of the examples shown, largest sum of scores first; at most 20."""
    totals = {total.uri: total for total in query.totals or ()}
    scores: dict[str, dict[str, float]] = {uri: {} for uri in totals}
    for hit in query.hits:  # in a small index an example can be on both sides
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
    return sorted(rows, key=lambda row: -(row.shown_sum if row.total is None else row.total.total))[:_MAX_SOURCES]
