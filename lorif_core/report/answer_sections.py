"""Data of one answered query on a page: the query, its highest and lowest scoring examples, and the reasons."""

import re
from dataclasses import dataclass

from lorif_core.corpus.turns import Turn

_HUB = re.compile(r"hf://datasets/(?P<name>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<path>.+)")


@dataclass(frozen=True, slots=True)
class Source:
    """Location of an example: a file or object, and the row in it, counted from 0."""

    uri: str
    row: int

    @property
    def link(self) -> str | None:
        """Address that a browser may open: http, https, or a file of a hub dataset; None for other schemes."""
        if self.uri.startswith(("http://", "https://")):
            return self.uri
        hub = _HUB.fullmatch(self.uri)
        if hub is None:
            return None
        return f"https://huggingface.co/datasets/{hub['name']}/blob/{hub['revision'] or 'main'}/{hub['path']}"


@dataclass(frozen=True, slots=True)
class TokenShare:
    """A token of the query as text, and its contribution to the summed scores of the proponents shown.

    The concatenated texts of all tokens are the query's text. A token that does not complete a character has an
    empty text.
    """

    text: str
    contribution: float


@dataclass(frozen=True, slots=True)
class Hit:
    """A training example among a query's proponents or opponents.

    Attributes:
        rank: counted from 1.
        text: None where the index does not store texts.
        overlap: (start, end) in characters of the words that the text shares with the query; ascending, disjoint.
        tokens: contribution of each query token to this example's score; None if not explained.
        columns: extra columns of its row, (name, value).
        turns: of a conversation, where each turn stands in the text.
    """

    rank: int
    example_id: str
    score: float
    text: str | None
    source: Source
    overlap: tuple[tuple[int, int], ...] = ()
    tokens: tuple[float, ...] | None = None
    columns: tuple[tuple[str, str], ...] = ()
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceTotal:
    """Sums of the positive and of the negative scores over the searched rows of a file, and their number."""

    uri: str
    rows: int
    positive: float
    negative: float

    @property
    def total(self) -> float:
        """The sum of all scores."""
        return self.positive + self.negative


@dataclass(frozen=True, slots=True)
class QuerySection:
    """A query with its highest and its lowest scoring examples.

    Attributes:
        loss: summed over its scored tokens, in nats.
        tokens: None if the query is not explained.
        unexplained: why a requested explanation is missing; None otherwise.
        totals: over all rows, by file, largest first; None if they were not computed.
        turns: role and text of each message, if the query consists of messages.
    """

    query_id: str
    prompt: str
    completion: str | None
    loss: float
    proponents: tuple[Hit, ...]
    opponents: tuple[Hit, ...]
    tokens: tuple[TokenShare, ...] | None = None
    unexplained: str | None = None
    totals: tuple[SourceTotal, ...] | None = None
    turns: tuple[tuple[str, str], ...] = ()

    @property
    def hits(self) -> tuple[Hit, ...]:
        """Proponents, then opponents."""
        return self.proponents + self.opponents
