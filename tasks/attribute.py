"""The steps of batch attribution: fold a block of queries, scan the index on all workers, save the answers.

A block whose answers are saved is not scored again, so a run that was killed continues with the missing blocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import ray

from lorif_core.config import Config
from lorif_core.errors import LorifError
from lorif_core.model.loading import check_same_weights
from lorif_core.report.answer import source_totals
from lorif_core.report.answer_sections import SourceTotal
from lorif_core.report.batch_outputs import write_answers
from lorif_core.report.batch_run import BatchRun, QueryBlock, open_batch_run, read_batch_record
from lorif_core.report.block_answers import Attribution
from lorif_core.search.explanation import Explanation
from lorif_core.search.index import Index
from lorif_core.search.likelihood import NOT_SPOKEN, SpokenAnswer
from lorif_core.search.options import SearchOptions
from lorif_core.search.queries import read_queries
from lorif_core.search.source_sums import SourceSums
from lorif_core.search.top_k import TopK
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store
from tasks.artifacts import show_markdown
from tasks.cluster import Resources, cluster
from tasks.dispatch import Failed, Workers
from tasks.memory import scan_settings
from tasks.model_workers import model_cluster
from tasks.orchestration import run_log, task
from tasks.outcome import link
from tasks.progress import Progress
from tasks.workers.host import Host
from tasks.workers.scoring import QueryRole, ScoreRole
from tasks.workers.start import start

_FRAGMENTS_PER_CALL = range(8, 65)  # a fragment has at most 512 rows
_CALLS = 64  # per block, if all shares had the small size
_LARGE = (
    4  # size of a large share in small ones; large ones mean fewer merges, small ones at the end balance workers
)
_LARGE_SHARE = 0.75  # of the fragments are in large shares


@dataclass(frozen=True, slots=True)
class Share:
    """Fragments of one part of a generation: the work of one call."""

    part: int
    fragments: list[int]


class ScanError(LorifError):
    """Some fragments could not be scored."""


@task("attribute", retried=True)
def attribute_queries(config: Config, run: BatchRun) -> None:
    """Score every unanswered query against every row, block by block, and save both ends of each ranking."""
    with cluster(config.compute) as resources:
        try:
            _answer_missing(config, run, resources)
        except ScanError as error:
            # the folded queries may be lost with the node that held them
            run_log().warning("%s; continuing with new workers", error)
            _answer_missing(config, run, resources)


def _answer_missing(config: Config, run: BatchRun, resources: Resources) -> None:
    missing = run.unanswered_blocks()
    run_log().info("%d queries: %d of %d blocks to score", len(run.queries), len(missing), len(run.blocks))
    if not missing:
        return
    shares = shares_of(Index(Store(config.index, config.storage), run.generation))
    rows, done = run.generation.rows, len(run.blocks) - len(missing)
    with (
        model_cluster(config) as of_model,
        _encoder(config, run.generation, of_model) as encoder,
        start_scorers(config, run.generation, resources, len(shares)) as scorers,
        Progress("score rows", rows * len(run.blocks), rows * done) as progress,
    ):
        for block in missing:  # its objects in the object store are freed before the next block
            losses, spoken, folded = _fold(encoder, block, run.options)
            best, sums = [TopK(run.k) for _ in block.queries], SourceSums(block.shown)
            for share in scan(scorers, shares, folded, best, run.options, sums):
                progress.advance(round(rows * share))
            explained = _explain(encoder, block, best)
            totals = _totals(block, sums)
            columns = zip(block.queries, losses, best, explained, spoken, totals, strict=True)
            run.save_answers(
                block,
                [
                    Attribution(query, loss, top, explanation, of_tokens, top.distribution, by_file)
                    for query, loss, top, explanation, of_tokens, by_file in columns
                ],
            )


def _encoder(config: Config, generation: Generation, resources: Resources) -> Workers:
    """The worker that encodes queries; it works while the scorers wait, so it shares their cores."""
    store = Store(config.index, config.storage)
    arguments = store, generation, config.model, config.compute.memory_gb
    return Workers(
        lambda: start(QueryRole, resources, *arguments, with_model=True, shares_cores=True),
        1,
        scan_settings(config.compute),
    )


def start_scorers(config: Config, generation: Generation, resources: Resources, shares: int) -> Workers:
    """Workers that scan, at most one per share."""
    store = Store(config.index, config.storage)
    return Workers(
        lambda: start(ScoreRole, resources, store, generation, config.compute.memory_gb),
        min(resources.workers, shares),
        scan_settings(config.compute),
    )


def _fold(
    encoder: Workers, block: QueryBlock, options: SearchOptions
) -> tuple[list[float], list[SpokenAnswer], ray.ObjectRef]:
    """Losses of a block's queries, those of tokens, and a reference to the prepared queries for every part."""
    folded: list[ray.ObjectRef] = []

    def call(host: Host, block: QueryBlock) -> ray.ObjectRef:
        losses, weights = host.call("fold", block.queries, options, block.shown, results=2)
        folded.append(weights)
        return losses

    (outcome,) = encoder.run([block], call)
    if isinstance(outcome, Failed):
        raise LorifError(f"encoding {len(block.queries)} queries failed: {outcome.cause}")
    losses, spoken = outcome.result
    return losses, [*spoken, *[NOT_SPOKEN] * (len(losses) - len(spoken))], folded[-1]


