"""The flows of `lorif evaluate`: a trained checkpoint -> an index and scores for every method -> a table."""

from collections.abc import Callable
from typing import Any

from flows.build import build
from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.evaluation.ground_truth import TruthFolder
from lorif_core.evaluation.results import MethodResults
from tasks.cluster import cluster
from tasks.evaluate.lds import write_lds
from tasks.evaluate.recall import plant_sources, write_recall
from tasks.evaluate.shared import NEVER_FOUND, make_checkpoint, make_truth, score_bm25, score_method
from tasks.evaluate.tail_patch import patch_queries, score_random, write_tail_patch
from tasks.orchestration import flow


@flow("evaluate lds", "evaluate lds {out}")
def evaluate_lds(evaluation: EvaluationConfig, out: str) -> dict[str, Any]:
    """Measure the LDS of every method against training on subsets. If run again after a failure, it resumes."""
    with cluster(evaluation.base().compute):  # one Ray for the training and all builds
        ids, truth = make_truth(evaluation, out)
        results = _score_methods(evaluation, out, ids)
    return write_lds(evaluation, out, truth, results)


@flow("evaluate recall", "evaluate recall {out}")
def evaluate_recall(evaluation: EvaluationConfig, out: str) -> dict[str, Any]:
    """Plant sources, train on them, and measure how every method ranks them. It resumes like `evaluate_lds`."""
    with cluster(evaluation.base().compute):
        planted, folder, sources = plant_sources(evaluation, out)
        ids = make_checkpoint(planted, folder)
        results = _score_methods(planted, folder, ids, NEVER_FOUND, with_searches=True)
    return write_recall(evaluation, out, sources, results)


@flow("evaluate tail-patch", "evaluate tail-patch {out}")
def evaluate_tail_patch(evaluation: EvaluationConfig, out: str) -> dict[str, Any]:
    """Measure how one training step on the proponents of every method changes the loss of the query.

    It resumes like `evaluate_lds`.
    """
    with cluster(evaluation.base().compute):
        ids = make_checkpoint(evaluation, out, at_least=evaluation.tail_patch.top_k)
        results = _score_methods(evaluation, out, ids, NEVER_FOUND)
        results.append(score_random(results[0].scores.shape))
        gains = patch_queries(evaluation, out, results)
    return write_tail_patch(evaluation, out, results, gains)


MEASURES: dict[str, Callable[[EvaluationConfig, str], dict[str, Any]]] = {
    "lds": evaluate_lds, "recall": evaluate_recall, "tail-patch": evaluate_tail_patch,
}  # fmt: skip


def _score_methods(
    evaluation: EvaluationConfig, out: str, ids: list[str], left_out: float = 0.0, *, with_searches: bool = False
) -> list[MethodResults]:
    """Build the index of every method, unless it exists, and score all examples for all queries."""
    model = TruthFolder(out, evaluation.base().storage).model
    results = []
    for name in evaluation.methods:
        config = evaluation.method(name, f"{out.rstrip('/')}/indexes/{name}", model)
        generation = build(config)
        results.append(
            score_method(evaluation, name, config, generation, ids, left_out, with_searches=with_searches)
        )
    if evaluation.bm25:
        results.append(score_bm25(evaluation))
    return results
