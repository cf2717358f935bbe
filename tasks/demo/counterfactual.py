"""Trains the demo's model again without the passages that each method names, and measures its answers' losses.

All questions share a training: it leaves out the passages of all of them. Trainings repeat batches and learning
rates of the model's own, so that they differ from it only by what they leave out. One more training leaves nothing
out and has another seed: what it changes is noise.
"""

import random
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from lorif_core.config import Config
from lorif_core.errors import LorifError
from lorif_core.evaluation.bm25 import bm25_scores
from lorif_core.evaluation.bootstrap import mean_intervals
from lorif_core.evaluation.tail_patch import top_columns
from lorif_core.model.loss import losses_by_token
from lorif_core.report.block_answers import Attribution
from lorif_core.report.counterfactual import Counterfactual, Difference, Removal
from lorif_core.search.queries import Query, query_example
from tasks.artifacts import show_table
from tasks.cluster import cluster
from tasks.demo.corpus import Paragraph
from tasks.demo.model import POSITIONS, DemoModel, train_without
from tasks.demo.notes import MISTAKEN, RIGHT
from tasks.dispatch import Failed, Workers
from tasks.memory import model_settings
from tasks.orchestration import run_log, task
from tasks.progress import Progress
from tasks.workers.start import start

PASSAGES = RIGHT + MISTAKEN
"""Passages that each method names for a question: as many as there are notes that give an answer word for word."""

_OURS, _BM25, _RANDOM = f"LoRIF's {PASSAGES} strongest", f"BM25's {PASSAGES} best", f"{PASSAGES} at random"
_NOISE = "nothing, with another seed"
_REMARK = (
    f"These answers were made hard for a search for words: of each answer about a pair of functions the training "
    f"has {PASSAGES} notes that give it, and {PASSAGES} notes of the same words in another order that say the "
    f"opposite. Where an answer repeats a passage with words of its own, a search for words finds that passage as "
    f"well. Model and ranking are those of the first act."
)
_SEED = 0

Named = Mapping[str, Sequence[Collection[str]]]


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a model makes of the answers.

    Attributes:
        losses: (Q,) mean loss per token of each answer.
        given: (Q,) whether each token of an answer is what the model says first.
    """

    losses: np.ndarray
    given: np.ndarray


@dataclass(frozen=True, slots=True)
class Trainings:
    """A model, the texts that it was trained on, questions to it, and by method the texts to leave out."""

    model: DemoModel
    texts: Sequence[str]
    queries: Sequence[Query]
    left_out: Mapping[str, Collection[str]]


class RetrainingRole:
    """Trains the model again without some texts, and measures the answers; a training takes one thread."""

    def __init__(self, model: DemoModel, texts: Sequence[str], queries: Sequence[Query], threads: int) -> None:
        self._model, self._texts, self._queries = model, texts, queries

    def measure(self, left_out: Collection[str], seed: int) -> Spoken:
        """The answers after a training with a seed."""
        again = train_without(self._model, self._texts, left_out, seed)
        return measure(again, self._model.folder, self._queries)


@torch.no_grad()
def measure(model: GPT2LMHeadModel, tokenizer: Path, queries: Sequence[Query]) -> Spoken:
    """Losses of the answers to the queries, with the tokenizer in a folder."""
    tokens = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    losses, given = list[float](), list[bool]()
    for query in queries:
        example = query_example(query, tokens, len(tokens), POSITIONS)
        ids, labels = (torch.from_numpy(row[None].astype(np.int64)) for row in (example.input_ids, example.labels))
        own_T, first_T = losses_by_token(model.eval()(input_ids=ids).logits, labels)[:, 0]
        losses.append(own_T.nanmean().item())
        given.append(bool((own_T == first_T)[~own_T.isnan()].all()))
    return Spoken(np.array(losses), np.array(given))


@task("train again")
def train_again(
    config: Config, model: DemoModel, answers: Sequence[Attribution], passages: Sequence[Paragraph]
) -> Counterfactual:
    """Train again without the passages that each method names for the questions of these answers.

    Args:
        config: the demo's CONFIG.
        model: the model that gave the answers.
        answers: answers that rank at least `PASSAGES` proponents.
        passages: all passages that the model was trained on.

    Raises:
        LorifError: a training failed.
    """
    started = time.perf_counter()
    queries = [answer.query for answer in answers]
    before = measure(GPT2LMHeadModel.from_pretrained(model.folder), model.folder, queries)
    left_out = {
        method: frozenset[str]().union(*sets)
        for method, sets in named_passages(answers, passages, PASSAGES).items()
    } | {_NOISE: frozenset[str]()}
    text_of = {passage.paragraph_id: passage.text for passage in passages}
    texts = {method: [text_of[name] for name in sorted(ids)] for method, ids in left_out.items()}
    trainings = Trainings(model, [passage.text for passage in passages], queries, texts)
    spoken = _train_all(config, trainings)
    result = compare(before, {method: spoken[method] for method in left_out}, left_out, queries, len(passages))
    show_table(key="counterfactual", table=[asdict(row) for row in result.removals], description="Trained again")
    run_log().info("%d trainings took %.0f s", len(spoken), time.perf_counter() - started)
    return result


def compare(
    before: Spoken,
    after: Mapping[str, Spoken],
    left_out: Mapping[str, Collection[str]],
    queries: Sequence[Query],
    rows: int,
) -> Counterfactual:
    """Means and intervals of the rises in loss of each method, and of the first one's over the second one's."""
    rises = {name: spoken.losses - before.losses for name, spoken in after.items()}
    first, second, *_ = rises
    means, differences = mean_intervals(rises, [(first, second)])
    difference = differences[first, second]
    return Counterfactual(
        PASSAGES,
        rows,
        tuple(query.query_id for query in queries),
        tuple(before.losses.tolist()),
        tuple(
            Removal(
                name, len(left_out[name]), tuple(rises[name].tolist()), tuple(after[name].given.tolist()),
                mean.value, mean.low, mean.high,
            )
            for name, mean in means.items()
        ),
        Difference(difference.value, difference.low, difference.high),
        _REMARK,
    )  # fmt: skip


def _train_all(config: Config, trainings: Trainings) -> dict[str, Spoken]:
    """The answers after each training, by method."""
    model, left_out = trainings.model, trainings.left_out
    with (
        cluster(config.compute) as resources,
        Workers(
            lambda: start(RetrainingRole, resources, model, trainings.texts, trainings.queries),
            min(resources.workers, len(left_out)),
            model_settings(config),
        ) as workers,
        Progress("train again", len(left_out)) as progress,
    ):
        spoken: dict[str, Spoken] = {}
        for outcome in workers.run(
            list(left_out),
            lambda host, name: host.call("measure", left_out[name], model.seed + (name == _NOISE)),
            in_flight=1,
        ):
            if isinstance(outcome, Failed):
                raise LorifError(f"training without {outcome.item} failed: {outcome.cause}")
            spoken[outcome.item] = outcome.result
            progress.advance(1)
    return spoken


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
