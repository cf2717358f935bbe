"""Steps of all measures of `lorif evaluate`: training on Ray, and the scores of every method."""

import time
from collections.abc import Sequence

import numpy as np
import torch

from lorif_core.config import Config
from lorif_core.errors import LorifError, UserError
from lorif_core.evaluation.bm25 import bm25_scores
from lorif_core.evaluation.config import BM25, EvaluationConfig
from lorif_core.evaluation.ground_truth import FULL_RUN, Trainer, TruthFolder, run_names, run_once
from lorif_core.evaluation.inputs import load_inputs
from lorif_core.evaluation.lds import Truth
from lorif_core.evaluation.results import MethodResults
from lorif_core.evaluation.search_recall import search_recall
from lorif_core.model.checkpoint import locate
from lorif_core.search.index import Index
from lorif_core.search.queries import read_queries
from lorif_core.tables.store import Generation, Store
from tasks.cluster import cluster
from tasks.dispatch import Failed, Workers
from tasks.memory import model_settings
from tasks.orchestration import run_log, task
from tasks.progress import Progress
from tasks.workers.start import start

NEVER_FOUND = float("-inf")


class TruthRole:
    """Loads checkpoint, corpus and queries once, and trains one run after another."""

    def __init__(self, evaluation: EvaluationConfig, out: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._evaluation, self._out = evaluation, out
        self._trainer: Trainer | None = None

    def run(self, name: str) -> str:
        """See `run_once`."""
        if self._trainer is None:  # not in __init__: an error here is that of the item
            self._trainer = Trainer(self._evaluation)
        config = self._evaluation.base()
        run_once(self._trainer, TruthFolder(self._out, config.storage), name, config)
        return name


@task("ground truth")
def make_truth(evaluation: EvaluationConfig, out: str) -> tuple[list[str], Truth]:
    """Train on all subsets whose runs `out` does not have yet; returns the example ids and the ground truth.

    Raises:
        UserError: `out` has another ground truth, or checkpoint, corpus or queries are not valid.
    """
    _train(evaluation, out, run_names(evaluation))
    return TruthFolder(out, evaluation.base().storage).read(evaluation)


@task("attributed checkpoint")
def make_checkpoint(evaluation: EvaluationConfig, out: str, at_least: int = 1) -> list[str]:
    """Train the attributed checkpoint on the whole corpus, unless `out` has it; returns the example ids.

    Raises:
        UserError: see `make_truth`; or the corpus has fewer than `at_least` examples.
    """
    _train(evaluation, out, [FULL_RUN], at_least)
    return TruthFolder(out, evaluation.base().storage).ids()


def _train(evaluation: EvaluationConfig, out: str, runs: Sequence[str], at_least: int = 1) -> None:
    config = evaluation.base()
    folder = TruthFolder(out, config.storage)
    trainer = Trainer(evaluation)
    ids = [example.example_id for example in trainer.examples]
    if len(ids) < at_least:
        raise UserError(
            f"the corpus {config.corpus.uri} has {len(ids)} examples, fewer than the required {at_least}"
        )
    folder.begin(trainer.identity(locate(config.model, config.storage).fingerprint()), ids)
    done = folder.finished_runs()
    missing = [run for run in runs if run not in done]
    run_log().info("%d examples, %d queries, %d runs to train", len(ids), len(trainer.queries), len(missing))
    del trainer
    if missing:
        _train_runs(evaluation, out, missing)


def _train_runs(evaluation: EvaluationConfig, out: str, missing: list[str]) -> None:
    config = evaluation.base()
    with cluster(config.compute) as resources:
        count = min(resources.workers, len(missing))
        with (
            Workers(
                lambda: start(TruthRole, resources, evaluation, out, with_model=True),
                count,
                model_settings(config),
            ) as workers,
            Progress("train subsets", len(missing)) as progress,
        ):
            for outcome in workers.run(missing, lambda host, run: host.call("run", run), in_flight=1):
                if isinstance(outcome, Failed):
                    raise LorifError(f"training run {outcome.item} failed: {outcome.cause}")
                progress.advance(1)


@task("score method", run_name="score {name}")
def score_method(
    evaluation: EvaluationConfig,
    name: str,
    config: Config,
    generation: Generation,
    ids: list[str],
    left_out: float = 0.0,
    *,
    with_searches: bool = False,
) -> MethodResults:
    """Scores (Q, N) of the published generation of a method, in the order of `ids`, and their cost.

    An example that the index skipped scores `left_out`: 0 for no influence, or `NEVER_FOUND`. `with_searches` also
    measures the recall of approximate searches.
    """
    started = time.perf_counter()
    store = Store(config.index, config.storage)
    index = Index(store, generation)
    queries = read_queries(evaluation.queries, config.storage)
    folded = index.fold(index.encode(queries, config.model))
    scored_ids, scores = index.scores_folded(folded)
    seconds = time.perf_counter() - started
    columns = {example_id: column for column, example_id in enumerate(ids)}
    aligned = np.full((len(queries), len(ids)), left_out, np.float32)
    aligned[:, [columns[example_id] for example_id in scored_ids]] = scores
    size = store.rows.code_bytes(generation.factors_version) / max(generation.rows, 1)
    searches = search_recall(index, folded) if with_searches else []
    return MethodResults(name, aligned, size, generation.timings, seconds, searches)


@task("score BM25")
def score_bm25(evaluation: EvaluationConfig) -> MethodResults:
    """Scores of BM25, which compares the words of queries and examples."""
    started = time.perf_counter()
    scores = bm25_scores(*load_inputs(evaluation).texts())
    return MethodResults(BM25, scores, None, {}, time.perf_counter() - started)
