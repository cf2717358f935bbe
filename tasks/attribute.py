"""The steps of batch attribution: fold the queries, scan the index on all workers, write the answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from lorif_core.answers import Attribution, check_out_folder, write_answers
from lorif_core.config import Config
from lorif_core.errors import LorifError
from lorif_core.model import check_checkpoint
from lorif_core.queries import Query, read_queries
from lorif_core.store import Generation, Store
from lorif_core.topk import TopK
from tasks.actors import QueryActor, ScoreActor, start, stop
from tasks.cluster import Resources, cluster
from tasks.dispatch import Failed, dispatch
from tasks.progress import Progress
from tasks.retry import worth_retrying

_FRAGMENTS_PER_CALL = 8


@task(name="attribute", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2, retry_condition_fn=worth_retrying)
def attribute_queries(
    config: Config, generation: Generation, queries: Sequence[Query], k: int
) -> list[Attribution]:
    """Score every query against every row of a generation and keep both top ks."""
    store = Store(config.index, config.storage)
    answers: list[Attribution] = []
    with cluster(config.compute) as resources:
        blocks = list(query_blocks(generation, queries, config.compute.memory_gb))
        get_run_logger().info("%d queries in %d blocks", len(queries), len(blocks))
        (encoder,) = start(
            QueryActor, 1, resources, store, generation, config.model, with_model=True, shares_cores=True
        )
        with Progress("score rows", generation.rows * len(blocks)) as progress:
            for block in blocks:
                folded, losses = encoder.fold.remote(block)
                best = _scan(config, store, generation, folded, len(block), k, resources, progress)
                answers += [
                    Attribution(query, loss, top)
                    for query, loss, top in zip(block, ray.get(losses), best, strict=True)
                ]
        stop([encoder])
    return answers


def query_blocks(generation: Generation, queries: Sequence[Query], memory_gb: float) -> Iterator[Sequence[Query]]:
    """Queries whose dense weights together take at most a quarter of a worker's memory."""
    bytes_each = 4 * sum(layer.dim for layer in generation.index_spec.layers)
    size = max(1, int(memory_gb * 2**30 / 4 / bytes_each))
    for first in range(0, len(queries), size):
        yield queries[first : first + size]


def _scan(
    config: Config,
    store: Store,
    generation: Generation,
    folded: ray.ObjectRef,
    queries: int,
    k: int,
    resources: Resources,
    progress: Progress,
) -> list[TopK]:
    fragments = store.fragment_ids(generation.factors_version)
    parts = [fragments[i : i + _FRAGMENTS_PER_CALL] for i in range(0, len(fragments), _FRAGMENTS_PER_CALL)]
    actors = start(
        ScoreActor, min(resources.workers, len(parts)), resources, store, generation, config.compute.memory_gb
    )
    best = [TopK(k) for _ in range(queries)]
    try:
        for outcome in dispatch(actors, parts, lambda actor, part: actor.top_k.remote(folded, k, part)):
            if isinstance(outcome, Failed):
                raise LorifError(f"scoring fragments {outcome.item} failed: {outcome.cause}")
            for kept, found in zip(best, outcome.result, strict=True):
                kept.merge(found)
            progress.advance(generation.rows * len(outcome.item) // len(fragments))
    finally:
        stop(actors)
    return best


@task(name="open queries", cache_policy=NO_CACHE)
def open_queries(config: Config, queries: str, out: Path) -> tuple[Generation, list[Query]]:
    """The newest generation and the parsed queries; everything is checked before the scan begins."""
    return check_attribution(config, queries, out)


@task(name="write results", cache_policy=NO_CACHE)
def write_results(
    config: Config, generation: Generation, answers: Sequence[Attribution], out: Path, seconds: float
) -> dict[str, Any]:
    """Write scores, report and summary, and show the summary as an artifact."""
    store = Store(config.index, config.storage)
    title = f"Attribution of {len(answers)} queries"
    summary = write_answers(out, store, generation, answers, title, [("attribute", seconds)])
    create_markdown_artifact(
        f"{len(answers)} queries against generation {generation.generation} ({generation.rows} rows): "
        f"`{out / 'report.html'}`",
        key="attribution",
    )
    return summary


def check_attribution(config: Config, queries: str, out: Path) -> tuple[Generation, list[Query]]:
    """Everything that can be wrong with a batch before work begins.

    Raises:
        UserError: the output folder is not empty, the index or the queries file is not what it should be.
    """
    check_out_folder(out)
    generation = Store(config.index, config.storage).latest()
    check_checkpoint(config.model)
    return generation, read_queries(queries, config.storage)
