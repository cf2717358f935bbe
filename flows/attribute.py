"""Flow `attribute`: a file of queries -> proponents and opponents of each."""

import time
from typing import Any

from prefect import flow

from flows.parameters import ConfigParameter
from lorif_core.errors import UserError
from tasks.attribute import attribute_queries, open_queries, write_results


@flow(name="attribute", flow_run_name="attribute {queries}", persist_result=False)
def attribute(
    config: ConfigParameter,
    queries: str,
    out: str,
    top_k: int = 10,
    where: str | None = None,
    normalise: str = "none",
) -> dict[str, Any]:
    """Attribute every query of a file against the newest generation; the summary that is also written.

    A run that was killed goes on when it is run again with the same arguments, against the same generation.
    """
    started = time.perf_counter()
    run = open_queries(config, queries, out, top_k, where, normalise)
    try:
        with run.held():
            attribute_queries(config, run)
            summary = write_results(config, run, time.perf_counter() - started)
    except UserError:
        run.leave()
        raise
    run.finish()
    return summary
