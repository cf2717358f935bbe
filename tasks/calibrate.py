"""The calibration of whitened projections: workers sum over samples of shards; sums are added in a fixed order."""

from collections.abc import Sequence
from dataclasses import replace

from lorif_core.config import Config
from lorif_core.errors import UserError
from lorif_core.gradients.whitening import Covariances
from lorif_core.lifecycle.calibrate import SampledShard, calibration_sample, sample_size
from lorif_core.lifecycle.plan import BuildPlan
from lorif_core.spec import IndexSpec
from lorif_core.storage.lease import Lease
from lorif_core.tables.store import Store
from tasks.model_workers import ModelWorkers
from tasks.orchestration import run_log, task
from tasks.sample import over_sample, part_count


@task("calibrate", retried=True)
def calibrate(config: Config, plan: BuildPlan, lease: Lease, model_workers: ModelWorkers) -> BuildPlan:
    """The plan with a whitening: the one that the index has for the checkpoint, or one that is measured now.

    Raises:
        UserError: no example of the sample has a scored token.
        LeaseHeldError: another process has taken over the index.
    """
    started, store = model_workers.clock(), Store(config.index, config.storage)
    spec = store.with_stored_whitening(plan.spec)  # another run may have calibrated since this one was planned
    if not spec.projection.is_whitened or spec.projection.whitening is not None:
        return replace(plan, spec=spec)
    sample = calibration_sample(plan.shards, sample_size(plan.spec.projection, plan.rows))
    covariances = measure(model_workers, plan.spec, sample)
    if covariances.tokens == 0:
        raise UserError(
            f"no example of the corpus {config.corpus.uri} has a scored token; check the columns that the section "
            f"corpus names"
        )
    run_log().info("calibrated on %d examples, %d tokens", covariances.examples, covariances.tokens)
    spec = spec.with_whitening(covariances.digest())
    lease.confirm()
    store.covariances.write(covariances, spec.layers, spec)  # from now on fixed for all rows of this checkpoint
    return replace(plan, spec=spec, calibration_seconds=model_workers.clock() - started)


def measure(model_workers: ModelWorkers, spec: IndexSpec, sample: Sequence[SampledShard]) -> Covariances:
    """Covariances of projected gradients, before whitening, over a sample of shards; all workers share it."""
    spec_json, total = spec.to_json(), Covariances()
    with model_workers.step(spec, part_count(sample)) as workers:
        parts = over_sample(
            workers,
            sample,
            call=lambda host, part: host.call("covariances", spec_json, part),
            counts=lambda part: (part.examples, part.tokens),
            title="calibrate",
            activity="calibrating on",
        )
    for part in parts:
        total.add(part)
    return total
