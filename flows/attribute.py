"""Flow `attribute`: a file of queries -> proponents and opponents of each."""

import time
from typing import Any

from prefect import flow

from flows.parameters import ConfigParameter
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
    """Attribute every query of a file against the newest generation; the summary that is also written."""
    started = time.perf_counter()
    generation, parsed, terms = open_queries(config, queries, out, where, normalise)
    answers = attribute_queries(config, generation, parsed, top_k, terms)
    return write_results(config, generation, answers, out, time.perf_counter() - started, terms)
