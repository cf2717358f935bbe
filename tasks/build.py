"""The steps of a build: plan, index the shards in waves, fit the curvature, publish a generation."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from lorif_core.config import Config
from lorif_core.datafiles import DataFiles
from lorif_core.errors import IncompleteBuildError, ShardInputError, UserError
from lorif_core.generation import Generation, Part, generation_of
from lorif_core.lease import Lease
from lorif_core.plan import BuildPlan, check_curvature, make_plan
from lorif_core.receipts import Receipt, Receipts
from lorif_core.spec import ShardRef
from lorif_core.store import Store, now
from tasks.actors import SHARDS_AT_ONCE, IndexActor, start
from tasks.cluster import cluster
from tasks.curvature import fit_distributed
from tasks.dispatch import Failed, Workers
from tasks.progress import Progress
from tasks.retry import RETRY_DELAYS, worth_retrying
from tasks.waves import Waves

_LISTED = 10


@dataclass(frozen=True, slots=True)
class IndexedRows:
    """What indexing left in the factors table, and what it cost."""

    version: int
    rows: int
    tokens: int
    skipped: tuple[tuple[str, str], ...]
    quarantined: tuple[tuple[str, str], ...]
    padding_waste: float
    seconds: float


@task(name="plan", cache_policy=NO_CACHE)
def plan_build(config: Config) -> BuildPlan:
    """Check everything before anything is written, and say what will be done."""
    log = get_run_logger()
    plan = make_plan(config)
    log.info("%d records in %d shards, %d layers", plan.rows, len(plan.shards), len(plan.spec.layers))
    log.info("%s", plan.coverage.sentence())
    log.info(
        "%.0f bytes per example; dense (LoGRA) would take %.0f",
        plan.layout.bytes_per_example,
        plan.layout.dense_bytes_per_example(),
    )
    return plan


@task(
    name="index shards",
    cache_policy=NO_CACHE,
    retries=len(RETRY_DELAYS),
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=worth_retrying,
)
def index_shards(config: Config, plan: BuildPlan, lease: Lease, publish_incomplete: bool) -> IndexedRows:
    """Index the shards that are not committed yet and commit them wave by wave.

    Args:
        config: the build's configuration.
        plan: what to index.
        lease: of the index, held by this process.
        publish_incomplete: go on without the shards that failed every attempt.

    Raises:
        IncompleteBuildError: shards failed every attempt; they are listed, the others are committed.
        LeaseHeldError: another process has taken the index over.
        StoreUnavailableError: the store keeps failing.
    """
    started = time.perf_counter()
    store, receipts = Store(config.index, config.storage), Receipts(config.index, config.storage)
    lease.confirm()
    store.create(plan.spec)
    waves = Waves(store, receipts, lease, plan.spec.hash, store.factors_version())
    wanted = {shard.key for shard in plan.shards}
    committed = store.keep_only(wanted)
    missing = [shard.key for shard in plan.shards if shard.key not in committed]
    waves.adopt(DataFiles(config.index, config.storage).adoptable(receipts.of_shards(plan.spec.hash, missing)))
    adopted = {receipt.shard for receipt in waves.committed}
    if adopted:
        get_run_logger().info("%d shards that an earlier run had finished are adopted", len(adopted))
    pending = [shard for shard in plan.shards if shard.key not in committed | adopted]
    failed = _index_pending(config, plan, pending, waves) if pending else []
    _refuse_incomplete(plan, failed, publish_incomplete)
    _check_complete(store, waves.committed)
    version = store.factors_version()
    rows, tokens = store.counts(version)
    if rows == 0:
        raise UserError(f"no example of the corpus {config.corpus.uri} has a scored token; check its columns")
    run = sum(receipt.tokens for receipt in waves.committed)
    padded = sum(receipt.padded_tokens for receipt in waves.committed)
    return IndexedRows(
        version,
        rows,
        tokens,
        tuple(store.skipped(wanted)),
        (*plan.damaged, *((failure.item.key, failure.cause) for failure in failed)),
        1 - run / padded if padded else 0.0,
        time.perf_counter() - started,
    )


def _index_pending(config: Config, plan: BuildPlan, pending: Sequence[ShardRef], waves: Waves) -> list[Failed]:
    """Index shards on all workers and commit them; those that failed every attempt."""
    failed: list[Failed] = []
    done = plan.rows - sum(shard.rows for shard in pending)
    with cluster(config.compute) as resources, Progress("index shards", plan.rows, done) as progress:
        spec = plan.spec.to_json()
        count = min(resources.workers, len(pending))
        with Workers(lambda: start(IndexActor, resources, config, spec, with_model=True), count) as workers:
            outcomes = workers.run(
                pending, lambda actor, shard: actor.index.remote(shard), in_flight=SHARDS_AT_ONCE
            )
            for outcome in outcomes:
                if isinstance(outcome, Failed):
                    failed.append(outcome)
                else:
                    progress.advance(outcome.item.rows, outcome.result.tokens)
                    waves.add(outcome.result)
        waves.commit()
    return failed


def _refuse_incomplete(plan: BuildPlan, failed: Sequence[Failed], publish_incomplete: bool) -> None:
    """Never a silent partial index: what is missing is listed, and left out only on demand."""
    causes = [f"{name} ({cause})" for name, cause in plan.damaged]
    causes += [f"{failure.item.key} ({failure.cause})" for failure in failed]
    if not causes:
        return
    listed = "; ".join(causes[:_LISTED]) + (f"; and {len(causes) - _LISTED} more" if len(causes) > _LISTED else "")
    if publish_incomplete:
        get_run_logger().warning("%d quarantined, and published without: %s", len(causes), listed)
        return
    input_only = all(isinstance(failure.fault, ShardInputError) for failure in failed)
    raise IncompleteBuildError(
        f"{len(causes)} shards or files are quarantined, nothing was published: {listed}; mend them and run the "
        f"build again, it resumes, or add --publish-incomplete to go on without them",
        exit_code=2 if input_only else 1,
    )


def _check_complete(store: Store, receipts: Sequence[Receipt]) -> None:
    missing = {receipt.shard for receipt in receipts if receipt.rows} - store.committed_shards()
    if missing:
        raise IncompleteBuildError(
            f"{len(missing)} indexed shards are not in the table, nothing was published: "
            f"{'; '.join(sorted(missing)[:_LISTED])}; run the build again, it resumes"
        )


@task(
    name="fit curvature",
    cache_policy=NO_CACHE,
    retries=len(RETRY_DELAYS),
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=worth_retrying,
)
def fit_curvature(config: Config, plan: BuildPlan, indexed: IndexedRows, lease: Lease) -> tuple[str, int, float]:
    """Fit and write the curvature; (id, version of the table, seconds).

    The id names the rows and the settings, so a fit that was killed goes on with the layers that are missing.
    """
    started = time.perf_counter()
    store = Store(config.index, config.storage)
    check_curvature(config, plan.spec.layers, indexed.rows)
    curvature_id = _curvature_id(plan, indexed)
    if config.curvature.kind != "none":
        names = [layer.name for layer in plan.spec.layers]
        missing = sorted(set(range(len(names))) - store.fitted_layers(curvature_id))
        with cluster(config.compute) as resources:
            for group in fit_distributed(config, plan, store, indexed.version, indexed.rows, missing, resources):
                lease.confirm()
                store.write_curvature(
                    curvature_id, {index: (names[index], fitted) for index, fitted in group.items()}
                )
    return curvature_id, store.curvature_version(), time.perf_counter() - started


def _curvature_id(plan: BuildPlan, indexed: IndexedRows) -> str:
    fitted = [plan.spec.hash, indexed.version, asdict(plan.curvature)]
    return hashlib.sha256(json.dumps(fitted, sort_keys=True).encode()).hexdigest()[:16]


def _lasting(path: str) -> str:
    """A local checkpoint's absolute path, so that a query from another folder finds it; a hub id as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path


