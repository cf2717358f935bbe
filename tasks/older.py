"""Rows of older checkpoints after continued pretraining.

A sample of them at the new checkpoint says how far they have moved, and gives the new checkpoint its curvature.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace

from prefect import get_run_logger, task

from lorif_core.config import Config
from lorif_core.curvature.merge import merge, standing_for
from lorif_core.curvature.randomized_svd import fit_layers
from lorif_core.curvature.woodbury import LayerCurvature
from lorif_core.lifecycle.calibrate import SampledShard, calibration_sample
from lorif_core.lifecycle.drift import CheckpointDrift
from lorif_core.lifecycle.update import UpdatePlan
from lorif_core.report.changes import PartDrift
from lorif_core.spec import ShardRef
from lorif_core.storage.lease import Lease
from lorif_core.tables.generation import Part
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.store import Store
from tasks.actors import DriftActor, SampleActor, start
from tasks.calibrate import calibrate
from tasks.cluster import cluster
from tasks.curvature import (
    Fit,
    Scanners,
    groups_of,
    missing_layers,
    name_of,
    passes_of,
    row_scanners,
    write_group,
)  # fmt: skip
from tasks.retry import RETRIED
from tasks.sample import over_sample

_FEWEST_EXAMPLES = 128  # that a drift is measured on
_MEMORY_SHARE = 0.25  # of a worker, for the codes of a sample


def settle_whitening(config: Config, plan: UpdatePlan, lease: Lease) -> UpdatePlan:
    """The plan with the whitening of its checkpoint, measured over the whole corpus."""
    build = calibrate(config, replace(plan.build, shards=plan.listing.shards), lease)
    settled = replace(plan.build, spec=build.spec, calibration_seconds=build.calibration_seconds)
    return replace(plan, build=settled)


@task(name="judge older rows", **RETRIED)
def judge_older(config: Config, plan: UpdatePlan) -> tuple[UpdatePlan, tuple[PartDrift, ...]]:
    """Measure the drift of the rows of every older checkpoint, and plan what becomes of them (policy `auto`).

    Rows of files that left the corpus cannot be run again; a part of nothing else is asked as before.
    """
    drifts = []
    followers, refreshed = set[str](), set[str]()
    for part in plan.base.parts:
        started, shards = time.perf_counter(), plan.older({part.spec})
        found = _measure(config, plan, part, shards) if shards else CheckpointDrift()
        if not found.rows:
            continue
        near = 1 - found.cosine <= config.update.max_drift
        (followers if near else refreshed).add(part.spec)
        drifts.append(
            PartDrift(
                part.checkpoint, part.rows, found.rows, found.cosine, found.correlation,
                "follows" if near else "refreshed", time.perf_counter() - started,
            )
        )  # fmt: skip
        get_run_logger().info(
            "checkpoint %s: %d of %d rows sampled, cosine %.3f of old and new gradients, rank correlation %s of "
            "scores; its rows %s",
            part.checkpoint, found.rows, part.rows, found.cosine,
            "unknown" if found.correlation is None else f"{found.correlation:.3f}",
            "are asked at the new checkpoint" if near else "are computed anew (update.max_drift)",
        )  # fmt: skip
    return plan.judged(followers, refreshed), tuple(drifts)


def _measure(config: Config, plan: UpdatePlan, part: Part, shards: Sequence[ShardRef]) -> CheckpointDrift:
    sample = _sample(config, plan, shards)
    texts, version = (plan.build.spec.to_json(), part.spec_json), plan.base.factors_version
    found = over_sample(
        config,
        sample,
        spawn=lambda resources: start(DriftActor, resources, config, *texts, version, with_model=True),
        call=lambda actor, some: actor.measure.remote(some),
        counts=lambda drift: (drift.rows, 0),
        title="measure drift",
        doing="measuring the drift of",
    )
    return sum(found, start=CheckpointDrift())


def _sample(config: Config, plan: UpdatePlan, shards: Sequence[ShardRef]) -> list[SampledShard]:
    """`update.sample_share` of the records of some shards, drawn across all; no more than a worker can hold."""
    records = sum(shard.rows for shard in shards)
    most = int(_MEMORY_SHARE * config.compute.memory_gb * 2**30 / plan.build.layout.bytes_per_example)
    wanted = max(round(config.update.sample_share * records), _FEWEST_EXAMPLES)
    return calibration_sample(shards, min(wanted, records, max(most, 1)))


def fit_with_sample(config: Config, plan: UpdatePlan, rows: Inventory, lease: Lease) -> Fit:
    """Curvature at a checkpoint of the rows that are there, and of those that stay at older ones, by a sample.

    Args:
        config: of the update.
        plan: of it; the shards of older rows are listed.
        rows: of the checkpoint, in the newest version of the factors; there may be none.
        lease: held by this process.
    """
    started = time.perf_counter()
    store, spec, settings = Store(config.index, config.storage), plan.build.spec, plan.build.curvature
    sample, older = _sample(config, plan, plan.older()), plan.older_rows
    drawn = [[one.shard.key, one.examples] for one in sample]
    curvature_id = name_of(spec.hash, sorted(rows.files), drawn, older, asdict(settings))
    missing = missing_layers(store, spec, curvature_id)
    groups = groups_of(spec, settings, rows.rows + older, config.compute, missing)
    dims, examples = [layer.dim for layer in spec.layers], sum(one.examples for one in sample)
    passes = len(groups) * passes_of(settings)
    with cluster(config.compute) as resources:
        count, text = min(resources.workers, len(sample)), spec.to_json()
        of_sample = Scanners(
            lambda: start(SampleActor, resources, config, text, with_model=True),
            [sample[worker::count] for worker in range(count)],
            "fit a sample of older rows", passes * examples,
        )  # fmt: skip
        of_rows = row_scanners(
            store, config.compute, spec, rows, resources, "fit new rows", passes, shares_cores=True
        )
        with of_sample, of_rows:
            for group in groups:
                fitted: dict[int, LayerCurvature] = {
                    layer: standing_for(found, older, settings)
                    for layer, found in fit_layers(group, dims, examples, settings, of_sample.scan).items()
                }
                if rows.rows:
                    new = fit_layers(group, dims, rows.rows, settings, of_rows.scan)
                    fitted = {layer: merge(found, new[layer], settings) for layer, found in fitted.items()}
                write_group(store, spec, curvature_id, fitted, lease)
    seconds = time.perf_counter() - started
    return Fit(curvature_id, store.curvatures.version(), "fitted", 0, seconds, older)
