"""The steps of batch attribution: fold a block of queries, scan the index on all workers, keep the answers.

A block that is kept is never asked again, so a run that was killed goes on with those that are missing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import ray
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from lorif_core.config import Config
from lorif_core.errors import LorifError
from lorif_core.model.loading import check_same_weights
from lorif_core.report.batch_outputs import write_answers
from lorif_core.report.batch_run import QueryBlock, Unfinished, begun_in, open_unfinished
from lorif_core.report.block_answers import Attribution
from lorif_core.search.explanation import Explanation
from lorif_core.search.index import Index
from lorif_core.search.options import Terms
from lorif_core.search.queries import Query, read_queries
from lorif_core.search.top_k import TopK
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store
from tasks.actors import QueryActor, ScoreActor, start
from tasks.cluster import Resources, cluster
from tasks.dispatch import Failed, Workers
from tasks.outcome import link
from tasks.progress import Progress
from tasks.retry import RETRIED

_FRAGMENTS_PER_CALL = range(8, 65)  # a fragment has 512 rows at most
_CALLS = 64  # of a block, if all were of the small size
_LARGE = 4  # times a small one; fewer to merge, while small ones at the end let workers end together
_LARGE_SHARE = 0.75  # of the fragments


@dataclass(frozen=True, slots=True)
class Share:
    """Fragments of one part of a generation, by its number."""

    part: int
    fragments: list[int]


class ScanError(LorifError):
    """Some fragments could not be scored."""


@task(name="attribute", **RETRIED)
def attribute_queries(config: Config, run: Unfinished) -> None:
    """Score every query that is not answered yet against every row, and keep both top ks, block by block."""
    with cluster(config.compute) as resources:
        try:
            _answer_missing(config, run, resources)
        except ScanError as error:
            # the node that held a block's folded queries may be gone, and they with it
            get_run_logger().warning("%s; going on with new workers", error)
            _answer_missing(config, run, resources)


def _answer_missing(config: Config, run: Unfinished, resources: Resources) -> None:
    missing = run.missing()
    get_run_logger().info("%d queries: %d of %d blocks to do", len(run.queries), len(missing), len(run.blocks))
    if not missing:
        return
    shares = shares_of(Index(Store(config.index, config.storage), run.generation))
    rows, done = run.generation.rows, len(run.blocks) - len(missing)
    with (
        _encoder(config, run.generation, resources) as encoder,
        start_scorers(config, run.generation, resources, len(shares)) as scorers,
        Progress("score rows", rows * len(run.blocks), rows * done) as progress,
    ):
        for block in missing:  # nothing of one in the object store outlives its turn
            losses, folded = _fold(encoder, block.queries, run.terms)
            best = [TopK(run.k) for _ in block.queries]
            for share in scan(scorers, shares, folded, best, run.terms):
                progress.advance(round(rows * share))
            reasons = _explain(encoder, block, best)
            run.keep(block, list(map(Attribution, block.queries, losses, best, reasons)))


def _encoder(config: Config, generation: Generation, resources: Resources) -> Workers:
    """It works while the scorers wait, so it takes no cores from them."""
    store = Store(config.index, config.storage)
    made_from = store, generation, config.model, config.compute.memory_gb
    return Workers(lambda: start(QueryActor, resources, *made_from, with_model=True, shares_cores=True), 1)


def start_scorers(config: Config, generation: Generation, resources: Resources, shares: int) -> Workers:
    """Workers that scan; no more of them than there are shares."""
    store = Store(config.index, config.storage)
    return Workers(
        lambda: start(ScoreActor, resources, store, generation, config.compute.memory_gb),
        min(resources.workers, shares),
    )


def _fold(encoder: Workers, queries: Sequence[Query], terms: Terms) -> tuple[list[float], ray.ObjectRef]:
    """Losses of a block's queries, and where they lie folded for every part."""
    folded: list[ray.ObjectRef] = []

    def call(actor: Any, block: Sequence[Query]) -> ray.ObjectRef:
        losses, weights = actor.fold.remote(block, terms)
        folded.append(weights)
        return losses

    (outcome,) = encoder.run([queries], call)
    if isinstance(outcome, Failed):
        raise LorifError(f"encoding {len(queries)} queries failed: {outcome.cause}")
    return outcome.result, folded[-1]


