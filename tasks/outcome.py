"""The outcome of a run: a JSON receipt beside the index, and tables and a summary as artifacts of the run."""

import json
from pathlib import Path
from typing import Any

from lorif_core.config import Config
from lorif_core.gradients.codes import CodeLayout
from lorif_core.lifecycle.indexing import IndexedRows
from lorif_core.lifecycle.plan import BuildPlan
from lorif_core.spec import parse_shard_key
from lorif_core.storage.objects import Objects
from lorif_core.tables.generation import Generation
from tasks.artifacts import show_markdown, show_table
from tasks.orchestration import current_run, task

_LISTED = 200


@task("write receipt", retried=True)
def write_receipt(config: Config, generation: Generation) -> None:
    """Write `_lorif/runs/<flow run>.json` of the index: the current generation, and whether this run published it.

    Flows do not persist their results in Prefect, which would pickle them onto the worker's disk.
    """
    run = current_run()
    receipt = {
        "run": run.id,
        "name": run.name,
        "flow": run.flow,
        "deployment": run.deployment,
        "prefix": run.parameters.get("prefix"),
        "published": was_published(generation),
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


def was_published(generation: Generation) -> bool:
    """Whether this run has published a generation, perhaps in an earlier attempt of a step."""
    return generation.created_at >= current_run().started


def show_generation(index: str, plan: BuildPlan, indexed: IndexedRows, generation: Generation) -> None:
    """Create artifacts of the flow run: the tables `generation` and `shards`, and the Markdown `summary`."""
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
    show_table(key="generation", table=[figures], description=title)
    shards = _shards(plan, indexed)
    listed = f"the first {_LISTED} of {len(shards)}" if len(shards) > _LISTED else f"{len(shards)}"
    show_table(
        key="shards",
        table=shards[:_LISTED],
        description=f"New or changed shards of generation {generation.generation}: {listed}",
    )
    rows = [f"| {name} | {value} |" for name, value in figures.items() if value is not None]
    files = [f"| files {how} | {count} |" for how, count in generation.changes.get("files", {}).items()]
    notes = [f"- {sentence}" for sentence in plan.notes.sentences()]
    show_markdown(
        key="summary",
        markdown="\n".join(
            [f"# {title}", "", "| | |", "|---|---|", *rows, *files, "", *notes, "", link(index, index)]
        ),
    )


def link(text: str, uri: str) -> str:
    """A Markdown link to a local path or a URI."""
    return f"[{text}]({uri if '://' in uri else Path(uri).resolve().as_uri()})"


def _bytes(generation: Generation) -> int:
    """Bytes of the codes of all rows, computed from the layout."""
    specs = [(part.rows, part.index_spec) for part in generation.parts]
    return sum(rows * CodeLayout(spec.layers, spec.code).bytes_per_example for rows, spec in specs)


def _shards(plan: BuildPlan, indexed: IndexedRows) -> list[dict[str, Any]]:
    """The shards of the plan's spec that were not in the former generation."""
    shards = []
    for entry in indexed.inventory.of_spec(plan.spec.hash).entries:
        if entry.key not in plan.retained:
            file, first, stop = parse_shard_key(entry.shard)
            shards.append(
                {"file": file.name, "records": f"{first} to {stop - 1}", "rows": entry.rows,
                 "tokens": entry.tokens, "bytes": entry.rows * plan.layout.bytes_per_example}
            )  # fmt: skip
    return shards
