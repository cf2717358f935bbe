"""Trains the demo's model again without the passages that each method names, and measures its answers' losses.

All questions share a training: it leaves out the passages of all of them. Trainings repeat batches and learning
rates of the model's own, so that they differ from it only by what they leave out.
"""

import random
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from lorif_core.config import Config
from lorif_core.errors import LorifError
from lorif_core.evaluation.bm25 import bm25_scores
from lorif_core.evaluation.bootstrap import mean_intervals
from lorif_core.evaluation.tail_patch import top_columns
from lorif_core.evaluation.training_recipe import token_summed_losses
from lorif_core.report.block_answers import Attribution
from lorif_core.report.counterfactual import Counterfactual, Removal
from lorif_core.search.queries import Query, query_example
from tasks.artifacts import show_table
from tasks.cluster import cluster
from tasks.demo.corpus import Paragraph
from tasks.demo.model import POSITIONS, Course, train_without
from tasks.dispatch import Failed, Workers
from tasks.memory import model_settings
from tasks.orchestration import run_log, task
from tasks.progress import Progress
from tasks.workers.start import start

PASSAGES = 20
"""Passages that each method names for a question."""

_OURS, _BM25, _RANDOM = (
    f"the {PASSAGES} strongest by LoRIF", f"the {PASSAGES} best by BM25", f"{PASSAGES} at random",
)  # fmt: skip
_SEED = 0

Named = Mapping[str, Sequence[Collection[str]]]


class RetrainingRole:
    """Trains the model again without some texts, and measures the losses of the answers."""

    def __init__(
        self, course: Course, queries: Sequence[Query], threads: int
    ) -> None:  # training takes one thread
        self._course, self._queries = course, queries

    def losses(self, left_out: Collection[str]) -> np.ndarray:
        """(Q,) mean loss per token of each answer."""
        return answer_losses(train_without(self._course, left_out), self._course.first.folder, self._queries)


def answer_losses(model: GPT2LMHeadModel, tokenizer: Path, queries: Sequence[Query]) -> np.ndarray:
    """(Q,) mean loss per token of the answer of each query, with the tokenizer in a folder."""
    tokens = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    examples = [query_example(query, tokens, len(tokens), POSITIONS) for query in queries]
    return token_summed_losses(model.eval(), examples) / np.array([example.scored for example in examples])


@task("train again")
def train_again(
    config: Config, course: Course, answers: Sequence[Attribution], passages: Sequence[Paragraph]
) -> Counterfactual:
    """Train again without the passages that each method names for the questions of these answers.

    Args:
        config: the demo's CONFIG.
        course: how the model was trained.
        answers: answers that rank at least `PASSAGES` proponents.
        passages: all passages that the model was trained on.

    Raises:
        LorifError: a training failed.
    """
    started = time.perf_counter()
    queries = [answer.query for answer in answers]
    model = GPT2LMHeadModel.from_pretrained(course.further.folder)
    losses_Q = answer_losses(model, course.first.folder, queries)
    named = named_passages(answers, passages, PASSAGES)
    text_of = {passage.paragraph_id: passage.text for passage in passages}
    left_out = {method: frozenset[str]().union(*sets) for method, sets in named.items()}
    texts = {method: frozenset(text_of[name] for name in ids) for method, ids in left_out.items()}
    rises = {method: after_Q - losses_Q for method, after_Q in _train_all(config, course, queries, texts).items()}
    result = compare(losses_Q, {method: rises[method] for method in named}, left_out, queries, len(passages))
    show_table(key="counterfactual", table=[asdict(row) for row in result.removals], description="Trained again")
    run_log().info("%d trainings took %.0f s", len(rises), time.perf_counter() - started)
    return result


def compare(
    losses_Q: np.ndarray,
    rises: Mapping[str, np.ndarray],
    left_out: Mapping[str, Collection[str]],
    queries: Sequence[Query],
    rows: int,
) -> Counterfactual:
    """Means and intervals of the rises in loss (Q,) of each method."""
    means, _ = mean_intervals(rises)
    return Counterfactual(
        PASSAGES,
        rows,
        tuple(query.query_id for query in queries),
        tuple(losses_Q.tolist()),
        tuple(
            Removal(name, len(left_out[name]), tuple(rises_Q.tolist()), mean.value, mean.low, mean.high)
            for (name, rises_Q), mean in zip(rises.items(), means.values(), strict=True)
        ),
    )


def _train_all(
    config: Config, course: Course, queries: Sequence[Query], texts: Mapping[str, Collection[str]]
) -> dict[str, np.ndarray]:
    """The losses of the answers after each training, by method."""
    with (
        cluster(config.compute) as resources,
        Workers(
            lambda: start(RetrainingRole, resources, course, queries),
            min(resources.workers, len(texts)),
            model_settings(config),
        ) as workers,
        Progress("train again", len(texts)) as progress,
    ):
        losses: dict[str, np.ndarray] = {}
        for outcome in workers.run(list(texts), lambda host, name: host.call("losses", texts[name]), in_flight=1):
            if isinstance(outcome, Failed):
                raise LorifError(f"training without {outcome.item} failed: {outcome.cause}")
            losses[outcome.item] = outcome.result
            progress.advance(1)
    return losses


def named_passages(answers: Sequence[Attribution], passages: Sequence[Paragraph], k: int) -> Named:
    """The ids of the k passages that each method names for each question, by method.

    Args:
        answers: the questions with at least k proponents.
        passages: all passages that the model was trained on.
        k: passages of each method for a question.
    """
    ids = [passage.paragraph_id for passage in passages]
    texts = ["".join(part or "" for part in answer.query.display_text) for answer in answers]
    columns_QK = top_columns(bm25_scores([passage.text for passage in passages], texts), k)
    source = random.Random(_SEED)
    return {
        _OURS: [{hit.example_id for hit in answer.top.proponents[:k]} for answer in answers],
        _BM25: [{ids[column] for column in columns_K} for columns_K in columns_QK],
        _RANDOM: [set(source.sample(ids, min(k, len(ids)))) for _ in answers],
    }
