"""Flow `evaluate lds`: ground truth -> an index and its scores for every method -> table and frontier."""

from typing import Any

from prefect import flow

from flows.build import build
from lorif_core.evaluation import EvaluationConfig
from lorif_core.truth import TruthFolder
from tasks.cluster import cluster
from tasks.evaluate import make_truth, score_bm25, score_method, write_evaluation


@flow(name="evaluate lds", flow_run_name="evaluate {out}", persist_result=False)
def evaluate_lds(evaluation: EvaluationConfig, out: str) -> dict[str, Any]:
    """Measure the LDS of every method against training on subsets. Run again after a failure, it resumes."""
    base = evaluation.base()
    model = TruthFolder(out, base.storage).model
    with cluster(base.compute):  # one Ray for the training and all builds
        ids, truth = make_truth(evaluation, out)
        measured = []
        for name in evaluation.methods:
            config = evaluation.method(name, f"{out.rstrip('/')}/indexes/{name}", model)
            measured.append(score_method(evaluation, name, config, build(config), ids))
        if evaluation.bm25:
            measured.append(score_bm25(evaluation))
    return write_evaluation(evaluation, out, truth, measured)
