"""Answers, as JSON and as an HTML fragment of the explorer page."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Literal

from flows.questions import QueryResult
from flows.serve.answer_schema import (
    Answer,
    AnswerToken,
    Distribution,
    Hit,
    LayerShare,
    Likelihood,
    TrainingToken,
    Turn,
)
from flows.serve.live_index import OpenGeneration
from flows.serve.question import Question
from lorif_core.corpus.turns import turns_from_json
from lorif_core.report.answer import answer_section, source_totals, summed_layers
from lorif_core.report.answer_sections import QuerySection
from lorif_core.report.page import render_answer
from lorif_core.search import shares
from lorif_core.search.distribution import percentile
from lorif_core.search.explanation import Explanation, explain
from lorif_core.search.likelihood import spoken_answer
from lorif_core.search.options import SearchOptions
from lorif_core.search.top_k import largest_score
from lorif_core.tables.checksums import TURNS

_SOURCE_COLUMN = "uri"


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
        self.generation, self.store, self._search = index.generation, index.store, opened.search
        self.relative = len(index.own_checkpoint_parts) > 1
        self._result = result
        self._explanation: Explanation | None = None
        if question.explain:
            self._explanation = explain(index, result.query, result.top, checkpoint)
        self._spoken = spoken_answer(index.encoder(checkpoint), result.query)
        self._completion = None if question.generate is None else result.query.completion
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
        return answer_section(
            result.query, result.loss, result.top, result.details, self._explanation, totals, self._spoken,
            result.top.distribution,
        )  # fmt: skip

    def html(self) -> str:
        """The answer as an HTML fragment."""
        return render_answer(self.section(), self.relative)

    def json(self, seconds: float) -> str:
        """The answer as JSON of the form `Answer`."""
        top, explanation, spoken = self._result.top, self._explanation, self._spoken
        tokens = [AnswerToken.model_validate(token) for token in spoken.tokens]
        likelihood, distribution = spoken.likelihood, top.distribution
        return Answer(
            generation=self.generation.generation,
            checkpoint=self.generation.checkpoint,
            loss=self._result.loss,
            relative=self.relative,
            search=self._search,
            proponents=self._hits("proponents"),
            opponents=self._hits("opponents"),
            tokens=None if explanation is None else list(explanation.tokens) or None,
            unexplained=None if explanation is None else explanation.reason,
            unshaded=None if explanation is None else explanation.unshaded,
            layers=None if explanation is None else _layers(summed_layers(explanation, top.proponents)),
            completion=self._completion,
            answer_tokens=tokens or None,
            likelihood=None if likelihood is None else Likelihood.model_validate(likelihood),
            distribution=None if distribution is None else Distribution.model_validate(distribution),
            totals=None if self._totals is None else self._totals.drop_columns(["query_id"]).to_pylist(),
            seconds=round(seconds, 4),
        ).model_dump_json()

    def _hits(self, side: Literal["proponents", "opponents"]) -> list[Hit]:
        explained, top = self._explanation or Explanation((), {}), self._result.top
        distribution, strongest, scored = top.distribution, largest_score(top), getattr(top, side)
        hits = []
        for rank, hit in enumerate(scored, start=1):
            row, tokens = self._result.details[hit.example_id], explained.by_example.get(hit.example_id)
            training = explained.training_tokens.get(hit.example_id)
            layers = explained.layers.get(hit.example_id)
            hits.append(
                Hit(
                    rank=rank, example_id=hit.example_id, score=hit.score, text=row.get("text"), uri=row["uri"],
                    row=row["row"], checkpoint=row["checkpoint"],
                    turns=[Turn(**asdict(turn)) for turn in turns_from_json(row.get(TURNS))] or None,
                    percentile=percentile(rank, distribution, is_proponent=side == "proponents"),
                    relative=hit.score / strongest if strongest else 0.0,
                    tokens=None if tokens is None else tokens.tolist(),
                    training_tokens=None if training is None else _training_tokens(training),
                    layers=None if layers is None else _layers(layers),
                )
            )  # fmt: skip
        return hits


def _training_tokens(of_score: Iterable[shares.TrainingToken]) -> list[TrainingToken]:
    return [TrainingToken.model_validate(share) for share in of_score]


def _layers(of_score: Iterable[shares.LayerShare]) -> list[LayerShare]:
    return [LayerShare.model_validate(share) for share in of_score]
