"""The steps of batch attribution: fold a block of queries, scan the index on all workers, keep the answers; repeat.

A block that is kept is never asked again, so a run that was killed goes on with those that are missing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from lorif_core.answers import write_answers
from lorif_core.config import Config
from lorif_core.errors import LorifError
from lorif_core.generation import Generation
from lorif_core.index import Index
from lorif_core.model import check_same_weights
from lorif_core.queries import Query, read_queries
from lorif_core.store import Store
from lorif_core.topk import TopK
from lorif_core.unfinished import Unfinished, begun_in, open_unfinished
from tasks.actors import QueryActor, ScoreActor, start
from tasks.cluster import Resources, cluster
from tasks.dispatch import Failed, Workers
from tasks.progress import Progress
from tasks.retry import RETRY_DELAYS, worth_retrying

_LEAST_FRAGMENTS = 8  # of a call: a fragment has 512 rows at most
_CALLS_PER_WORKER = 16  # of a block: so few that merging is cheap, so many that workers end together


@dataclass(frozen=True, slots=True)
class Share:
    """Fragments of one part of a generation, by its number."""

    part: int
    fragments: list[int]


class ScanError(LorifError):
    """Some fragments could not be scored."""


@task(
    name="attribute",
    cache_policy=NO_CACHE,
    retries=len(RETRY_DELAYS),
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=worth_retrying,
)
def attribute_queries(config: Config, run: Unfinished) -> None:
    """Score every query that is not answered yet against every row, and keep both top ks, block by block."""
    missing = run.missing()
    get_run_logger().info("%d queries: %d of %d blocks to do", len(run.queries), len(missing), len(run.blocks))
    if not missing:
        return
    with cluster(config.compute) as resources:
        shares = shares_of(Index(Store(config.index, config.storage), run.generation), resources.workers)
        rows, done = run.generation.rows, len(run.blocks) - len(missing)
        with (
            _encoder(config, run.generation, resources) as encoder,
            start_scorers(config, run.generation, resources, len(shares)) as scorers,
            Progress("score rows", rows * len(run.blocks), rows * done) as progress,
        ):
            for block in missing:
                run.keep(block, *_answer(encoder, scorers, shares, block.queries, run, progress))


def _encoder(config: Config, generation: Generation, resources: Resources) -> Workers:
    """It works while the scorers wait, so it takes no cores from them."""
    store = Store(config.index, config.storage)
    return Workers(
        lambda: start(QueryActor, resources, store, generation, config.model, with_model=True, shares_cores=True),
        1,
    )


def start_scorers(config: Config, generation: Generation, resources: Resources, shares: int) -> Workers:
    """Workers that scan; no more of them than there are shares."""
    store = Store(config.index, config.storage)
    return Workers(
        lambda: start(ScoreActor, resources, store, generation, config.compute.memory_gb),
        min(resources.workers, shares),
    )


def _answer(
    encoder: Workers,
    scorers: Workers,
    shares: Sequence[Share],
    queries: Sequence[Query],
    run: Unfinished,
    progress: Progress,
) -> tuple[list[float], list[TopK]]:
    """Losses and top ks of a block. Nothing in the object store outlives the call."""
    rows = run.generation.rows
    for last in (False, True):
        losses, folded = _fold(encoder, queries)
        scored = 0
        try:
            best = [TopK(run.k) for _ in queries]
            for share in scan(scorers, shares, folded, best):
                scored += round(rows * share)
                progress.advance(round(rows * share))
            return losses, best
        except ScanError as error:
            if last:
                raise
            # the node that held the folded queries may be gone, and they with it
            get_run_logger().warning("%s; folding the block's queries again", error)
            progress.advance(-scored)
    raise AssertionError("unreachable")


def _fold(encoder: Workers, queries: Sequence[Query]) -> tuple[list[float], ray.ObjectRef]:
    """Losses of a block's queries, and where they lie folded for every part."""
    folded: list[ray.ObjectRef] = []

    def call(actor: Any, block: Sequence[Query]) -> ray.ObjectRef:
        losses, weights = actor.fold.remote(block)
        folded.append(weights)
        return losses

    (outcome,) = encoder.run([queries], call)
    if isinstance(outcome, Failed):
        raise LorifError(f"encoding {len(queries)} queries failed: {outcome.cause}")
    return outcome.result, folded[-1]


def shares_of(index: Index, workers: int) -> list[Share]:
    """All fragments of an index, in shares that are a worker's work for one call."""
    held = [part.fragments() for part in index.parts]
    size = max(_LEAST_FRAGMENTS, -(-sum(map(len, held)) // (workers * _CALLS_PER_WORKER)))
    return [
        Share(number, fragments[first : first + size])
        for number, fragments in enumerate(held)
        for first in range(0, len(fragments), size)
    ]


def scan(
    scorers: Workers, shares: Sequence[Share], folded: ray.ObjectRef, best: Sequence[TopK]
) -> Iterator[float]:
    """Merge the top k of every share into `best`, in any order; yields the part of the fragments just done."""
    total, k = sum(len(share.fragments) for share in shares), best[0].k
    for outcome in scorers.run(
        shares, lambda actor, share: actor.top_k.remote(share.part, folded, k, share.fragments)
    ):
        if isinstance(outcome, Failed):
            raise ScanError(f"scoring fragments {outcome.item.fragments} failed: {outcome.cause}")
        for kept, found in zip(best, outcome.result, strict=True):
            kept.merge(found)
        yield len(outcome.item.fragments) / total


@task(name="open queries", cache_policy=NO_CACHE)
def open_queries(config: Config, queries: str, out: str, top_k: int) -> Unfinished:
    """The attribution that is to be done, or to go on; everything is checked before the scan begins."""
    run = check_attribution(config, queries, out, top_k)
    run.begin()
    get_run_logger().info("generation %d, %d queries", run.generation.generation, len(run.queries))
    return run


@task(name="write results", cache_policy=NO_CACHE)
def write_results(config: Config, run: Unfinished, seconds: float) -> dict[str, Any]:
    """Write scores, report and summary, and show the summary as an artifact."""
    store, asked = Store(config.index, config.storage), len(run.queries)
    title = f"Attribution of {asked} queries"
    summary = run.summary() or write_answers(
        run.out, store, run.generation, run.answers(), title, [("attribute", seconds)]
    )
    run.finish()
    create_markdown_artifact(
        f"{asked} queries against generation {run.generation.generation} ({run.generation.rows} rows): "
        f"`{run.out}/report.html`",
        key="attribution",
    )
    return summary


def check_attribution(config: Config, queries: str, out: str, top_k: int) -> Unfinished:
    """Everything that can be wrong with a batch before work begins; nothing is written.

    Raises:
        UserError: the output folder is in use for something else, the index or the queries file is not what it
            should be.
    """
    begun = begun_in(out, config)
    store = Store(config.index, config.storage)
    store.latest()
    run = open_unfinished(config, read_queries(queries, config.storage), top_k, out, begun)
    check_same_weights(config.model, config.storage, run.generation.index_spec)
    return run
