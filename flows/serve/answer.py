"""Answers, as JSON and as an HTML fragment of the explorer page."""

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from flows.questions import QueryResult
from flows.serve.live_index import OpenGeneration, SearchKind
from flows.serve.question import Question
from lorif_core.corpus.turns import turns_from_json
from lorif_core.report.answer import answer_section, source_totals
from lorif_core.report.answer_sections import QuerySection
from lorif_core.report.page import render_answer
from lorif_core.search.explanation import Explanation, explain
from lorif_core.search.options import SearchOptions
from lorif_core.search.top_k import Scored
from lorif_core.tables.checksums import TURNS

_SOURCE_COLUMN = "uri"


class Turn(BaseModel):
    """A turn of a conversation: its role, and what is said as characters `start` to `end` of the text."""

    role: str = Field(description="Who speaks; `template` for a longer text that only the chat template has.")
    start: int = Field(description="The first character, from 0.")
    end: int = Field(description="The character after the last.")


class Hit(BaseModel):
    """A training example and its score."""

    rank: int = Field(description="The rank among proponents or opponents, from 1.")
    example_id: str = Field(description="The id of the training example.")
    score: float = Field(description="The influence of the training example on the query.")
    text: str | None = Field(description="The text of the training example; null if the index stores no texts.")
    turns: list[Turn] | None = Field(None, description="The turns in the text; null unless it is a conversation.")
    uri: str = Field(description="The corpus file that the training example comes from.")
    row: int = Field(description="The number of the record in that file, from 0.")
    checkpoint: str = Field(description="The fingerprint of the checkpoint that its gradient was computed at.")
    tokens: list[float] | None = Field(
        None, description="What each token of the query adds to the score; null without an explanation."
    )


class Answer(BaseModel):
    """The training examples with the highest scores (proponents) and with the lowest scores (opponents)."""

    generation: int = Field(description="The number of the generation that answered.")
    checkpoint: str = Field(description="The fingerprint of the newest checkpoint of that generation.")
    loss: float = Field(description="The loss of the query, summed over its scored tokens, in nats.")
    relative: bool = Field(
        description="Whether scores are shares of the query's influence on itself, because rows belong to several "
        "checkpoints."
    )
    search: SearchKind = Field(
        description="`full` scans every row; `two-stage` may miss rows, but the scores that it returns are exact."
    )
    proponents: list[Hit] = Field(description="The examples with the highest scores, highest first.")
    opponents: list[Hit] = Field(description="The examples with the lowest scores, lowest first.")
    tokens: list[str] | None = Field(
        None, description="The tokens of the query; null if no explanation was requested or possible."
    )
    unexplained: str | None = Field(
        None, description="Why the requested explanation is not possible; null otherwise."
    )
    totals: list[dict[str, Any]] | None = Field(
        None, description="Sums of scores by the requested column, one row per value, largest total first."
    )
    seconds: float = Field(0.0, description="The time from the arrival of the question to its answer, in seconds.")


class ComputedAnswer:
    """The answer to a question, with its explanation and totals; renders as JSON or HTML.

    Args:
        opened: the generation that answers.
        question: the client's question.
        result: the search result of its query.
        options: the search options of the question.
    """

    def __init__(
        self, opened: OpenGeneration, question: Question, result: QueryResult, options: SearchOptions
    ) -> None:
        index, checkpoint = opened.index, opened.checkpoint
        self.generation, self._search = index.generation, opened.search
        self.relative = len(index.own_checkpoint_parts) > 1
        self._result = result
        self._explanation: Explanation | None = None
        if question.explain:
            self._explanation = explain(index, result.query, result.top, checkpoint)
        self._totals = None
        if question.totals is not None:
            self._totals = index.totals(
                [result.query], question.totals, checkpoint, where=options.where, normalise=options.normalise
            )
        self._is_by_source = question.totals == _SOURCE_COLUMN

    def section(self) -> QuerySection:
        """The answer as the data of a page section."""
        totals = source_totals(self._totals) if self._is_by_source and self._totals is not None else None
        result = self._result
        return answer_section(result.query, result.loss, result.top, result.details, self._explanation, totals)

    def html(self) -> str:
        """The answer as an HTML fragment."""
        return render_answer(self.section(), self.relative)

    def json(self, seconds: float) -> str:
        """The answer as JSON of the form `Answer`."""
        return Answer(
            generation=self.generation.generation,
            checkpoint=self.generation.checkpoint,
            loss=self._result.loss,
            relative=self.relative,
            search=self._search,
            proponents=self._hits(self._result.top.proponents),
            opponents=self._hits(self._result.top.opponents),
            tokens=None if self._explanation is None else list(self._explanation.tokens) or None,
            unexplained=None if self._explanation is None else self._explanation.reason,
            totals=None if self._totals is None else self._totals.drop_columns(["query_id"]).to_pylist(),
            seconds=round(seconds, 4),
        ).model_dump_json()

    def _hits(self, scored: list[Scored]) -> list[Hit]:
        by_example = {} if self._explanation is None else self._explanation.by_example
        hits = []
        for rank, hit in enumerate(scored, start=1):
            row, tokens = self._result.details[hit.example_id], by_example.get(hit.example_id)
            hits.append(
                Hit(
                    rank=rank, example_id=hit.example_id, score=hit.score, text=row.get("text"), uri=row["uri"],
                    row=row["row"], checkpoint=row["checkpoint"],
                    turns=[Turn(**asdict(turn)) for turn in turns_from_json(row.get(TURNS))] or None,
                    tokens=None if tokens is None else tokens.tolist(),
                )
            )  # fmt: skip
        return hits
