"""Answers of a batch attribution: scores.parquet, report.html and summary.json in one folder."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from lorif_core.config import StorageConfig
from lorif_core.curvature.spectrum import LayerSection
from lorif_core.errors import UserError
from lorif_core.gradients.codes import CodeLayout
from lorif_core.report.answer import answer_section
from lorif_core.report.answer_sections import QuerySection
from lorif_core.report.block_answers import Attribution
from lorif_core.report.changes import Change
from lorif_core.report.page import JudgeRow, Report, Storage, render
from lorif_core.search.options import PLAIN, Terms
from lorif_core.search.top_k import TopK
from lorif_core.spec import Coverage
from lorif_core.storage.filesystem import contact, open_filesystem, written_whole
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
"""Of each side: a page of many megabytes is of no use to anybody."""
_HITS_PER_LOOKUP = 200_000  # a pass over all ids of the index finds the rows of so many
_HITS_PER_WRITE = 10_000  # whose texts are in memory together


def check_out_folder(out: str, storage: StorageConfig) -> None:
    """Refuse an output folder that is a file or holds anything: nothing of the user's is overwritten."""
    fs, path = open_filesystem(out, storage)
    with contact(out):
        if fs.isfile(path):
            raise UserError(f"--out {out} is a file; name a folder that is empty or not there yet")
        if fs.isdir(path) and fs.ls(path):
            raise UserError(f"--out {out} is not empty; name a folder that is empty or not there yet")


def write_answers(
    out: str,
    store: Store,
    generation: Generation,
    answers: Iterable[Attribution],
    title: str,
    timings: Sequence[tuple[str, float]] = (),
    judge: Sequence[JudgeRow] = (),
    change: Change | None = None,
    terms: Terms = PLAIN,
) -> dict[str, Any]:
    """Write the three files into `out`, the summary last, and return it. Answers are taken as they come.

    What is held at a time is bounded: answers of `_HITS_PER_LOOKUP` examples, and the texts of `_HITS_PER_WRITE`.

    Args:
        out: folder, made if it is not there, or an s3:// URI in the store of the index.
        store: the index, for the texts and sources of the examples.
        generation: the generation that was scored.
        answers: one per query, in order.
        title: heading of the report.
        timings: further (stage, seconds) after those of the build.
        judge: self-checks to show.
        change: from a former generation, to the same queries.
        terms: what was asked for beside the queries.
    """
    fs, path = open_filesystem(out, store.storage)
    with contact(out, "write"):
        fs.makedirs(path, exist_ok=True)
        with written_whole(f"{out.rstrip('/')}/scores.parquet", store.storage) as file:
            written = _write_scores(file, store, generation, answers)
    report = _report(store, generation, written, title, timings, judge, change)
    summary = {
        "queries": written.queries,
        "scores": written.scores,
        "generation": generation.generation,
        "rows": generation.rows,
        "checkpoint": generation.checkpoint,
        "spec": generation.spec,
        "where": terms.where,
        "normalise": terms.normalise,
        "bytes_per_example": report.storage.bytes_per_example,
        "dense_bytes_per_example": report.storage.dense_bytes_per_example,
        "covered_parameters": report.coverage.share,
        "skipped": [list(item) for item in report.skipped],
        "timings": dict(report.timings),
        "self_check": [
            {"question": row.question, "ours": row.ours, "bm25": row.bm25, "chance": row.chance} for row in judge
        ],
        **({} if change is None else {"change": change.to_dict()}),
    }
    files = {"report.html": render(report), SUMMARY: json.dumps(summary, indent=2) + "\n"}
    with contact(out, "write"):
        for name, content in files.items():
            with written_whole(f"{out.rstrip('/')}/{name}", store.storage) as file:
                file.write(content.encode())
    return summary


@dataclass(slots=True)
class _Written:
    """What has gone into scores.parquet, and the queries that the report shows."""

    queries: int = 0
    scores: int = 0
    sections: list[QuerySection] = field(default_factory=list)
    cut: bool = False

    @property
    def omitted(self) -> str | None:
        """What the page leaves out, as a sentence."""
        told = []
        if self.queries > len(self.sections):
            told.append(f"the first {len(self.sections):,} of {self.queries:,} queries")
        if self.cut:
            told.append(f"the first {HITS_IN_REPORT} examples of each side")
        return f"This page shows {' and '.join(told)}; scores.parquet has all." if told else None


