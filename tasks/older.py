"""Rows of older checkpoints after continued pretraining.

A sample of them, computed at the new checkpoint, measures their drift and gives the new checkpoint its curvature.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace

from lorif_core.config import Config
from lorif_core.curvature.merge import extrapolate, merge
from lorif_core.curvature.randomized_svd import fit_layers
from lorif_core.curvature.woodbury import LayerCurvature
from lorif_core.lifecycle.calibrate import SampledShard, calibration_sample, part_count
from lorif_core.lifecycle.curvature_fit import (
    Fit,
    count_passes,
    fit_id,
    memory_groups,
    missing_layers,
    write_group,
)
from lorif_core.lifecycle.drift import CheckpointDrift
from lorif_core.lifecycle.update import UpdatePlan
from lorif_core.report.changes import PartDrift
from lorif_core.spec import ShardRef
from lorif_core.storage.lease import Lease
from lorif_core.tables.generation import Part
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.store import Store
from tasks.calibrate import calibrate
from tasks.curvature import Scanners, row_scanners
from tasks.dispatch import Workers
from tasks.memory import model_settings
from tasks.model_workers import ModelWorkers, model_cluster
from tasks.orchestration import run_log, task
from tasks.sample import over_sample
from tasks.workers.encoding import DriftRole, SampleRole
from tasks.workers.start import start

_MIN_EXAMPLES = 128  # in a sample that drift is measured on
_MEMORY_SHARE = 0.25  # of a worker's memory, for the codes of a sample


def calibrate_whitening(config: Config, plan: UpdatePlan, lease: Lease, model_workers: ModelWorkers) -> UpdatePlan:
    """The plan with the whitening of its checkpoint, measured over the whole corpus."""
    calibrated = calibrate(config, replace(plan.build, shards=plan.listing.shards), lease, model_workers)
    build = replace(plan.build, spec=calibrated.spec, calibration_seconds=calibrated.calibration_seconds)
    return replace(plan, build=build)


@task("decide on older rows", retried=True)
def decide_older_rows(config: Config, plan: UpdatePlan) -> tuple[UpdatePlan, tuple[PartDrift, ...]]:
    """Measure the drift of the rows of every older checkpoint and decide what happens to them (policy `auto`).

    Rows of files that left the corpus cannot be computed again; a part that has only such rows stays as it is.
    """
    drifts = []
    followers, refreshed = set[str](), set[str]()
    for part in plan.base.parts:
        started, shards = time.perf_counter(), plan.older_shards({part.spec})
        drift = _measure(config, plan, part, shards) if shards else CheckpointDrift()
        if not drift.rows:
            continue
        is_near = 1 - drift.cosine <= config.update.max_drift
        (followers if is_near else refreshed).add(part.spec)
        drifts.append(
            PartDrift(
                part.checkpoint, part.rows, drift.rows, drift.cosine, drift.correlation,
                "follows" if is_near else "refreshed", time.perf_counter() - started,
            )
        )  # fmt: skip
        run_log().info(
            "checkpoint %s: %d of %d rows sampled, cosine %.3f of old and new gradients, rank correlation %s of "
            "scores; its rows %s",
            part.checkpoint, drift.rows, part.rows, drift.cosine,
            "unknown" if drift.correlation is None else f"{drift.correlation:.3f}",
            "are searched at the new checkpoint" if is_near else "are computed again (update.max_drift)",
        )  # fmt: skip
    return plan.with_decisions(followers, refreshed), tuple(drifts)


def _measure(config: Config, plan: UpdatePlan, part: Part, shards: Sequence[ShardRef]) -> CheckpointDrift:
    sample = _sample(config, plan, shards)
    specs, version = (plan.build.spec.to_json(), part.spec_json), plan.base.factors_version
    with (
        model_cluster(config) as resources,
        Workers(
            lambda: start(DriftRole, resources, config, *specs, version, with_model=True),
            min(resources.workers, part_count(sample)), model_settings(config),
        ) as workers,
    ):  # fmt: skip
        drifts = over_sample(
            workers,
            sample,
            call=lambda host, _, shards: host.call("measure", shards),
            counts=lambda drift: (drift.rows, 0),
            title="measure drift",
            activity="measuring the drift of",
        )
    return sum(drifts, start=CheckpointDrift())


def _sample(config: Config, plan: UpdatePlan, shards: Sequence[ShardRef]) -> list[SampledShard]:
    """`update.sample_share` of the records of some shards, drawn from all of them; at most as fit in a worker."""
    records = sum(shard.rows for shard in shards)
    limit = int(_MEMORY_SHARE * config.compute.memory_gb * 2**30 / plan.build.layout.bytes_per_example)
    examples = max(round(config.update.sample_share * records), _MIN_EXAMPLES)
    return calibration_sample(shards, min(examples, records, max(limit, 1)))


def fit_with_sample(config: Config, plan: UpdatePlan, rows: Inventory, lease: Lease) -> Fit:
    """Fit the curvature at a new checkpoint over its own rows and over a sample that represents the older rows.

    Args:
        config: config of the update.
        plan: plan of the update; it lists the shards of older rows.
        rows: rows of the new checkpoint, in the newest version of the factors; may be empty.
        lease: lease of the index, held by this process.
    """
    started = time.perf_counter()
    store, spec, settings = Store(config.index, config.storage), plan.build.spec, plan.build.curvature
    sample, older = _sample(config, plan, plan.older_shards()), plan.older_rows
    sampled = [[part.shard.key, part.examples] for part in sample]
    # with the version, which a repair raises, so that layers that were damaged are not taken for fitted ones
    base, files = plan.base.factors_version, sorted(rows.files)
    curvature_id = fit_id(spec.hash, base, files, sampled, older, asdict(settings))
    missing = missing_layers(store, spec, curvature_id)
    groups = memory_groups(spec, settings, rows.rows + older, config.compute, missing)
    dims, examples = [layer.dim for layer in spec.layers], sum(part.examples for part in sample)
    passes = len(groups) * count_passes(settings)
    with model_cluster(config) as resources:
        count, spec_json = min(resources.workers, len(sample)), spec.to_json()
        sample_scanners = Scanners(
            lambda: start(SampleRole, resources, config, spec_json, with_model=True),
            [sample[worker::count] for worker in range(count)],
            "fit a sample of older rows", passes * examples, model_settings(config),
        )  # fmt: skip
        new_scanners = row_scanners(
            store, config.compute, spec, rows, resources, "fit new rows", passes, shares_cores=True
        )
        with sample_scanners, new_scanners:
            for group in groups:
                fitted: dict[int, LayerCurvature] = {
                    layer: extrapolate(curvature, older, settings)
                    for layer, curvature in fit_layers(
                        group, dims, examples, settings, sample_scanners.scan
                    ).items()
                }
                if rows.rows:
                    new = fit_layers(group, dims, rows.rows, settings, new_scanners.scan)
                    fitted = {layer: merge(old, new[layer], settings) for layer, old in fitted.items()}
                write_group(store, spec, curvature_id, fitted, lease)
    seconds = time.perf_counter() - started
    return Fit(curvature_id, store.curvatures.version(), "fitted", 0, seconds, older)
