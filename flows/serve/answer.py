"""What is answered, as JSON and as a fragment of the page."""

from typing import Any

from pydantic import BaseModel, Field

from flows.questions import Found
from flows.serve.live_index import Opened, SearchKind
from flows.serve.question import Question
from lorif_core.report.answer import answer_section, source_totals
from lorif_core.report.answer_sections import QuerySection
from lorif_core.report.page import render_answer
from lorif_core.search.explanation import Explanation, explain
from lorif_core.search.options import Terms
from lorif_core.search.top_k import Scored

_BY_SOURCE = "uri"


class Hit(BaseModel):
    """A training example."""

    rank: int = Field(description="from 1 within its side")
    example_id: str
    score: float
    text: str | None = Field(description="null where the index keeps no texts")
    uri: str
    row: int
    checkpoint: str = Field(description="fingerprint of the model that its gradient is of")
    tokens: list[float] | None = Field(None, description="what each token of the query adds to the score")


class Answer(BaseModel):
    """Proponents, whose scores are the highest, and opponents, whose scores are the lowest."""

    generation: int
    checkpoint: str
    loss: float = Field(description="of the query, summed over its scored tokens, in nats")
    relative: bool = Field(description="scores are shares of the query's influence on itself")
    search: SearchKind = Field(description="two-stage: rows may be missing; scores are exact all the same")
    proponents: list[Hit]
    opponents: list[Hit]
    tokens: list[str] | None = Field(None, description="of the query, if it was to be explained and could be")
    unexplained: str | None = Field(None, description="why it could not be")
    totals: list[dict[str, Any]] | None = None
    seconds: float = Field(0.0, description="from the question's arrival to its answer")


class Answered:
    """An answered question, from which either form is made.

    Args:
        opened: the generation that answered.
        question: what was asked.
        found: what a search has found.
        terms: those of the question.
    """

    def __init__(self, opened: Opened, question: Question, found: Found, terms: Terms) -> None:
        index, checkpoint = opened.index, opened.checkpoint
        self.generation, self._search = index.generation, opened.search
        self.relative = len(index.leaders) > 1
        self._found = found
        self._explanation: Explanation | None = None
        if question.explain:
            self._explanation = explain(index, found.query, found.top, checkpoint)
        self._totals = None
        if question.totals is not None:
            self._totals = index.totals(
                [found.query], question.totals, checkpoint, where=terms.where, normalise=terms.normalise
            )
        self._by_source = question.totals == _BY_SOURCE

    def section(self) -> QuerySection:
        """As a page shows it."""
        totals = source_totals(self._totals) if self._by_source and self._totals is not None else None
        found = self._found
        return answer_section(found.query, found.loss, found.top, found.details, self._explanation, totals)

    def html(self) -> str:
        """The fragment."""
        return render_answer(self.section(), self.relative)

    def json(self, seconds: float) -> str:
        """`Answer` as JSON."""
        return Answer(
            generation=self.generation.generation,
            checkpoint=self.generation.checkpoint,
            loss=self._found.loss,
            relative=self.relative,
            search=self._search,
            proponents=self._hits(self._found.top.proponents),
            opponents=self._hits(self._found.top.opponents),
            tokens=None if self._explanation is None else list(self._explanation.tokens) or None,
            unexplained=None if self._explanation is None else self._explanation.reason,
            totals=None if self._totals is None else self._totals.drop_columns(["query_id"]).to_pylist(),
            seconds=round(seconds, 4),
        ).model_dump_json()

    def _hits(self, scored: list[Scored]) -> list[Hit]:
        by_example = {} if self._explanation is None else self._explanation.by_example
        told = []
        for rank, hit in enumerate(scored, start=1):
            row, tokens = self._found.details[hit.example_id], by_example.get(hit.example_id)
            told.append(
                Hit(
                    rank=rank, example_id=hit.example_id, score=hit.score, text=row.get("text"), uri=row["uri"],
                    row=row["row"], checkpoint=row["checkpoint"],
                    tokens=None if tokens is None else tokens.tolist(),
                )
            )  # fmt: skip
        return told
