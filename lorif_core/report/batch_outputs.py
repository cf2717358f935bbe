"""Writes the answers of a batch attribution: scores.parquet, report.html and summary.json in one folder."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from lorif_core.config import StorageConfig
from lorif_core.errors import UserError
from lorif_core.report.answer import answer_section
from lorif_core.report.answer_sections import Hit, QuerySection
from lorif_core.report.block_answers import Attribution
from lorif_core.report.changes import Change
from lorif_core.report.counterfactual import Counterfactual
from lorif_core.report.index_report import report_of
from lorif_core.report.page import render
from lorif_core.search.options import DEFAULT_OPTIONS, SearchOptions
from lorif_core.search.top_k import TopK
from lorif_core.storage.filesystem import atomic_write, open_filesystem, storage_errors
from lorif_core.tables.example_details import Details
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store

SCORES_SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("side", pa.string(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("checkpoint", pa.string(), nullable=False),
        pa.field("text", pa.string()),
    ]
)

SUMMARY = "summary.json"
QUERIES_IN_REPORT = 100
HITS_IN_REPORT = 50
"""On each side. More would make a page of many megabytes."""
_HITS_PER_LOOKUP = 200_000  # hits whose rows are located in one pass over all ids of the index
_HITS_PER_WRITE = 10_000  # hits whose texts are in memory at the same time


def check_out_folder(out: str, storage: StorageConfig) -> None:
    """Raise UserError if the output folder is a file or is not empty, so that no file is overwritten."""
    fs, path = open_filesystem(out, storage)
    with storage_errors(out):
        if fs.isfile(path):
            raise UserError(f"--out {out} is a file; name a new or empty folder")
        if fs.isdir(path) and fs.ls(path):
            raise UserError(f"--out {out} is not empty; name a new or empty folder")


def write_answers(
    out: str,
    store: Store,
    generation: Generation,
    answers: Iterable[Attribution],
    title: str,
    timings: Sequence[tuple[str, float]] = (),
    change: Change | None = None,
    options: SearchOptions = DEFAULT_OPTIONS,
    counterfactual: Counterfactual | None = None,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Write the three files into `out`, the summary last, and return the summary.

    Memory is bounded: at most the answers of `_HITS_PER_LOOKUP` hits and the texts of `_HITS_PER_WRITE` hits are
    held at a time, unless one query alone has more.

    Args:
        out: folder, created if it does not exist, or an s3:// URI in the store of the index.
        store: the index, for the texts and sources of the examples.
        generation: the generation that was searched.
        answers: one per query, in order.
        title: heading of the report.
        timings: (stage, seconds) to show after those of the build.
        change: changes since a former generation, for the same queries.
        options: options of the search.
        counterfactual: trainings without the passages of several methods.
        notes: remarks on queries, by id.
    """
    fs, path = open_filesystem(out, store.storage)
    with storage_errors(out, "write"):
        fs.makedirs(path, exist_ok=True)
        with atomic_write(f"{out.rstrip('/')}/scores.parquet", store.storage) as file:
            written = _write_scores(file, store, generation, answers)
    shown = [replace(query, note=notes.get(query.query_id)) for query in written.shown()]
    report = report_of(store, generation, shown, title, timings, change, counterfactual, omitted=written.omitted)
    summary = {
        "queries": written.queries,
        "scores": written.scores,
        "generation": generation.generation,
        "rows": generation.rows,
        "checkpoint": generation.checkpoint,
        "spec": generation.spec,
        "where": options.where,
        "normalise": options.normalise,
        "bytes_per_example": report.storage.bytes_per_example,
        "dense_bytes_per_example": report.storage.dense_bytes_per_example,
        "covered_parameters": report.coverage.share,
        "skipped": [list(item) for item in report.skipped],
        "timings": dict(report.timings),
        **({} if counterfactual is None else {"counterfactual": counterfactual.to_dict()}),
        **({} if change is None else {"change": change.to_dict()}),
    }
    files = {"report.html": render(report), SUMMARY: json.dumps(summary, indent=2) + "\n"}
    with storage_errors(out, "write"):
        for name, content in files.items():
            with atomic_write(f"{out.rstrip('/')}/{name}", store.storage) as file:
                file.write(content.encode())
    return summary