def _totals(block: QueryBlock, sums: SourceSums) -> list[tuple[SourceTotal, ...] | None]:
    """The sums of each query of a block by file; None for queries that a report does not show."""
    tables = sums.tables([query.query_id for query in block.queries[: block.shown]]) or ()
    return [*map(source_totals, tables), *[None] * (len(block.queries) - len(tables))]


def _explain(encoder: Workers, block: QueryBlock, best: Sequence[TopK]) -> list[Explanation | None]:
    """One entry per query of a block; None for queries that are not explained."""
    explanations: list[Explanation | None] = [None] * len(block.queries)
    arguments = (block.queries[: block.explained], best[: block.explained])
    for outcome in encoder.run(
        [arguments] if block.explained else [], lambda host, item: host.call("explain", *item)
    ):
        if isinstance(outcome, Failed):
            raise LorifError(f"explaining {block.explained} queries failed: {outcome.cause}")
        explanations[: block.explained] = outcome.result
    return explanations


def shares_of(index: Index) -> list[Share]:
    """All fragments of an index in shares, each the work of one call, the large ones first.

    Shares do not depend on the workers, so answers do not either: which rows are scored exactly depends on the
    rows before them in the share.
    """
    return cut_shares([part.fragments() for part in index.parts])


def cut_shares(fragments_of_parts: Sequence[list[int]]) -> list[Share]:
    """Shares of the fragments of every part."""
    even = -(-sum(map(len, fragments_of_parts)) // _CALLS)
    small = min(max(even, _FRAGMENTS_PER_CALL[0]), _FRAGMENTS_PER_CALL[-1])
    shares = []
    for number, fragments in enumerate(fragments_of_parts):
        large = int(_LARGE_SHARE * len(fragments)) // (_LARGE * small) * _LARGE * small
        starts = [*range(0, large, _LARGE * small), *range(large, len(fragments), small), len(fragments)]
        shares += [Share(number, fragments[start:stop]) for start, stop in pairwise(starts)]
    return sorted(shares, key=lambda share: -len(share.fragments))


def scan(
    scorers: Workers,
    shares: Sequence[Share],
    folded: ray.ObjectRef,
    best: Sequence[TopK],
    options: SearchOptions,
    sums: SourceSums,
) -> Iterator[float]:
    """Merge the results of every share into `best` and `sums`, in any order; yields its share of the fragments."""
    total, k = sum(len(share.fragments) for share in shares), best[0].k
    for outcome in scorers.run(
        shares,
        lambda host, share: host.call("top_k", share.part, folded, k, share.fragments, options, sums.queries),
    ):
        if isinstance(outcome, Failed):
            raise ScanError(f"scoring fragments {outcome.item.fragments} failed: {outcome.cause}")
        of_share, by_file = outcome.result
        sums.merge(by_file)
        for merged, top in zip(best, of_share, strict=True):
            merged.merge(top)
        yield len(outcome.item.fragments) / total


@task("open queries")
def open_queries(
    config: Config, queries: str, out: str, top_k: int, where: str | None, normalise: str
) -> BatchRun:
    """Begin a batch run, or continue one; everything is checked before the scan begins."""
    run = check_attribution(config, queries, out, top_k, where, normalise)
    run.begin()
    run_log().info("generation %d, %d queries", run.generation.generation, len(run.queries))
    return run


@task("write results")
def write_results(config: Config, run: BatchRun, seconds: float) -> dict[str, Any]:
    """Write scores, report and summary, and create an artifact that links the report."""
    store, queries = Store(config.index, config.storage), len(run.queries)
    title, timings = f"Attribution of {queries} queries{run.options}", [("attribute", seconds)]
    summary = run.summary() or write_answers(
        run.out, store, run.generation, run.answers(), title, timings, options=run.options
    )
    show_markdown(
        "attribution",
        f"{queries} queries against generation {run.generation.generation} ({run.generation.rows} rows): "
        f"{link('report', f'{run.out}/report.html')}",
    )
    return summary


def check_attribution(
    config: Config, queries: str, out: str, top_k: int, where: str | None = None, normalise: str = "none"
) -> BatchRun:
    """Check a batch before work begins, without writing anything; returns the run to begin or to continue.

    Raises:
        UserError: the output folder is in use for something else, the index or the queries file is not valid, or
            no row meets the condition.
    """
    begun = read_batch_record(out, config)
    latest = Store(config.index, config.storage).latest()
    parsed = read_queries(queries, config.storage)
    run = open_batch_run(config, parsed, top_k, out, begun, latest, where, normalise)
    check_same_weights(config.model, config.storage, run.generation.index_spec)
    return run
