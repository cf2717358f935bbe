"""A whole build in this process, for data that fit one machine: the same rows as `lorif build` makes."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

from tqdm import tqdm

from lorif_core.config import Config
from lorif_core.curvature.randomized_svd import fit_layers
from lorif_core.curvature.scan import ScanRequest, ScanResult
from lorif_core.errors import ShardInputError
from lorif_core.gradients.codes import CodeLayout
from lorif_core.lifecycle.calibrate import (
    Counts,
    ShardCalibrator,
    calibration_sample,
    layer_ranges,
    sample_parts,
    sample_size,
    total_counts,
    whiten_group,
    whitening_header,
)
from lorif_core.lifecycle.curvature_fit import Fit, fit_id, memory_groups, missing_layers, write_group
from lorif_core.lifecycle.example_length import settled
from lorif_core.lifecycle.index_shard import ShardIndexer
from lorif_core.lifecycle.indexing import FailedShard, IndexedRows, index_missing, no_scored_token
from lorif_core.lifecycle.optimizer_scales import with_scales
from lorif_core.lifecycle.plan import BuildPlan, check_curvature, make_plan
from lorif_core.lifecycle.publishing import part_of_build, publish_rows
from lorif_core.lifecycle.waves import Waves
from lorif_core.model.loading import LoadedModel
from lorif_core.spec import ShardRef
from lorif_core.storage.lease import Lease, hold_lease
from lorif_core.tables.blocks import scan_rows
from lorif_core.tables.generation import Generation
from lorif_core.tables.row_sums import RowSums
from lorif_core.tables.store import Store

log = logging.getLogger(__name__)


def build_here(config: Config) -> Generation:
    """Build an index with one model in this process, and publish a generation. Run again, it resumes.

    The section `compute` has no effect apart from `tokens_per_batch` and `memory_gb`.

    Raises:
        LorifError: as `lorif build`.
    """
    plan = make_plan(config)
    config = settled(config, plan.spec)
    for sentence in plan.notes.sentences():
        log.warning("%s", sentence)
    with hold_lease(config.index, config.storage, "build") as lease:
        build = _LocalBuild(config, lease)
        plan = build.calibrate(plan)
        indexed = build.index(plan)
        fit = build.fit(plan, indexed)
        timings = {"calibrate": plan.calibration_seconds, "index": indexed.seconds, "curvature": fit.seconds}
        changes = {"command": "build", "corpus": plan.notes.as_dict()}
        part = part_of_build(config, plan, fit)
        return publish_rows(config, plan, [part], indexed, fit, lease, timings, changes)


class _LocalBuild:
    """The steps of a build; the model is loaded by the first one that needs it.

    Args:
        config: config of the build.
        lease: lease of the index, held by this process.
    """

    def __init__(self, config: Config, lease: Lease) -> None:
        self._config, self._lease = config, lease
        self._store = Store(config.index, config.storage)
        self._loaded: LoadedModel | None = None

    def calibrate(self, plan: BuildPlan) -> BuildPlan:
        """The plan with a whitening: the one that the index has for the checkpoint, or one measured now."""
        started, store = time.perf_counter(), self._store
        spec = store.with_stored_whitening(with_scales(self._config, plan.spec, self._lease))
        if not spec.projection.is_whitened or spec.projection.whitening is not None:
            return replace(plan, spec=spec)
        calibrator = ShardCalibrator(self._config, spec)
        self._loaded = calibrator.loaded
        sample = calibration_sample(plan.shards, sample_size(spec.projection, plan.rows))
        groups = layer_ranges(spec.layers, 1)
        by_part, sums = [], []
        for part in sample_parts(sample):  # as workers do it, because sums depend on their order in the last bits
            covariances = calibrator.covariances(part)
            by_part.append(Counts(covariances.tokens, covariances.examples))
            sums.append([covariances.packed(group) for group in groups])
        counts, device = total_counts(by_part), calibrator.loaded.device
        if not counts.tokens:
            raise no_scored_token(self._config)
        whitened = [
            whiten_group([of_part[group] for of_part in sums], counts.tokens, device, store, None)
            for group in range(len(groups))
        ]
        header = whitening_header(spec, counts, [summary for summary, _ in whitened], None)
        self._lease.confirm()
        store.whitenings.create()
        fragments = [store.whitenings.write(header, sides, spec.layers) for _, sides in whitened]
        self._lease.confirm()
        store.whitenings.commit(header.name, [fragment for written in fragments for fragment in written])
        seconds = time.perf_counter() - started
        return replace(plan, spec=spec.with_whitening(header.name), calibration_seconds=seconds)

    def index(self, plan: BuildPlan) -> IndexedRows:
        """Index the shards that are not committed yet, one after the other."""
        started = time.perf_counter()

        def index_shards(pending: Sequence[ShardRef], waves: Waves) -> list[FailedShard]:
            indexer, failed = ShardIndexer(self._config, plan.spec, self._loaded), list[FailedShard]()
            self._loaded = indexer.loaded
            for shard in tqdm(pending, "index", unit="shard", leave=False):
                try:
                    waves.join_here(waves.add(indexer.index(shard)))
                except ShardInputError as error:
                    failed.append(FailedShard(shard.key, str(error), error))
            waves.join_here(waves.rest())
            waves.commit()
            return failed

        indexed = index_missing(self._config, plan, self._lease, False, index_shards, log)
        return replace(indexed, seconds=time.perf_counter() - started)

    def fit(self, plan: BuildPlan, indexed: IndexedRows) -> Fit:
        """Fit the curvature of all rows and write it."""
        started = time.perf_counter()
        config, store, spec, settings = self._config, self._store, plan.spec, plan.curvature
        rows = indexed.inventory.of_spec(spec.hash)
        check_curvature(config, spec.layers, rows.rows)
        curvature_id = fit_id(spec.hash, rows.version, asdict(settings))
        if settings.kind == "none":
            return Fit(curvature_id, store.curvatures.version(), "none", 0, time.perf_counter() - started)
        block_rows = scan_rows(CodeLayout(spec.layers, spec.code), config.compute.memory_gb)
        sums = RowSums(store, spec, rows.version, block_rows)

        def scan(request: ScanRequest) -> ScanResult:
            return sums.scan(request, rows.selections)

        missing, dims = missing_layers(store, spec, curvature_id), [layer.dim for layer in spec.layers]
        for group in memory_groups(spec, settings, rows.rows, config.compute, missing):
            write_group(store, spec, curvature_id, fit_layers(group, dims, rows.rows, settings, scan), self._lease)
        return Fit(curvature_id, store.curvatures.version(), "fitted", 0, time.perf_counter() - started)