@task(
    name="publish generation",
    cache_policy=NO_CACHE,
    retries=len(RETRY_DELAYS),
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=worth_retrying,
)
def publish_generation(
    config: Config, plan: BuildPlan, indexed: IndexedRows, curvature: tuple[str, int, float], lease: Lease
) -> Generation:
    """Append the generation that readers will see, and show it as an artifact.

    A build that changes nothing, such as one that is run again because it died at its very end, publishes nothing.
    """
    store = Store(config.index, config.storage)
    curvature_id, curvature_version, curvature_seconds = curvature
    previous = store.generations()
    part = Part(
        spec_json=plan.spec.to_json(),
        checkpoint=plan.spec.checkpoint,
        model_path=_lasting(config.model.path),
        model_revision=config.model.revision,
        curvature=curvature_id,
        curvature_kind=config.curvature.kind,
        factored_query=config.query.factored,
        rows=indexed.rows,
        tokens=indexed.tokens,
    )
    generation = generation_of(
        [part],
        generation=previous[-1].generation + 1 if previous else 1,
        created_at=now(),
        factors_version=indexed.version,
        curvature_version=curvature_version,
        coverage_json=json.dumps(asdict(plan.coverage)),
        skipped_json=json.dumps(indexed.skipped),
        quarantined_json=json.dumps(indexed.quarantined),
        timings_json=json.dumps({"index": indexed.seconds, "curvature": curvature_seconds}),
    )
    if previous and generation.shows_what(previous[-1]):
        get_run_logger().info("nothing has changed since generation %d, which stands", previous[-1].generation)
        return previous[-1]
    lease.confirm()
    store.publish(generation)
    create_table_artifact(
        key="generation",
        table=[
            {"generation": generation.generation, "rows": generation.rows, "tokens": generation.tokens,
             "skipped": len(indexed.skipped), "quarantined": len(indexed.quarantined),
             "padding waste": f"{indexed.padding_waste:.2%}",
             "index seconds": round(indexed.seconds, 1), "curvature seconds": round(curvature_seconds, 1)}
        ],
        description=f"Published generation {generation.generation} of {config.index}",
    )  # fmt: skip
    return generation
