"""The calibration of whitened projections: workers sum over samples of shards; sums are added in a fixed order."""

import time
from collections.abc import Sequence
from dataclasses import replace

from prefect import get_run_logger, task

from lorif_core.config import Config
from lorif_core.errors import UserError
from lorif_core.gradients.whitening import Covariances
from lorif_core.lifecycle.calibrate import SampledShard, calibration_sample
from lorif_core.lifecycle.plan import BuildPlan
from lorif_core.spec import IndexSpec
from lorif_core.storage.lease import Lease
from lorif_core.tables.store import Store
from tasks.retry import RETRIED
from tasks.sample import over_sample
from tasks.workers.encoding import CalibrationRole
from tasks.workers.start import start


@task(name="calibrate", **RETRIED)
def calibrate(config: Config, plan: BuildPlan, lease: Lease) -> BuildPlan:
    """The plan with a whitening: the one that the index has for the checkpoint, or one that is measured now.

    Raises:
        UserError: no example of the sample has a scored token.
        LeaseHeldError: another process has taken over the index.
    """
    started, store = time.perf_counter(), Store(config.index, config.storage)
    spec = store.with_stored_whitening(plan.spec)  # another run may have calibrated since this one was planned
    if not spec.projection.is_whitened or spec.projection.whitening is not None:
        return replace(plan, spec=spec)
    sample = calibration_sample(plan.shards, config.projection.calibration_examples)
    covariances = measure(config, plan.spec, sample)
    if covariances.tokens == 0:
        raise UserError(
            f"no example of the corpus {config.corpus.uri} has a scored token; check the columns that the section "
            f"corpus names"
        )
    get_run_logger().info("calibrated on %d examples, %d tokens", covariances.examples, covariances.tokens)
    spec = spec.with_whitening(covariances.digest())
    lease.confirm()
    store.covariances.write(covariances, spec.layers, spec)  # from now on fixed for all rows of this checkpoint
    return replace(plan, spec=spec, calibration_seconds=time.perf_counter() - started)


def measure(config: Config, spec: IndexSpec, sample: Sequence[SampledShard]) -> Covariances:
    """Covariances of projected gradients, before whitening, over a sample of shards; all workers share it."""
    spec_json, total = spec.to_json(), Covariances()
    parts = over_sample(
        config,
        sample,
        spawn=lambda resources: start(CalibrationRole, resources, config, spec_json, with_model=True),
        call=lambda host, part: host.call("covariances", part),
        counts=lambda part: (part.examples, part.tokens),
        title="calibrate",
        activity="calibrating on",
    )
    for part in parts:
        total.add(part)
    return total
