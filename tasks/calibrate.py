"""The calibration of whitened projections: workers sum over samples of shards, add the sums, and compute roots.

Sums go from worker to worker through Ray's object store; this process only knows where they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorif_core.config import Config
from lorif_core.errors import LorifError
from lorif_core.lifecycle.calibrate import (
    Counts,
    GroupSummary,
    Mixture,
    SampledShard,
    calibration_sample,
    layer_ranges,
    part_count,
    sample_size,
    total_counts,
    whitening_header,
)
from lorif_core.lifecycle.indexing import no_scored_token
from lorif_core.lifecycle.optimizer_scales import with_scales
from lorif_core.lifecycle.plan import BuildPlan
from lorif_core.spec import IndexSpec
from lorif_core.storage.lease import Lease
from lorif_core.tables.store import Store
from tasks.dispatch import Failed, Workers
from tasks.model_workers import ModelWorkers
from tasks.orchestration import run_log, task
from tasks.sample import over_sample
from tasks.workers.host import Host


@task("calibrate", retried=True)
def calibrate(config: Config, plan: BuildPlan, lease: Lease, model_workers: ModelWorkers) -> BuildPlan:
    """The plan with a whitening: the one that the index has for the checkpoint, or one that is measured now.

    The scales of Adam's metric come first, because the whitening is that of scaled gradients.

    Raises:
        UserError: no example of the sample has a scored token, or as `with_scales`.
        LeaseHeldError: another process has taken over the index.
    """
    started, store = model_workers.clock(), Store(config.index, config.storage)
    # another run may have calibrated since this one was planned
    spec = store.with_stored_whitening(with_scales(config, plan.spec, lease))
    if not spec.projection.is_whitened or spec.projection.whitening is not None:
        return replace(plan, spec=spec)
    sample = calibration_sample(plan.shards, sample_size(plan.spec.projection, plan.rows))
    measured = measure(model_workers, spec, store, lease, sample)
    if measured is None:
        raise no_scored_token(config)
    run_log().info("calibrated on %d examples, %d tokens", measured.counts.examples, measured.counts.tokens)
    spec = spec.with_whitening(measured.name)  # from now on fixed for all rows of this checkpoint
    return replace(plan, spec=spec, calibration_seconds=model_workers.clock() - started)


@dataclass(frozen=True, slots=True)
class MeasuredWhitening:
    """A whitening that is stored now.

    Attributes:
        name: its name.
        counts: tokens and examples of the sample.
        groups: its sides, group by group of layers.
    """

    name: str
    counts: Counts
    groups: list[GroupSummary]


def measure(
    model_workers: ModelWorkers,
    spec: IndexSpec,
    store: Store,
    lease: Lease,
    sample: Sequence[SampledShard],
    mixture: Mixture | None = None,
) -> MeasuredWhitening | None:
    """Measure covariances over a sample of shards, and store them with their roots; all workers share the work.

    Args:
        model_workers: the workers.
        spec: spec of the rows; its whitening does not matter.
        store: the tables.
        lease: lease of the index, held by this process.
        sample: the sample.
        mixture: what the covariances are mixed into; None if they whiten the rows of the spec.

    Returns:
        None if no example of the sample has a scored token.
    """
    spec_json = spec.to_json()
    with model_workers.step(spec, part_count(sample)) as workers:
        layers = layer_ranges(spec.layers, workers.count)
        sums: dict[int, list[Any]] = {}  # references, by part and group

        def sum_up(host: Host, number: int, part: Sequence[SampledShard]) -> Any:
            counts, *sums[number] = host.call("sums", spec_json, part, layers, results=1 + len(layers))
            return counts

        counts = total_counts(
            over_sample(
                workers, sample, sum_up, lambda part: (part.examples, part.tokens), "calibrate", "calibrating on"
            )
        )
        if not counts.tokens:
            return None
        whitened: dict[int, Any] = {}  # references

        def whiten(host: Host, group: int) -> Any:
            parts = [sums[number][group] for number in sorted(sums)]
            summary, whitened[group] = host.call("whiten", spec_json, parts, counts.tokens, mixture, results=2)
            return summary

        groups: list[GroupSummary] = _each(workers, range(len(layers)), whiten)
        header = whitening_header(spec, counts, groups, mixture)
        lease.confirm()
        store.whitenings.create()
        fragments = _each(
            workers, range(len(layers)),
            lambda host, group: host.call("write_whitening", spec_json, header, whitened[group]),
        )  # fmt: skip
    lease.confirm()
    store.whitenings.commit(header.name, [fragment for written in fragments for fragment in written])
    return MeasuredWhitening(header.name, counts, groups)


def _each(workers: Workers, items: Sequence[int], call: Callable[[Host, int], Any]) -> list[Any]:
    """The results of a call for every item, in the order of the items.

    Raises:
        LorifError: an item failed every attempt.
    """
    results: dict[int, Any] = {}
    for outcome in workers.run(items, call, in_flight=1):
        if isinstance(outcome, Failed):
            raise outcome.fault or LorifError(f"computing the whitening failed: {outcome.cause}")
        results[outcome.item] = outcome.result
    return [results[item] for item in items]
