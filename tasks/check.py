"""`lorif check`: try everything that a build needs, without building, and estimate the cost of the build."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from lorif_core.config import Config
from lorif_core.corpus.batches import token_budget_batches
from lorif_core.corpus.shards import Listing, list_shards
from lorif_core.errors import LorifError, UserError
from lorif_core.lifecycle.index_shard import ShardIndexer
from lorif_core.lifecycle.plan import (
    BuildPlan,
    check_settings,
    covered,
    plan_from_listing,
)
from lorif_core.lifecycle.tracking import tracked_layers
from lorif_core.model.loading import Skeleton, load_skeleton
from lorif_core.storage.lease import current_holder
from lorif_core.storage.objects import Objects
from lorif_core.storage.probe import probe_conditional_put
from tasks.cluster import Resources, cluster

_TIMED_BATCHES = 20

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

    Raises:
        UserError: the config or its inputs are not valid; the message has every problem and its fix.
        LorifError: a store or Ray does not answer.
    """
    checks = Checks()
    skeleton = checks.run("model", lambda: _check_model(config))
    listing = checks.run("corpus", lambda: _check_corpus(config))
    checks.run("index", lambda: _check_index(config))
    resources = checks.run("ray", lambda: _check_ray(config))
    plan = None
    if skeleton is not None and listing is not None:
        plan = checks.run("plan", lambda: _check_plan(config, skeleton, listing))
    sample = None if plan is None else checks.run("sample", lambda: _check_sample(config, plan))
    checks.stop_if_failed()
    assert plan is not None and sample is not None and resources is not None
    return {"checks": checks.findings, "corpus": plan.notes.as_dict(), **_costs(plan, sample, resources)}


def _check_model(config: Config) -> tuple[Skeleton, str]:
    skeleton = load_skeleton(config.model, config.storage)
    tracked = tracked_layers(config, skeleton)
    check_settings(config, skeleton, tracked.specs)
    return skeleton, f"{tracked.choice.reason}; {covered(tracked, skeleton).sentence()}"


def _check_corpus(config: Config) -> tuple[Listing, str]:
    listing = list_shards(config.corpus, config.storage)
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


def _check_ray(config: Config) -> tuple[Resources, str]:
    with cluster(config.compute) as resources:
        size = f"{resources.cpus_per_worker} CPUs and {resources.gpus_per_worker:g} GPUs"
        if resources.fit < resources.workers:
            raise UserError(
                f"compute requests {resources.workers} workers of {size}, but {resources.fit} fit on the current "
                f"nodes; add nodes, or lower compute.workers or compute.gpus_per_worker"
            )
        return resources, f"{resources.workers} workers, each {size}"


def _check_plan(config: Config, skeleton: Skeleton, listing: Listing) -> tuple[BuildPlan, str]:
    plan = plan_from_listing(config, skeleton, listing)
    return plan, f"spec {plan.spec.hash}, {plan.layout.bytes_per_example:,.0f} bytes per example"


def _check_sample(config: Config, plan: BuildPlan) -> tuple[dict[str, float], str]:
    sample = _time_sample(config, plan)
    return sample, f"{sample['tokens']:,.0f} tokens run at {sample['tokens_per_second']:,.0f} tokens/s"


def _costs(plan: BuildPlan, sample: dict[str, float], resources: Resources) -> dict[str, Any]:
    tokens = round(sample["tokens_per_record"] * plan.rows)
    examples = round(sample["examples_per_record"] * plan.rows)
    # workers without GPUs share the cores that the sample had for itself
    speedup = resources.workers if resources.gpus_per_worker else 1
    return {
        "records": plan.rows,
        "shards": len(plan.shards),
        "examples": examples,
        "tokens": tokens,
        "layers": len(plan.spec.layers),
        "coverage": plan.coverage.sentence(),
        "spec": plan.spec.hash,
        "bytes_per_example": plan.layout.bytes_per_example,
        "dense_bytes_per_example": plan.layout.dense_bytes_per_example(),
        "index_bytes": plan.layout.bytes_per_example * examples,
        "workers": resources.workers,
        "gpus": resources.workers * resources.gpus_per_worker,
        "tokens_per_second": sample["tokens_per_second"],
        "estimated_hours": tokens / sample["tokens_per_second"] / speedup / 3600,
    }


def _time_sample(config: Config, plan: BuildPlan) -> dict[str, float]:
    """Tokenise the first shard and run up to 20 batches of it; returns rates, and sizes per record."""
    indexer = ShardIndexer(config, plan.spec)
    shard = plan.shards[0]
    examples = list(indexer.read(shard))
    scored = [example for example in examples if example.scored]
    if not scored:
        raise UserError(f"no token of the first shard {shard.key} would be scored; check the corpus columns")
    tokens = sum(len(example.input_ids) for example in examples)
    lengths = [len(example.input_ids) for example in scored]
    batches = token_budget_batches(lengths, config.compute.tokens_per_batch)[:_TIMED_BATCHES]
    timed = [scored[i] for batch in batches for i in batch]
    indexer.encode([scored[i] for i in batches[-1]])  # not timed: the first batch pays for allocations
    started = time.perf_counter()
    indexer.encode(timed)
    seconds = time.perf_counter() - started
    return {
        "tokens_per_record": tokens / shard.rows,
        "examples_per_record": len(examples) / shard.rows,
        "tokens": sum(len(example.input_ids) for example in timed),
        "tokens_per_second": sum(len(example.input_ids) for example in timed) / seconds,
    }
