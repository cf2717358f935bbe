"""The steps of batch attribution: fold the queries, scan the index on all workers, write the answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from lorif_core.answers import Attribution, check_out_folder, write_answers
from lorif_core.config import Config
from lorif_core.errors import LorifError
from lorif_core.generation import Generation
from lorif_core.index import Index
from lorif_core.model import check_same_weights
from lorif_core.queries import Query, read_queries
from lorif_core.scoring import FoldedQueries, queries_at_once
from lorif_core.store import Store
from lorif_core.terms import PLAIN, Terms, make_terms
from lorif_core.topk import TopK
from tasks.actors import QueryActor, ScoreActor, start
from tasks.cluster import cluster
from tasks.dispatch import Failed, Workers
from tasks.outcome import link
from tasks.progress import Progress
from tasks.retry import RETRIED

_FRAGMENTS_PER_CALL = 8


@dataclass(frozen=True, slots=True)
class Share:
    """Fragments of one part of a generation, by its number."""

    part: int
    fragments: list[int]


@task(name="attribute", **RETRIED)
def attribute_queries(
    config: Config, generation: Generation, queries: Sequence[Query], k: int, terms: Terms = PLAIN
) -> list[Attribution]:
    """Score every query against every row of a generation and keep both top ks."""
    store = Store(config.index, config.storage)
    answers: list[Attribution] = []
    with cluster(config.compute) as resources:
        blocks = list(query_blocks(generation, queries, config.compute.memory_gb))
        get_run_logger().info("%d queries in %d blocks", len(queries), len(blocks))
        shares = _shares(store, generation)
        # it works while the scorers wait, so it takes no cores from them
        encoders = Workers(
            lambda: start(
                QueryActor, resources, store, generation, config.model, with_model=True, shares_cores=True
            ),
            1,
        )
        scorers = Workers(
            lambda: start(ScoreActor, resources, store, generation, config.compute.memory_gb),
            min(resources.workers, len(shares)),
        )
        with encoders, scorers, Progress("score rows", generation.rows * len(blocks)) as progress:
            for block in blocks:
                folded, losses = _fold(encoders, block, terms)
                best = [TopK(k) for _ in block]
                for share in _scan(scorers, shares, [ray.put(queries) for queries in folded], best, terms):
                    progress.advance(round(generation.rows * share))
                answers += [Attribution(*answer) for answer in zip(block, losses, best, strict=True)]
    return answers


def _fold(encoders: Workers, block: Sequence[Query], terms: Terms) -> tuple[list[FoldedQueries], list[float]]:
    """Queries of a block folded for every part, and their losses."""
    (outcome,) = encoders.run([block], lambda actor, queries: actor.fold.remote(queries, terms))
    if isinstance(outcome, Failed):
        raise LorifError(f"encoding {len(block)} queries failed: {outcome.cause}")
    return outcome.result


def _shares(store: Store, generation: Generation) -> list[Share]:
    shares = []
    for number, part in enumerate(Index(store, generation).parts):
        fragments = part.fragments()
        shares += [
            Share(number, fragments[start : start + _FRAGMENTS_PER_CALL])
            for start in range(0, len(fragments), _FRAGMENTS_PER_CALL)
        ]
    return shares


def _scan(
    scorers: Workers,
    shares: Sequence[Share],
    folded: Sequence[ray.ObjectRef],
    best: Sequence[TopK],
    terms: Terms,
) -> Iterator[float]:
    """Merge the top k of every share into `best`; yields the part of the fragments just done."""
    total, k = sum(len(share.fragments) for share in shares), best[0].k
    for outcome in scorers.run(
        shares, lambda actor, share: actor.top_k.remote(share.part, folded[share.part], k, share.fragments, terms)
    ):
        if isinstance(outcome, Failed):
            raise LorifError(f"scoring fragments {outcome.item.fragments} failed: {outcome.cause}")
        for kept, found in zip(best, outcome.result, strict=True):
            kept.merge(found)
        yield len(outcome.item.fragments) / total


def query_blocks(generation: Generation, queries: Sequence[Query], memory_gb: float) -> Iterator[Sequence[Query]]:
    """Queries whose dense weights together take at most a quarter of a worker's memory."""
    layers = [layer for part in generation.parts for layer in part.index_spec.layers]
    size = queries_at_once(layers, memory_gb / 4)
    for first in range(0, len(queries), size):
        yield queries[first : first + size]


@task(name="open queries", cache_policy=NO_CACHE)
def open_queries(
    config: Config, queries: str, out: str, where: str | None, normalise: str
) -> tuple[Generation, list[Query], Terms]:
    """The newest generation, the parsed queries and the terms; everything is checked before the scan begins."""
    return check_attribution(config, queries, out, where, normalise)


@task(name="write results", cache_policy=NO_CACHE)
def write_results(
    config: Config, generation: Generation, answers: Sequence[Attribution], out: str, seconds: float, terms: Terms
) -> dict[str, Any]:
    """Write scores, report and summary, and show the summary as an artifact."""
    store = Store(config.index, config.storage)
    title = f"Attribution of {len(answers)} queries{terms}"
    timings = [("attribute", seconds)]
    summary = write_answers(out, store, generation, answers, title, timings, terms=terms)
    create_markdown_artifact(
        f"{len(answers)} queries against generation {generation.generation} ({generation.rows} rows): "
        f"{link('report', f'{out}/report.html')}",
        key="attribution",
    )
    return summary


def check_attribution(
    config: Config, queries: str, out: str, where: str | None = None, normalise: str = "none"
) -> tuple[Generation, list[Query], Terms]:
    """Everything that can be wrong with a batch before work begins.

    Raises:
        UserError: the output folder is not empty, the index or the queries file is not what it should be, or no
            row meets the condition.
    """
    check_out_folder(out, config.storage)
    store = Store(config.index, config.storage)
    generation = store.latest()
    check_same_weights(config.model, config.storage, generation.index_spec)
    parsed = read_queries(queries, config.storage)
    return generation, parsed, make_terms(store, generation.factors_version, where, normalise)
