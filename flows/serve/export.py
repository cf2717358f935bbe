"""An answer as a file: a table as CSV or parquet, or a report page of its own."""

from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from flows.serve.answer import ComputedAnswer
from lorif_core.report.answer_sections import QuerySection
from lorif_core.report.index_report import report_of
from lorif_core.report.page import render

FileFormat = Literal["csv", "parquet", "report"]

_SCHEMA = pa.schema(
    [
        ("side", pa.string()), ("rank", pa.int32()), ("example_id", pa.string()), ("score", pa.float64()),
        ("percentile", pa.float64()), ("uri", pa.string()), ("row", pa.int64()), ("text", pa.string()),
    ]
)  # fmt: skip
_TITLE = "Answer from generation {}"


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """The content of a file, its media type and its name."""

    content: bytes
    media_type: str
    name: str

    @property
    def headers(self) -> dict[str, str]:
        """Headers that make a browser save it."""
        return {"Content-Disposition": f'attachment; filename="{self.name}"'}


def answer_file(answer: ComputedAnswer, kind: FileFormat) -> AnswerFile:
    """An answer as a file of this kind.

    Raises:
        LorifError: the index cannot be read for a report, or a score is not finite.
    """
    section = answer.section()
    if kind == "report":
        title = _TITLE.format(answer.generation.generation)
        page = render(report_of(answer.store, answer.generation, (section,), title))
        return AnswerFile(page.encode(), "text/html; charset=utf-8", "report.html")
    table, content = _table(section), BytesIO()
    if kind == "csv":
        pa_csv.write_csv(table, content)
        return AnswerFile(content.getvalue(), "text/csv; charset=utf-8", "answer.csv")
    pq.write_table(table, content)
    return AnswerFile(content.getvalue(), "application/vnd.apache.parquet", "answer.parquet")


def _table(section: QuerySection) -> pa.Table:
    """A row for each example, proponents first."""
    sides = (("proponent", section.proponents), ("opponent", section.opponents))
    rows = [
        {
            "side": side, "rank": hit.rank, "example_id": hit.example_id, "score": hit.score,
            "percentile": hit.percentile, "uri": hit.source.uri, "row": hit.source.row, "text": hit.text,
        }
        for side, hits in sides
        for hit in hits
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=_SCHEMA)
