"""The last step of `lorif evaluate lds`: the LDS of every method, as a table and a plot."""

from typing import Any

from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.evaluation.frontier import write_frontier
from lorif_core.evaluation.lds import Truth, bootstrap
from lorif_core.evaluation.results import MethodResults
from tasks.artifacts import show_table
from tasks.orchestration import task


@task("write LDS")
def write_lds(
    evaluation: EvaluationConfig, out: str, truth: Truth, results: list[MethodResults]
) -> dict[str, Any]:
    """Write the LDS of every method with intervals, differences, CSV and plot to `out`; returns the summary."""
    methods = {method.name: method.scores for method in results}
    intervals, differences = bootstrap(methods, truth, evaluation.compared(methods))
    summary = write_frontier(out, evaluation.base().storage, results, intervals, differences, truth)
    show_table(key="lds", table=summary["methods"], description="LDS and bytes per example")
    return summary
