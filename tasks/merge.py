"""The curvature of an update: that of the new rows, merged with what is there; or anew, where that won't do."""

import time
from dataclasses import asdict

from prefect import get_run_logger, task

from lorif_core.config import ComputeConfig, Config
from lorif_core.curvature.merge import downdate, merge
from lorif_core.curvature.randomized_svd import fit_layers
from lorif_core.curvature.scan import ScanRequest
from lorif_core.curvature.woodbury import LayerCurvature
from lorif_core.lifecycle.plan import check_curvature
from lorif_core.lifecycle.update import UpdatePlan, why_refit
from lorif_core.storage.lease import Lease
from lorif_core.tables.generation import Generation, Part
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.store import Store
from tasks.cluster import Resources, cluster
from tasks.curvature import (
    Fit,
    Scanners,
    fit_rows,
    groups_of,
    missing_layers,
    name_of,
    passes_of,
    row_scanners,
    write_group,
)
from tasks.indexing import IndexedRows
from tasks.older import fit_with_sample
from tasks.retry import RETRIED


@task(name="update curvature", **RETRIED)
def update_curvature(config: Config, plan: UpdatePlan, indexed: IndexedRows, lease: Lease) -> Fit:
    """The curvature of the rows after an update, by the cheapest way that is good enough."""
    store, spec, settings = Store(config.index, config.storage), plan.build.spec, plan.build.curvature
    rows, held = indexed.inventory.of_spec(spec.hash), plan.held.of_spec(spec.hash)
    entered, left = rows.beyond(held), held.beyond(rows)
    reason = why_refit(config.update, plan.part, settings, left.rows, held.rows)
    if plan.part is not None and reason is None and not entered.rows and not left.rows:
        kept = plan.part
        return Fit(kept.curvature, store.curvatures.version(), "kept", kept.left, 0.0, kept.sampled)
    if plan.part is None or reason is not None or settings.kind == "none":
        check_curvature(config, spec.layers, rows.rows + plan.older_rows)
        if reason is not None and settings.kind != "none":
            get_run_logger().info("the curvature is fitted over all rows: %s", reason)
        if settings.kind != "none" and plan.older():
            return fit_with_sample(config, plan, rows, lease)
        return fit_rows(store, config.compute, spec, settings, rows, lease)
    return Merger(store, config.compute, plan.base, plan.part, lease).run(entered, left)


class Merger:
    """Takes the rows that left out of a curvature, fits the rows that came, and merges both, layer by layer.

    Args:
        store: the index.
        compute: where the work runs.
        base: the generation that it goes on from.
        part: whose curvature it is.
        lease: held by this process.
    """

    def __init__(self, store: Store, compute: ComputeConfig, base: Generation, part: Part, lease: Lease) -> None:
        self._store, self._compute, self._base, self._part, self._lease = store, compute, base, part, lease
        self._spec, self._settings = part.index_spec, part.curvature_spec

    def run(self, entered: Inventory, left: Inventory) -> Fit:
        """Merge the layers that an earlier run has not merged yet.

        Args:
            entered: rows that came, in the newest version of the factors.
            left: rows that left, in the version of the base generation.
        """
        started = time.perf_counter()
        moved = [sorted(entered.files), sorted(left.files)]
        curvature_id = name_of(self._spec.hash, self._part.curvature, moved, asdict(self._settings))
        missing = missing_layers(self._store, self._spec, curvature_id)
        groups = groups_of(self._spec, self._settings, self._part.rows + entered.rows, self._compute, missing)
        with cluster(self._compute) as resources:
            for group in groups:
                stored = {layer: self._store.curvatures.layer(self._base, self._part, layer) for layer in group}
                merged = self._grown(self._shrunk(stored, left, resources), entered, resources)
                write_group(self._store, self._spec, curvature_id, merged, self._lease)
        gone, seconds = self._part.left + left.rows, time.perf_counter() - started
        version, sampled = self._store.curvatures.version(), self._part.sampled
        return Fit(curvature_id, version, "merged", gone, seconds, sampled)

    def _shrunk(
        self, fitted: dict[int, LayerCurvature], left: Inventory, resources: Resources
    ) -> dict[int, LayerCurvature]:
        if not left.rows:
            return fitted
        with self._scanners(left, resources, "take rows out", 1) as scanners:
            found = scanners.scan(ScanRequest("gram", {layer: old.basis for layer, old in fitted.items()}))
        return {
            layer: downdate(old, found.matrices[layer], found.traces[layer], found.rows, self._settings)
            for layer, old in fitted.items()
        }

    def _grown(
        self, fitted: dict[int, LayerCurvature], entered: Inventory, resources: Resources
    ) -> dict[int, LayerCurvature]:
        if not entered.rows:
            return fitted
        dims = [layer.dim for layer in self._spec.layers]
        with self._scanners(entered, resources, "fit new rows", passes_of(self._settings)) as scanners:
            new = fit_layers(list(fitted), dims, entered.rows, self._settings, scanners.scan)
        return {layer: merge(old, new[layer], self._settings) for layer, old in fitted.items()}

    def _scanners(self, rows: Inventory, resources: Resources, what: str, passes: int) -> Scanners:
        return row_scanners(self._store, self._compute, self._spec, rows, resources, what, passes)
