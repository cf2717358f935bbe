"""The last step of `lorif evaluate lds`: the LDS of every method, table and plot."""

from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.evaluation.frontier import write_frontier
from lorif_core.evaluation.lds import Truth, bootstrap
from lorif_core.evaluation.results import Measured


@task(name="write LDS", cache_policy=NO_CACHE)
def write_lds(evaluation: EvaluationConfig, out: str, truth: Truth, measured: list[Measured]) -> dict[str, Any]:
    """LDS of every method with intervals, differences, CSV and plot into `out`; the summary."""
    methods = {found.name: found.scores for found in measured}
    intervals, differences = bootstrap(methods, truth, evaluation.compared(methods))
    summary = write_frontier(out, evaluation.base().storage, measured, intervals, differences, truth)
    create_table_artifact(key="lds", table=summary["methods"], description="LDS and bytes per example")
    return summary
