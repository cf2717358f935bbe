"""What a page shows of one answered query: the query, its highest and lowest scoring examples, and why."""

import re
from dataclasses import dataclass

_HUB = re.compile(r"hf://datasets/(?P<name>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<path>.+)")


@dataclass(frozen=True, slots=True)
class Source:
    """Where an example lies: a file or object, and the row in it, from 0."""

    uri: str
    row: int

    @property
    def link(self) -> str | None:
        """An address that a browser may open: http, https, or a hub dataset's file; None for any other scheme."""
        if self.uri.startswith(("http://", "https://")):
            return self.uri
        hub = _HUB.fullmatch(self.uri)
        if hub is None:
            return None
        return f"https://huggingface.co/datasets/{hub['name']}/blob/{hub['revision'] or 'main'}/{hub['path']}"


@dataclass(frozen=True, slots=True)
class TokenShare:
    """A token of the query as text, and what it adds to the scores of the proponents that are shown.

    The texts of all tokens, one after another, are the query's text; one that is no whole character is empty.
    """

    text: str
    contribution: float


@dataclass(frozen=True, slots=True)
class Hit:
    """A training example among a query's proponents or opponents.

    Attributes:
        rank: from 1.
        text: None where the index doesn't store texts.
        overlap: (start, end) of what the text shares with the query, in its characters; ascending, disjoint.
        tokens: what each of the query's tokens adds to this example's score; None if not explained.
        columns: further columns of its row, (name, value).
    """

    rank: int
    example_id: str
    score: float
    text: str | None
    source: Source
    overlap: tuple[tuple[int, int], ...] = ()
    tokens: tuple[float, ...] | None = None
    columns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class SourceTotal:
    """Sums of scores over all rows of a file that were asked: above zero and below, and how many rows."""

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
        unexplained: why it isn't, though it was to be.
        totals: over all rows, by file, from the largest; None if they were not added up.
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

    @property
    def hits(self) -> tuple[Hit, ...]:
        """Both sides."""
        return self.proponents + self.opponents
