"""The curvature of an update: merged from the stored one and that of new rows, or fitted again over all rows."""

import time
from dataclasses import asdict

from lorif_core.config import ComputeConfig, Config
from lorif_core.curvature.merge import downdate, merge
from lorif_core.curvature.randomized_svd import fit_layers
from lorif_core.curvature.scan import ScanRequest
from lorif_core.curvature.woodbury import LayerCurvature
from lorif_core.lifecycle.curvature_fit import (
    Fit,
    count_passes,
    fit_id,
    memory_groups,
    missing_layers,
    write_group,
)
from lorif_core.lifecycle.indexing import IndexedRows
from lorif_core.lifecycle.plan import check_curvature
from lorif_core.lifecycle.update import UpdatePlan, refit_reason
from lorif_core.storage.lease import Lease
from lorif_core.tables.generation import Generation, Part
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.store import Store
from tasks.cluster import Resources, cluster
from tasks.curvature import Scanners, fit_rows, row_scanners
from tasks.older import fit_with_sample
from tasks.orchestration import run_log, task


@task("update curvature", retried=True)
def update_curvature(config: Config, plan: UpdatePlan, indexed: IndexedRows, lease: Lease) -> Fit:
    """The curvature of the rows after an update, in the cheapest way that is accurate enough."""
    store, spec, settings = Store(config.index, config.storage), plan.build.spec, plan.build.curvature
    rows, base_rows = indexed.inventory.of_spec(spec.hash), plan.base_inventory.of_spec(spec.hash)
    entered, left = rows.difference(base_rows), base_rows.difference(rows)
    reason = refit_reason(config.update, plan.part, settings, left.rows, base_rows.rows)
    if plan.part is not None and reason is None and not entered.rows and not left.rows:
        part = plan.part
        return Fit(part.curvature, store.curvatures.version(), "kept", part.left, 0.0, part.sampled)
    if plan.part is None or reason is not None or settings.kind == "none":
        check_curvature(config, spec.layers, rows.rows + plan.older_rows)
        if reason is not None and settings.kind != "none":
            run_log().info("the curvature is fitted over all rows: %s", reason)
        if settings.kind != "none" and plan.older_shards():
            return fit_with_sample(config, plan, rows, lease)
        return fit_rows(store, config.compute, spec, settings, rows, lease)
    return Merger(store, config.compute, plan.base, plan.part, lease).run(entered, left)


class Merger:
    """Subtracts rows that left from a curvature, fits rows that entered, and merges both, layer by layer.

    Args:
        store: the index.
        compute: where the work runs.
        base: the generation whose curvature is the start.
        part: the part of that generation that the curvature belongs to.
        lease: lease of the index, held by this process.
    """

    def __init__(self, store: Store, compute: ComputeConfig, base: Generation, part: Part, lease: Lease) -> None:
        self._store, self._compute, self._base, self._part, self._lease = store, compute, base, part, lease
        self._spec, self._settings = part.index_spec, part.curvature_spec

    def run(self, entered: Inventory, left: Inventory) -> Fit:
        """Merge the layers that an earlier run has not merged yet.

        Args:
            entered: new rows, in the newest version of the factors.
            left: rows that are no longer in the index, in the version of the base generation.
        """
        started = time.perf_counter()
        changed_files = [sorted(entered.files), sorted(left.files)]
        curvature_id = fit_id(self._spec.hash, self._part.curvature, changed_files, asdict(self._settings))
        missing = missing_layers(self._store, self._spec, curvature_id)
        groups = memory_groups(self._spec, self._settings, self._part.rows + entered.rows, self._compute, missing)
        with cluster(self._compute) as resources:
            for group in groups:
                stored = {layer: self._store.curvatures.layer(self._base, self._part, layer) for layer in group}
                merged = self._merge_rows(self._subtract_rows(stored, left, resources), entered, resources)
                write_group(self._store, self._spec, curvature_id, merged, self._lease)
        left_rows, seconds = self._part.left + left.rows, time.perf_counter() - started
        version, sampled = self._store.curvatures.version(), self._part.sampled
        return Fit(curvature_id, version, "merged", left_rows, seconds, sampled)

    def _subtract_rows(
        self, fitted: dict[int, LayerCurvature], left: Inventory, resources: Resources
    ) -> dict[int, LayerCurvature]:
        if not left.rows:
            return fitted
        with self._scanners(left, resources, "take rows out", 1) as scanners:
            result = scanners.scan(ScanRequest("gram", {layer: old.basis for layer, old in fitted.items()}))
        return {
            layer: downdate(old, result.matrices[layer], result.traces[layer], result.rows, self._settings)
            for layer, old in fitted.items()
        }

    def _merge_rows(
        self, fitted: dict[int, LayerCurvature], entered: Inventory, resources: Resources
    ) -> dict[int, LayerCurvature]:
        if not entered.rows:
            return fitted
        dims = [layer.dim for layer in self._spec.layers]
        with self._scanners(entered, resources, "fit new rows", count_passes(self._settings)) as scanners:
            new = fit_layers(list(fitted), dims, entered.rows, self._settings, scanners.scan)
        return {layer: merge(old, new[layer], self._settings) for layer, old in fitted.items()}

    def _scanners(self, rows: Inventory, resources: Resources, title: str, passes: int) -> Scanners:
        return row_scanners(self._store, self._compute, self._spec, rows, resources, title, passes)
