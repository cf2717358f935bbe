"""The flows of `lorif evaluate`: a trained checkpoint -> an index and its scores for every method -> a table."""

from collections.abc import Callable
from typing import Any

from prefect import flow

from flows.build import build
from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.evaluation.ground_truth import TruthFolder
from lorif_core.evaluation.results import Measured
from tasks.cluster import cluster
from tasks.evaluate.lds import write_lds
from tasks.evaluate.recall import plant_sources, write_recall
from tasks.evaluate.shared import NEVER_FOUND, make_checkpoint, make_truth, score_bm25, score_method
from tasks.evaluate.tail_patch import patch_queries, score_random, write_tail_patch


@flow(name="evaluate lds", flow_run_name="evaluate lds {out}", persist_result=False)
def evaluate_lds(evaluation: EvaluationConfig, out: str) -> dict[str, Any]:
    """Measure the LDS of every method against training on subsets. Run again after a failure, it resumes."""
    with cluster(evaluation.base().compute):  # one Ray for the training and all builds
        ids, truth = make_truth(evaluation, out)
        measured = _measure(evaluation, out, ids)
    return write_lds(evaluation, out, truth, measured)


@flow(name="evaluate recall", flow_run_name="evaluate recall {out}", persist_result=False)
def evaluate_recall(evaluation: EvaluationConfig, out: str) -> dict[str, Any]:
    """Plant sources, train on them, and measure how every method ranks them. It resumes, too."""
    with cluster(evaluation.base().compute):
        planted, folder, sources = plant_sources(evaluation, out)
        ids = make_checkpoint(planted, folder)
        measured = _measure(planted, folder, ids, NEVER_FOUND, with_searches=True)
    return write_recall(evaluation, out, sources, measured)


@flow(name="evaluate tail-patch", flow_run_name="evaluate tail-patch {out}", persist_result=False)
def evaluate_tail_patch(evaluation: EvaluationConfig, out: str) -> dict[str, Any]:
    """Measure what one step of training on the proponents of every method does to its query. It resumes, too."""
    with cluster(evaluation.base().compute):
        ids = make_checkpoint(evaluation, out, at_least=evaluation.tail_patch.top_k)
        measured = _measure(evaluation, out, ids, NEVER_FOUND)
        measured.append(score_random(measured[0].scores.shape))
        gains = patch_queries(evaluation, out, measured)
    return write_tail_patch(evaluation, out, measured, gains)


MEASURES: dict[str, Callable[[EvaluationConfig, str], dict[str, Any]]] = {
    "lds": evaluate_lds, "recall": evaluate_recall, "tail-patch": evaluate_tail_patch,
}  # fmt: skip


def _measure(
    evaluation: EvaluationConfig, out: str, ids: list[str], left_out: float = 0.0, *, with_searches: bool = False
) -> list[Measured]:
    """Build the index of every method, unless it is there, and score all examples for all queries."""
    model = TruthFolder(out, evaluation.base().storage).model
    measured = []
    for name in evaluation.methods:
        config = evaluation.method(name, f"{out.rstrip('/')}/indexes/{name}", model)
        generation = build(config)
        measured.append(
            score_method(evaluation, name, config, generation, ids, left_out, with_searches=with_searches)
        )
    if evaluation.bm25:
        measured.append(score_bm25(evaluation))
    return measured