def _explain(encoder: Workers, block: QueryBlock, best: Sequence[TopK]) -> list[Explanation | None]:
    """Of those of a block's queries that are explained; None for the others."""
    found: list[Explanation | None] = [None] * len(block.queries)
    asked = (block.queries[: block.explained], best[: block.explained])
    for outcome in encoder.run(
        [asked] if block.explained else [], lambda actor, some: actor.explain.remote(*some)
    ):
        if isinstance(outcome, Failed):
            raise LorifError(f"explaining {block.explained} queries failed: {outcome.cause}")
        found[: block.explained] = outcome.result
    return found


def shares_of(index: Index) -> list[Share]:
    """All fragments of an index, in shares that are a worker's work for one call, the large ones first.

    They are the same whatever the workers are, and so are answers: which rows get an exact look depends on those
    before in the share.
    """
    return cut([part.fragments() for part in index.parts])


def cut(held: Sequence[list[int]]) -> list[Share]:
    """Shares of the fragments of every part."""
    wanted = -(-sum(map(len, held)) // _CALLS)
    small = min(max(wanted, _FRAGMENTS_PER_CALL[0]), _FRAGMENTS_PER_CALL[-1])
    shares = []
    for number, fragments in enumerate(held):
        large = int(_LARGE_SHARE * len(fragments)) // (_LARGE * small) * _LARGE * small
        starts = [*range(0, large, _LARGE * small), *range(large, len(fragments), small), len(fragments)]
        shares += [Share(number, fragments[start:stop]) for start, stop in pairwise(starts)]
    return sorted(shares, key=lambda share: -len(share.fragments))


def scan(
    scorers: Workers, shares: Sequence[Share], folded: ray.ObjectRef, best: Sequence[TopK], terms: Terms
) -> Iterator[float]:
    """Merge the top k of every share into `best`, in any order; yields the part of the fragments just done."""
    total, k = sum(len(share.fragments) for share in shares), best[0].k
    for outcome in scorers.run(
        shares, lambda actor, share: actor.top_k.remote(share.part, folded, k, share.fragments, terms)
    ):
        if isinstance(outcome, Failed):
            raise ScanError(f"scoring fragments {outcome.item.fragments} failed: {outcome.cause}")
        for kept, found in zip(best, outcome.result, strict=True):
            kept.merge(found)
        yield len(outcome.item.fragments) / total


@task(name="open queries", cache_policy=NO_CACHE)
def open_queries(
    config: Config, queries: str, out: str, top_k: int, where: str | None, normalise: str
) -> Unfinished:
    """The attribution that is to be done, or to go on; everything is checked before the scan begins."""
    run = check_attribution(config, queries, out, top_k, where, normalise)
    run.begin()
    get_run_logger().info("generation %d, %d queries", run.generation.generation, len(run.queries))
    return run


@task(name="write results", cache_policy=NO_CACHE)
def write_results(config: Config, run: Unfinished, seconds: float) -> dict[str, Any]:
    """Write scores, report and summary, and show the summary as an artifact."""
    store, asked = Store(config.index, config.storage), len(run.queries)
    title, timings = f"Attribution of {asked} queries{run.terms}", [("attribute", seconds)]
    summary = run.summary() or write_answers(
        run.out, store, run.generation, run.answers(), title, timings, terms=run.terms
    )
    create_markdown_artifact(
        f"{asked} queries against generation {run.generation.generation} ({run.generation.rows} rows): "
        f"{link('report', f'{run.out}/report.html')}",
        key="attribution",
    )
    return summary


def check_attribution(
    config: Config, queries: str, out: str, top_k: int, where: str | None = None, normalise: str = "none"
) -> Unfinished:
    """Everything that can be wrong with a batch before work begins; nothing is written.

    Raises:
        UserError: the output folder is in use for something else, the index or the queries file is not what it
            should be, or no row meets the condition.
    """
    begun = begun_in(out, config)
    latest = Store(config.index, config.storage).latest()
    parsed = read_queries(queries, config.storage)
    run = open_unfinished(config, parsed, top_k, out, begun, latest, where, normalise)
    check_same_weights(config.model, config.storage, run.generation.index_spec)
    return run
