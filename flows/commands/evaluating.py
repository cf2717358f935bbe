"""The command `lorif evaluate`: measure the quality of attribution methods."""

from collections.abc import Sequence
from pathlib import Path

from flows.commands.result import Result
from flows.commands.shared import log_failures_once
from flows.tables import figures_text, lds_text
from tasks.environment import fast_imports, prepare_run


def run_evaluate(measure: str, config: str, overrides: Sequence[str], out: str) -> Result:
    """`lorif evaluate`."""
    with fast_imports():
        from lorif_core.evaluation.config import load_evaluation
    from lorif_core.evaluation.frontier import require_plotting

    evaluation = load_evaluation(config, list(overrides))
    require_plotting()
    prepare_run(evaluation.base().compute.ray)
    from flows.evaluate import MEASURES

    log_failures_once()
    summary = MEASURES[measure](evaluation, _absolute(out))
    return Result(summary, lds_text(summary) if measure == "lds" else figures_text(summary))


def _absolute(out: str) -> str:
    """An absolute path, because workers may have another working directory; a URI as it is."""
    return out if "://" in out else str(Path(out).resolve())
