"""What a run leaves to be looked at: a receipt in JSON beside the index, and in Prefect tables and a summary."""

import json
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext

from lorif_core.config import Config
from lorif_core.gradients.codes import CodeLayout
from lorif_core.lifecycle.plan import BuildPlan
from lorif_core.spec import parse_shard_key
from lorif_core.storage.objects import Objects
from lorif_core.tables.generation import Generation
from tasks.indexing import IndexedRows
from tasks.retry import RETRIED

_LISTED = 200


@task(name="leave receipt", **RETRIED)
def leave_receipt(config: Config, generation: Generation) -> None:
    """Say in `_lorif/runs/<flow run>.json` of the index what stands when a run has ended, and whether it made it.

    Prefect itself keeps no result: it would lie on the worker's disk, and be pickled.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("a receipt is of a flow run")
    run = context.flow_run
    receipt = {
        "run": str(run.id),
        "name": run.name,
        "flow": context.flow.name,
        "deployment": None if run.deployment_id is None else str(run.deployment_id),
        "prefix": context.parameters.get("prefix"),
        "published": generation.created_at >= context.start_time,
        "index": config.index,
        "generation": generation.generation,
        "created_at": generation.created_at.isoformat(),
        "rows": generation.rows,
        "tokens": generation.tokens,
        "bytes": _bytes(generation),
        "spec": generation.spec,
        "checkpoint": generation.checkpoint,
        "skipped": len(json.loads(generation.skipped_json)),
        "quarantined": len(json.loads(generation.quarantined_json)),
        "timings": generation.timings,
        "changes": generation.changes,
    }
    Objects(config.index, config.storage).put(f"runs/{run.id}.json", receipt)


def show_generation(index: str, plan: BuildPlan, indexed: IndexedRows, generation: Generation) -> None:
    """Artifacts of the flow run: `generation` and `shards`, which are tables, and `summary`, in markdown."""
    drift = generation.changes.get("drift") or {}
    figures = {
        "generation": generation.generation,
        "rows": generation.rows,
        "tokens": generation.tokens,
        "bytes": _bytes(generation),
        "drift": drift.get("mean"),
        "worst drift": drift.get("worst"),
        "skipped": len(indexed.skipped),
        "quarantined": len(indexed.quarantined),
        "padding waste": f"{indexed.padding_waste:.2%}",
        **{f"{stage} seconds": round(seconds, 1) for stage, seconds in generation.timings.items()},
    }
    title = f"Published generation {generation.generation} of {index}"
    create_table_artifact(key="generation", table=[figures], description=title)
    shards = _shards(plan, indexed)
    listed = f"the first {_LISTED} of {len(shards)}" if len(shards) > _LISTED else f"{len(shards)}"
    create_table_artifact(
        key="shards",
        table=shards[:_LISTED],
        description=f"Shards of generation {generation.generation} that were not there as they are: {listed}",
    )
    rows = [f"| {name} | {value} |" for name, value in figures.items() if value is not None]
    files = [f"| files {how} | {count} |" for how, count in generation.changes.get("files", {}).items()]
    create_markdown_artifact(
        key="summary",
        markdown="\n".join([f"# {title}", "", "| | |", "|---|---|", *rows, *files, "", link(index, index)]),
    )


def link(text: str, uri: str) -> str:
    """Markdown that leads to a local path or a URI."""
    return f"[{text}]({uri if '://' in uri else Path(uri).resolve().as_uri()})"


def _bytes(generation: Generation) -> int:
    """Of the codes of all rows, by arithmetic."""
    specs = [(part.rows, part.index_spec) for part in generation.parts]
    return sum(rows * CodeLayout(spec.layers, spec.code).bytes_per_example for rows, spec in specs)


def _shards(plan: BuildPlan, indexed: IndexedRows) -> list[dict[str, Any]]:
    """Of the plan's spec, those that do not stay from the generation before."""
    found = []
    for holding in indexed.inventory.of_spec(plan.spec.hash).holdings:
        if holding.key not in plan.kept:
            file, first, stop = parse_shard_key(holding.shard)
            found.append(
                {"file": file.name, "records": f"{first} to {stop - 1}", "rows": holding.rows,
                 "tokens": holding.tokens, "bytes": holding.rows * plan.layout.bytes_per_example}
            )  # fmt: skip
    return found
