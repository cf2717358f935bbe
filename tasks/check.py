"""`lorif check`: try everything that a build needs, without building, and estimate the cost of the build."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from lorif_core.config import Config
from lorif_core.corpus.shards import Listing
from lorif_core.errors import LorifError, UserError
from lorif_core.lifecycle.example_length import measured_length
from lorif_core.lifecycle.memory_plan import weight_bytes_of
from lorif_core.lifecycle.plan import (
    BuildPlan,
    check_settings,
    covered,
    list_corpus,
    plan_from_listing,
)
from lorif_core.lifecycle.tracking import tracked_layers
from lorif_core.lifecycle.trial import Trial
from lorif_core.model.loading import Skeleton, load_skeleton
from lorif_core.storage.lease import current_holder
from lorif_core.storage.objects import Objects
from lorif_core.storage.probe import probe_conditional_put
from tasks.cluster import Resources, cluster
from tasks.dispatch import Failed, Workers
from tasks.estimates import Estimates
from tasks.listing import list_on_workers
from tasks.memory import model_settings
from tasks.workers.start import start
from tasks.workers.trial import TrialRole

Value = TypeVar("Value")


class Checks:
    """Runs named checks and continues after one that fails, so that one error reports all problems."""

    def __init__(self) -> None:
        self.findings: dict[str, str] = {}
        self._failures: dict[str, LorifError] = {}

    def run(self, name: str, attempt: Callable[[], tuple[Value, str]]) -> Value | None:
        """Run a check and record its finding; returns its value, or None if it fails."""
        try:
            value, self.findings[name] = attempt()
        except LorifError as error:
            self._failures[name] = error
            return None
        return value

    def stop_if_failed(self) -> None:
        """Raise one error for all failures; a UserError only if every failure is one."""
        if not self._failures:
            return
        first = {str(error): name for name, error in reversed(self._failures.items())}
        message = "; ".join(
            f"{name}: {error}" for name, error in self._failures.items() if first[str(error)] == name
        )
        kind = UserError if all(error.exit_code == 2 for error in self._failures.values()) else LorifError
        raise kind(message)


def check(config: Config) -> dict[str, Any]:
    """Check model, layers, corpus, index location, Ray and a sample; returns findings and plan as plain values.

    The sample runs on a worker, and this process loads no weights.

    Raises:
        UserError: the config or its inputs are not valid; the message has every problem and its fix.
        LorifError: a store or Ray does not answer.
    """
    checks = Checks()
    skeleton = checks.run("model", lambda: _check_model(config))
    listing = checks.run("corpus", lambda: _check_corpus(config))
    checks.run("index", lambda: _check_index(config))
    plan = None
    if skeleton is not None and listing is not None:
        config = checks.run("length", lambda: _check_length(config, skeleton, listing)) or config
        plan = checks.run("plan", lambda: _check_plan(config, skeleton, listing))
    with ExitStack() as connection:
        weights = None if skeleton is None else partial(weight_bytes_of, config, skeleton)
        resources = checks.run("ray", lambda: _check_ray(config, weights, connection))
        trial = None
        if plan is not None and resources is not None:
            trial = checks.run("sample", lambda: _check_sample(config, plan, resources))
    checks.stop_if_failed()
    assert skeleton is not None and plan is not None and trial is not None and resources is not None
    estimates = Estimates(config, plan, skeleton.model, trial, resources)
    return {"checks": checks.findings, "corpus": plan.notes.as_dict(), **estimates.as_dict()}


def _check_model(config: Config) -> tuple[Skeleton, str]:
    skeleton = load_skeleton(config.model, config.storage)
    tracked = tracked_layers(config, skeleton)
    check_settings(config, skeleton, tracked.specs)
    return skeleton, f"{tracked.choice.reason}; {covered(tracked, skeleton).sentence()}"


def _check_corpus(config: Config) -> tuple[Listing, str]:
    listing = list_corpus(config, on_workers=list_on_workers(config))
    if listing.damaged:
        causes = "; ".join(cause for _, cause in listing.damaged)
        raise UserError(
            f"{len(listing.damaged)} files are damaged and would be quarantined: {causes}; restore them, or "
            f"build without them with --publish-incomplete"
        )
    counts = f"{sum(shard.rows for shard in listing.shards):,} records in {len(listing.shards)} shards"
    return listing, "; ".join([counts, *listing.notes.sentences()])


def _check_index(config: Config) -> tuple[bool, str]:
    """Write and delete small objects beside the tables, with several writers at once."""
    objects = Objects(config.index, config.storage)
    probe = probe_conditional_put(objects)
    objects.remove_folder()
    holder = current_holder(objects)
    in_use = "" if holder is None else f"; {holder} is changing it, so a build would wait or be refused"
    return True, f"writable; {probe.sentence()}{in_use}"


def _check_ray(config: Config, weights: Callable[[], int] | None, connection: ExitStack) -> tuple[Resources, str]:
    resources = connection.enter_context(cluster(config.compute, weights))
    size = f"{resources.cpus_per_worker} CPUs and {resources.gpus_per_worker:g} GPUs"
    if resources.fit < resources.workers:
        raise UserError(
            f"compute requests {resources.workers} workers of {size}, but {resources.fit} fit on the current "
            f"nodes; add nodes, or lower compute.workers or compute.gpus_per_worker"
        )
    return resources, f"{resources.workers} workers, each {size}"


def _check_length(config: Config, skeleton: Skeleton, listing: Listing) -> tuple[Config, str]:
    """The config with a number for `max_length`."""
    config, length = measured_length(config, skeleton, listing.shards)
    return config, length.sentence()


def _check_plan(config: Config, skeleton: Skeleton, listing: Listing) -> tuple[BuildPlan, str]:
    plan = plan_from_listing(config, skeleton, listing)
    return plan, f"spec {plan.spec.hash}, {plan.layout.bytes_per_example:,.0f} bytes per example"


def _check_sample(config: Config, plan: BuildPlan, resources: Resources) -> tuple[Trial, str]:
    """Run a sample on a worker like those of a build."""
    spec_json = plan.spec.to_json()
    with Workers(
        lambda: start(TrialRole, resources, config, with_model=True), 1, model_settings(config)
    ) as workers:
        (outcome,) = workers.run(plan.shards[:1], lambda host, shard: host.call("run", spec_json, shard))
    if isinstance(outcome, Failed):
        raise outcome.fault or LorifError(f"running a sample on a worker failed: {outcome.cause}")
    trial: Trial = outcome.result
    rate = trial.indexing.tokens / trial.indexing.seconds
    return trial, f"{trial.indexing.tokens:,} tokens run at {rate:,.0f} tokens/s"