@dataclass(slots=True)
class _Written:
    """Counts of the rows in scores.parquet, the queries that the report shows, and of those of each example."""

    queries: int = 0
    scores: int = 0
    sections: list[QuerySection] = field(default_factory=list)
    are_hits_omitted: bool = False
    queries_of: Counter[str] = field(default_factory=Counter)

    def count(self, answers: Iterable[Attribution]) -> None:
        """Count under how many queries each example is shown; of later queries only examples of the report."""
        is_complete = len(self.sections) == QUERIES_IN_REPORT
        for answer in answers:
            names = set(answer.example_ids)
            self.queries_of.update(names & self.queries_of.keys() if is_complete else names)

    def shown(self) -> tuple[QuerySection, ...]:
        """The sections, whose examples state how many other queries show them too."""
        return tuple(
            replace(
                section, proponents=self._counted(section.proponents), opponents=self._counted(section.opponents)
            )
            for section in self.sections
        )

    def _counted(self, hits: Iterable[Hit]) -> tuple[Hit, ...]:
        return tuple(replace(hit, also_under=self.queries_of[hit.example_id] - 1) for hit in hits)

    @property
    def omitted(self) -> str | None:
        """A sentence about the results that the page leaves out; None if it shows all."""
        limits = []
        if self.queries > len(self.sections):
            limits.append(f"the first {len(self.sections):,} of {self.queries:,} queries")
        if self.are_hits_omitted:
            limits.append(f"the first {HITS_IN_REPORT} examples of each side")
        return f"This page shows {' and '.join(limits)}; scores.parquet has all." if limits else None


def _write_scores(
    file: BinaryIO, store: Store, generation: Generation, answers: Iterable[Attribution]
) -> _Written:
    written = _Written()
    with pq.ParquetWriter(file, SCORES_SCHEMA) as writer:
        for lookup_group in _in_groups(answers, _HITS_PER_LOOKUP):
            details = Details(
                store, generation.factors_version, (name for answer in lookup_group for name in answer.example_ids)
            )
            for group in _in_groups(lookup_group, _HITS_PER_WRITE):
                rows_by_id = details.lookup([name for answer in group for name in answer.example_ids])
                rows = [row for answer in group for row in _score_rows(answer, rows_by_id)]
                writer.write_table(pa.Table.from_pylist(rows, schema=SCORES_SCHEMA))
                written.queries += len(group)
                written.scores += len(rows)
                written.count(group)
                for answer in group[: QUERIES_IN_REPORT - len(written.sections)]:
                    written.sections.append(_section(answer, rows_by_id))
                    written.are_hits_omitted |= answer.top.k > HITS_IN_REPORT
    return written


def _in_groups(answers: Iterable[Attribution], max_hits: int) -> Iterator[list[Attribution]]:
    """Split answers into groups of at most `max_hits` hits, or of one answer that has more."""
    group: list[Attribution] = []
    hits = 0
    for answer in answers:
        answer_hits = len(answer.example_ids)
        if group and hits + answer_hits > max_hits:
            yield group
            group, hits = [], 0
        group.append(answer)
        hits += answer_hits
    if group:
        yield group


def _score_rows(answer: Attribution, details: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "query_id": answer.query.query_id,
            "rank": rank,
            "side": side,
            "example_id": hit.example_id,
            "score": hit.score,
            "shard": details[hit.example_id]["shard"],
            "checkpoint": details[hit.example_id]["checkpoint"],
            "text": details[hit.example_id].get("text"),
        }
        for side, hits in (("proponent", answer.top.proponents), ("opponent", answer.top.opponents))
        for rank, hit in enumerate(hits, start=1)
    ]


def _section(answer: Attribution, details: dict[str, dict[str, Any]]) -> QuerySection:
    top = answer.top
    shown = TopK(HITS_IN_REPORT, top.proponents[:HITS_IN_REPORT], top.opponents[:HITS_IN_REPORT])
    return answer_section(
        answer.query, answer.loss, shown, details, answer.explanation, answer.totals, answer.spoken,
        answer.distribution,
    )  # fmt: skip
