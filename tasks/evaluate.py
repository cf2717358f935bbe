"""The steps of `lorif evaluate lds`: train the ground truth, score every method, write table and plot."""

import time
from typing import Any

import numpy as np
import ray
import torch
from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from lorif_core.bm25 import bm25_scores
from lorif_core.checkpoint import locate
from lorif_core.config import Config
from lorif_core.errors import LorifError
from lorif_core.evaluation import BM25, EvaluationConfig
from lorif_core.frontier import Measured, write_frontier
from lorif_core.index import Index
from lorif_core.lds import Truth, bootstrap
from lorif_core.queries import read_queries
from lorif_core.store import Generation, Store
from lorif_core.truth import Trainer, TruthFolder, run_once, runs
from tasks.actors import start
from tasks.cluster import cluster
from tasks.dispatch import Failed, Workers
from tasks.progress import Progress


@ray.remote
class TruthActor:
    """Loads checkpoint, corpus and queries once and trains one run after another."""

    def __init__(self, evaluation: EvaluationConfig, out: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._evaluation, self._out = evaluation, out
        self._trainer: Trainer | None = None

    def run(self, name: str) -> str:
        """See `run_once`."""
        if self._trainer is None:  # not in __init__: what goes wrong would reach the caller as a dead actor
            self._trainer = Trainer(self._evaluation)
        config = self._evaluation.base()
        run_once(self._trainer, TruthFolder(self._out, config.storage), name, config)
        return name


@task(name="ground truth", cache_policy=NO_CACHE)
def make_truth(evaluation: EvaluationConfig, out: str) -> tuple[list[str], Truth]:
    """Ids of the examples and the ground truth; runs that are kept in `out` are not trained again.

    Raises:
        UserError: `out` holds another ground truth, or checkpoint, corpus or queries are not what they should be.
    """
    config = evaluation.base()
    folder = TruthFolder(out, config.storage)
    trainer = Trainer(evaluation)
    ids = [example.example_id for example in trainer.examples]
    folder.begin(trainer.identity(locate(config.model, config.storage).fingerprint()), ids)
    done = folder.done()
    missing = [run for run in runs(evaluation) if run not in done]
    get_run_logger().info(
        "%d examples, %d queries, %d runs to train", len(ids), len(trainer.queries), len(missing)
    )
    del trainer
    if missing:
        _train_runs(evaluation, out, missing)
    return folder.read(evaluation)


def _train_runs(evaluation: EvaluationConfig, out: str, missing: list[str]) -> None:
    with cluster(evaluation.base().compute) as resources:
        count = min(resources.workers, len(missing))
        with (
            Workers(lambda: start(TruthActor, resources, evaluation, out, with_model=True), count) as workers,
            Progress("train subsets", len(missing)) as progress,
        ):
            for outcome in workers.run(missing, lambda actor, run: actor.run.remote(run), in_flight=1):
                if isinstance(outcome, Failed):
                    raise LorifError(f"training run {outcome.item} failed: {outcome.cause}")
                progress.advance(1)


@task(name="score method", task_run_name="score {name}", cache_policy=NO_CACHE)
def score_method(
    evaluation: EvaluationConfig, name: str, config: Config, generation: Generation, ids: list[str]
) -> Measured:
    """Scores (Q, N) of the published generation of a method, in the order of `ids`; what it costs."""
    started = time.perf_counter()
    store = Store(config.index, config.storage)
    index = Index(store, generation)
    queries = read_queries(evaluation.queries, config.storage)
    found, scores = index.scores(queries, config.model)
    seconds = time.perf_counter() - started
    place = {example_id: column for column, example_id in enumerate(ids)}
    aligned = np.zeros((len(queries), len(ids)), np.float32)  # an example that was left out has no influence
    aligned[:, [place[example_id] for example_id in found]] = scores
    size = store.code_bytes(generation.factors_version) / max(generation.rows, 1)
    return Measured(name, aligned, size, generation.timings, seconds)


@task(name="score BM25", cache_policy=NO_CACHE)
def score_bm25(evaluation: EvaluationConfig) -> Measured:
    """The words of queries and examples, as a search engine matches them."""
    started = time.perf_counter()
    trainer = Trainer(evaluation)
    scores = bm25_scores(
        [example.text or "" for example in trainer.examples], [query.text or "" for query in trainer.queries]
    )
    return Measured(BM25, scores, None, {}, time.perf_counter() - started)


@task(name="write evaluation", cache_policy=NO_CACHE)
def write_evaluation(
    evaluation: EvaluationConfig, out: str, truth: Truth, measured: list[Measured]
) -> dict[str, Any]:
    """LDS of every method with intervals, differences, CSV and plot into `out`; the summary."""
    methods = {found.name: found.scores for found in measured}
    intervals, differences = bootstrap(methods, truth, evaluation.compare)
    summary = write_frontier(out, evaluation.base().storage, measured, intervals, differences, truth)
    create_table_artifact(key="lds", table=summary["methods"], description="LDS and bytes per example")
    return summary
