"""Flow `attribute`: a file of queries -> proponents and opponents of each."""

import time
from typing import Any

from flows.parameters import ConfigParameter
from lorif_core.errors import UserError
from tasks.attribute import attribute_queries, open_queries, write_results
from tasks.orchestration import flow


@flow("attribute", "attribute {queries}")
def attribute(
    config: ConfigParameter,
    queries: str,
    out: str,
    top_k: int = 10,
    where: str | None = None,
    normalise: str = "none",
) -> dict[str, Any]:
    """Attribute every query of a file against the newest generation; returns the summary that it also writes.

    A run that was killed continues, against the same generation, when it is started again with the same arguments.
    """
    started = time.perf_counter()
    run = open_queries(config, queries, out, top_k, where, normalise)
    try:
        with run.lease():
            attribute_queries(config, run)
            summary = write_results(config, run, time.perf_counter() - started)
    except UserError:
        run.release_if_unanswered()
        raise
    run.clean_up()
    return summary
