"""The facts about a generation that a report shows beside the answered queries."""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from lorif_core.gradients.codes import CodeLayout
from lorif_core.report.answer_sections import QuerySection
from lorif_core.report.changes import Change
from lorif_core.report.counterfactual import Counterfactual
from lorif_core.report.page import Report, Storage
from lorif_core.report.spectrum import LayerSection
from lorif_core.spec import Coverage
from lorif_core.tables.generation import Generation, metric_words
from lorif_core.tables.store import Store


def report_of(
    store: Store,
    generation: Generation,
    sections: Sequence[QuerySection],
    title: str,
    timings: Sequence[tuple[str, float]] = (),
    change: Change | None = None,
    counterfactual: Counterfactual | None = None,
    omitted: str | None = None,
) -> Report:
    """The page of some answered queries, with the facts about their generation; arguments as in `Report`."""
    code_bytes = store.rows.code_bytes(generation.factors_version)
    layout = CodeLayout(generation.index_spec.layers, generation.index_spec.code)
    coverage = json.loads(generation.coverage_json)
    return Report(
        title=title,
        generation=generation.generation,
        checkpoint=generation.checkpoint,
        spec=generation.spec,
        created_at=generation.created_at.strftime("%Y-%m-%d %H:%M UTC"),
        curvature=metric_words(generation),
        queries=tuple(sections),
        layers=layer_sections(store, generation),
        coverage=Coverage(
            coverage["tracked"], coverage["total"], tuple((name, count) for name, count in coverage["untracked"])
        ),
        storage=Storage(
            bytes_per_example=code_bytes / max(generation.rows, 1),
            dense_bytes_per_example=layout.dense_bytes_per_example(),
            rows=generation.rows,
            total_bytes=code_bytes,
        ),
        timings=(*json.loads(generation.timings_json).items(), *timings),
        skipped=tuple((example_id, reason) for example_id, reason in json.loads(generation.skipped_json)),
        relative=len(generation.own_checkpoint_parts) > 1,
        omitted=omitted,
        change=change,
        counterfactual=counterfactual,
    )


def layer_sections(store: Store, generation: Generation) -> tuple[LayerSection, ...]:
    """Shapes, retained spectrum, damping and retained energy of each layer of a generation's newest part."""
    part = generation.newest
    layers = part.index_spec.layers
    components: dict[int, list[dict[str, Any]]] = {}
    if part.curvature_kind != "none":
        by_layer = groupby(store.curvatures.spectra(generation, part), key=lambda row: row["layer_index"])
        components = {index: list(rows) for index, rows in by_layer}
    sections = []
    for index, layer in enumerate(layers):
        rows = components.get(index, [])
        trace = rows[0]["trace"] if rows else 0.0
        sections.append(
            LayerSection(
                layer.name, layer.in_features, layer.out_features, layer.d1, layer.d2,
                sigma=tuple(row["sigma2"] ** 0.5 for row in rows),
                damping=rows[0]["damping"] if rows else 1.0,
                energy=sum(row["sigma2"] for row in rows) / trace if trace else None,
            )
        )  # fmt: skip
    return tuple(sections)