def _write_scores(
    file: BinaryIO, store: Store, generation: Generation, answers: Iterable[Attribution]
) -> _Written:
    written = _Written()
    with pq.ParquetWriter(file, SCORES_SCHEMA) as writer:
        for many in _in_groups(answers, _HITS_PER_LOOKUP):
            details = Details(store, generation.factors_version, (name for answer in many for name in answer.ids))
            for some in _in_groups(many, _HITS_PER_WRITE):
                found = details.of([name for answer in some for name in answer.ids])
                rows = [row for answer in some for row in _score_rows(answer, found)]
                writer.write_table(pa.Table.from_pylist(rows, schema=SCORES_SCHEMA))
                written.queries += len(some)
                written.scores += len(rows)
                for answer in some[: QUERIES_IN_REPORT - len(written.sections)]:
                    written.sections.append(_section(answer, found))
                    written.cut |= answer.top.k > HITS_IN_REPORT
    return written


def _in_groups(answers: Iterable[Attribution], hits: int) -> Iterator[list[Attribution]]:
    """Answers in groups of at least one, and of no more than so many hits."""
    group: list[Attribution] = []
    held = 0
    for answer in answers:
        more = len(answer.ids)
        if group and held + more > hits:
            yield group
            group, held = [], 0
        group.append(answer)
        held += more
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


def _report(
    store: Store,
    generation: Generation,
    written: _Written,
    title: str,
    timings: Sequence[tuple[str, float]],
    judge: Sequence[JudgeRow],
    change: Change | None,
) -> Report:
    code_bytes = store.rows.code_bytes(generation.factors_version)
    layout = CodeLayout(generation.index_spec.layers, generation.index_spec.code)
    coverage = json.loads(generation.coverage_json)
    return Report(
        title=title,
        generation=generation.generation,
        checkpoint=generation.checkpoint,
        spec=generation.spec,
        created_at=generation.created_at.strftime("%Y-%m-%d %H:%M UTC"),
        curvature=generation.newest.curvature_kind,
        queries=tuple(written.sections),
        layers=layer_sections(store, generation),
        coverage=Coverage(
            coverage["tracked"], coverage["total"], tuple((name, count) for name, count in coverage["untracked"])
        ),
        storage=Storage(
            bytes_per_example=code_bytes / max(generation.rows, 1),
            dense_bytes_per_example=layout.dense_bytes_per_example(),
            rows=generation.rows,
            total_bytes=code_bytes,
        ),
        timings=(*json.loads(generation.timings_json).items(), *timings),
        skipped=tuple((example_id, reason) for example_id, reason in json.loads(generation.skipped_json)),
        judge=tuple(judge),
        relative=len(generation.leaders) > 1,
        omitted=written.omitted,
        change=change,
    )


def _section(answer: Attribution, details: dict[str, dict[str, Any]]) -> QuerySection:
    top = answer.top
    shown = TopK(HITS_IN_REPORT, top.proponents[:HITS_IN_REPORT], top.opponents[:HITS_IN_REPORT])
    return answer_section(answer.query, answer.loss, shown, details, answer.explanation)


def layer_sections(store: Store, generation: Generation) -> tuple[LayerSection, ...]:
    """Shapes, retained spectrum, damping and energy of every layer of a generation's newest part."""
    part = generation.newest
    layers = part.index_spec.layers
    fitted: dict[int, list[dict[str, Any]]] = {}
    if part.curvature_kind != "none":
        components = groupby(store.curvatures.spectra(generation, part), key=lambda row: row["layer_index"])
        fitted = {index: list(rows) for index, rows in components}
    sections = []
    for index, layer in enumerate(layers):
        rows = fitted.get(index, [])
        trace = rows[0]["trace"] if rows else 0.0
        sections.append(
            LayerSection(
                layer.name, layer.in_features, layer.out_features, layer.d1, layer.d2,
                sigma=tuple(row["sigma2"] ** 0.5 for row in rows),
                damping=rows[0]["damping"] if rows else 1.0,
                energy=sum(row["sigma2"] for row in rows) / trace if trace else None,
            )
        )  # fmt: skip
    return tuple(sections)
