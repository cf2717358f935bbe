"""Data of one answered query on a page: the query, its highest and lowest scoring examples, and the reasons."""

import re
from dataclasses import dataclass
from typing import Literal

from lorif_core.corpus.turns import Turn
from lorif_core.search.distribution import Distribution
from lorif_core.search.likelihood import AnswerToken, Likelihood
from lorif_core.search.shares import LayerShare, TrainingToken

_HUB = re.compile(r"hf://datasets/(?P<name>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<path>.+)")


@dataclass(frozen=True, slots=True)
class Source:
    """Location of an example: a file or object, and the row in it, counted from 0."""

    uri: str
    row: int

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.uri.rstrip("/").rpartition("/")[2] or self.uri

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
        training_tokens: the tokens of its text with their shares of the score; None if they are not known.
        layers: the tracked layers with their shares of the score; empty if they are not known.
        percentile: percent of the searched rows that rank below it; None if it is not known.
        relative: its score divided by the largest absolute score shown.
        also_under: number of other queries of the same batch that show it too; None outside of a batch.
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
    training_tokens: tuple[TrainingToken, ...] | None = None
    layers: tuple[LayerShare, ...] = ()
    percentile: float | None = None
    relative: float = 0.0
    also_under: int | None = None


@dataclass(frozen=True, slots=True)
class SourceTotal:
    """Sums of the positive and of the negative scores over the searched rows of a file, and their number.

    Attributes:
        corpus_share: tokens of these rows over those of all searched rows, from 0 to 1.
        influence_share: `positive` over that of all searched rows, from 0 to 1.
    """

    uri: str
    rows: int
    positive: float
    negative: float
    corpus_share: float = 0.0
    influence_share: float = 0.0

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
        unshaded: why some examples have no `training_tokens`; None if all have, or none were requested.
        layers: the tracked layers with their shares of the summed scores of the proponents that are explained.
        answer_tokens: the tokens of the query with their losses; empty for several queries in one.
        likelihood: how likely the model finds the query; None for several queries in one.
        distribution: of the scores of all searched rows; None if it was not counted.
        compound: whether it is the mean of several queries or the difference of two; None for a single one.
        note: a remark on the query, such as who gave the answer.
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
    unshaded: str | None = None
    layers: tuple[LayerShare, ...] = ()
    answer_tokens: tuple[AnswerToken, ...] = ()
    likelihood: Likelihood | None = None
    distribution: Distribution | None = None
    compound: Literal["group", "contrast"] | None = None
    note: str | None = None

    @property
    def hits(self) -> tuple[Hit, ...]:
        """Proponents, then opponents."""
        return self.proponents + self.opponents
