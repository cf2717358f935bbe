"""The steps of a build: plan, index the shards in waves, fit the curvature, publish a generation."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from lorif_core.config import Config
from lorif_core.errors import IncompleteBuildError, UserError
from lorif_core.plan import BuildPlan, check_curvature, make_plan
from lorif_core.shard import Receipt
from lorif_core.spec import ShardRef
from lorif_core.store import Generation, Store, now
from tasks.actors import IndexActor, start, stop
from tasks.cluster import cluster
from tasks.curvature import fit_distributed
from tasks.dispatch import Failed, dispatch
from tasks.progress import Progress
from tasks.retry import worth_retrying

# A wave is one commit: large enough that versions stay few, soon enough that a kill costs little.
_SHARDS_PER_WAVE = 16
_SECONDS_PER_WAVE = 60.0


@dataclass(frozen=True, slots=True)
class IndexedRows:
    """What indexing left in the factors table, and what it cost."""

    version: int
    rows: int
    tokens: int
    skipped: tuple[tuple[str, str], ...]
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
    name="index shards", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2, retry_condition_fn=worth_retrying
)
def index_shards(config: Config, plan: BuildPlan) -> IndexedRows:
    """Index the shards that are not committed yet and commit them wave by wave.

    Raises:
        IncompleteBuildError: shards failed every attempt; they are listed, the others are committed.
    """
    started = time.perf_counter()
    store = Store(config.index, config.storage)
    store.create(plan.spec)
    wanted = {shard.key for shard in plan.shards}
    since = store.factors_version()  # before looking: what another build commits from here on is not doubled
    committed = store.keep_only(wanted)
    pending = [shard for shard in plan.shards if shard.key not in committed]
    receipts = _index_pending(config, plan, store, pending, since) if pending else []
    version = store.factors_version()
    _check_complete(store, receipts)
    rows, tokens = store.counts(version)
    if rows == 0:
        raise UserError(f"no example of the corpus {config.corpus.uri} has a scored token; check its columns")
    run = sum(receipt.tokens for receipt in receipts)
    padded = sum(receipt.padded_tokens for receipt in receipts)
    return IndexedRows(
        version,
        rows,
        tokens,
        tuple(store.skipped(wanted)),
        1 - run / padded if padded else 0.0,
        time.perf_counter() - started,
    )


def _check_complete(store: Store, receipts: Sequence[Receipt]) -> None:
    """Never a silent partial index: every shard that gave rows must be in the table."""
    missing = {receipt.shard for receipt in receipts if receipt.rows} - store.committed_shards()
    if missing:
        raise IncompleteBuildError(
            f"{len(missing)} indexed shards are not in the table, nothing was published: "
            f"{'; '.join(sorted(missing)[:10])}; run the build again, it resumes"
        )


def _index_pending(
    config: Config, plan: BuildPlan, store: Store, pending: Sequence[ShardRef], since: int
) -> list[Receipt]:
    receipts: list[Receipt] = []
    failed: list[Failed] = []
    wave: list[Receipt] = []
    wave_began = time.monotonic()
    done = plan.rows - sum(shard.rows for shard in pending)
    with cluster(config.compute) as resources, Progress("index shards", plan.rows, done) as progress:
        count = min(resources.workers, len(pending))
        actors = start(IndexActor, count, resources, config, plan.spec.to_json(), with_model=True)
        try:
            for outcome in dispatch(actors, pending, lambda actor, shard: actor.index.remote(shard)):
                if isinstance(outcome, Failed):
                    failed.append(outcome)
                    continue
                wave.append(outcome.result)
                progress.advance(outcome.item.rows, outcome.result.tokens)
                if len(wave) >= _SHARDS_PER_WAVE or time.monotonic() - wave_began > _SECONDS_PER_WAVE:
                    receipts += _commit(store, wave, since)
                    wave, wave_began = [], time.monotonic()
        finally:
            receipts += _commit(store, wave, since)  # also when a worker failed: what is finished is kept
            stop(actors)
    if failed:
        listed = "; ".join(f"{failure.item.key} ({failure.cause})" for failure in failed[:10])
        raise IncompleteBuildError(
            f"{len(failed)} of {len(pending)} shards failed, nothing was published: {listed}; mend them and run "
            f"the build again, it resumes"
        )
    return receipts


def _commit(store: Store, wave: Sequence[Receipt], since: int) -> Sequence[Receipt]:
    store.commit_wave(wave, since)
    return wave


@task(
    name="fit curvature",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=2,
    retry_condition_fn=worth_retrying,
)
def fit_curvature(config: Config, plan: BuildPlan, indexed: IndexedRows) -> tuple[str, int, float]:
    """Fit and write the curvature; (id, version of the table, seconds)."""
    started = time.perf_counter()
    store = Store(config.index, config.storage)
    check_curvature(config, plan.spec.layers, indexed.rows)
    curvature_id = uuid.uuid4().hex[:16]
    version = store.curvature_version()
    if config.curvature.kind != "none":
        names = [layer.name for layer in plan.spec.layers]
        with cluster(config.compute) as resources:
            for group in fit_distributed(config, plan, store, indexed.version, indexed.rows, resources):
                version = store.write_curvature(
                    curvature_id, {index: (names[index], fitted) for index, fitted in group.items()}
                )
    return curvature_id, version, time.perf_counter() - started


def _lasting(path: str) -> str:
    """A local checkpoint's absolute path, so that a query from another folder finds it; a hub id as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path


@task(name="publish generation", cache_policy=NO_CACHE)
def publish_generation(
    config: Config, plan: BuildPlan, indexed: IndexedRows, curvature: tuple[str, int, float]
) -> Generation:
    """Append the generation that readers will see, and show it as an artifact."""
    store = Store(config.index, config.storage)
    curvature_id, curvature_version, curvature_seconds = curvature
    previous = store.generations()
    generation = store.publish(
        Generation(
            generation=previous[-1].generation + 1 if previous else 1,
            created_at=now(),
            factors_version=indexed.version,
            curvature_version=curvature_version,
            curvature=curvature_id,
            curvature_kind=config.curvature.kind,
            spec=plan.spec.hash,
            spec_json=plan.spec.to_json(),
            checkpoint=plan.spec.checkpoint,
            model_path=_lasting(config.model.path),
            model_revision=config.model.revision,
            rows=indexed.rows,
            tokens=indexed.tokens,
            coverage_json=json.dumps(asdict(plan.coverage)),
            skipped_json=json.dumps(indexed.skipped),
            timings_json=json.dumps({"index": indexed.seconds, "curvature": curvature_seconds}),
        )
    )
    create_table_artifact(
        key="generation",
        table=[
            {"generation": generation.generation, "rows": generation.rows, "tokens": generation.tokens,
             "skipped": len(indexed.skipped), "padding waste": f"{indexed.padding_waste:.2%}",
             "index seconds": round(indexed.seconds, 1), "curvature seconds": round(curvature_seconds, 1)}
        ],
        description=f"Published generation {generation.generation} of {config.index}",
    )  # fmt: skip
    return generation
