"""The answer to one query: the training examples at both ends of its ranking, with their texts."""

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lorif_core.errors import UserError
from lorif_core.report.answer_sections import Hit, QuerySection
from lorif_core.report.page import render_answer_page
from lorif_core.search.likelihood import Likelihood

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = {
    "side": pa.string(), "rank": pa.int32(), "example_id": pa.string(), "score": pa.float32(), "uri": pa.string(),
    "row": pa.int64(), "text": pa.string(),
}  # fmt: skip
_PAGE_HEIGHT = 640  # pixels, of the page in a notebook
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """The strongest examples for and against one query. A notebook shows it as a page.

    Attributes:
        section: the query with its examples, as pages show it.
        generation: number of the generation that was searched.
        is_relative: scores are divided by the query's influence on itself.
    """

    section: QuerySection
    generation: int
    is_relative: bool

    @property
    def proponents(self) -> tuple[Hit, ...]:
        """The examples that lowered the loss most, strongest first; a `Hit` has `text`, `score` and others."""
        return self.section.proponents

    @property
    def opponents(self) -> tuple[Hit, ...]:
        """The examples that raised the loss most, strongest first."""
        return self.section.opponents

    @property
    def loss(self) -> float:
        """Loss of the query, summed over its scored tokens, in nats."""
        return self.section.loss

    @property
    def likelihood(self) -> Likelihood | None:
        """How likely the model finds the query, also in plain words; None for several queries in one."""
        return self.section.likelihood

    def to_arrow(self) -> pa.Table:
        """One row per example: side (`proponent` or `opponent`), rank, example_id, score, uri, row, text.

        Columns that the index has beyond its own follow, as texts.
        """
        rows: list[dict[str, Any]] = []
        for side, hits in (("proponent", self.proponents), ("opponent", self.opponents)):
            for hit in hits:
                row = {"side": side, "rank": hit.rank, "example_id": hit.example_id, "score": hit.score}
                row |= {"uri": hit.source.uri, "row": hit.source.row, "text": hit.text}
                rows.append({**dict(hit.columns), **row})
        extra = dict.fromkeys(name for row in rows for name in row if name not in _COLUMNS)
        schema = pa.schema({**_COLUMNS, **dict.fromkeys(extra, pa.string())})
        return pa.Table.from_pylist(rows, schema=schema)

    def to_pandas(self) -> "pd.DataFrame":
        """The rows of `to_arrow` as a data frame.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas  # noqa: F401
        except ImportError:
            raise UserError("to_pandas needs pandas: pip install pandas; to_arrow does not") from None
        return self.to_arrow().to_pandas()

    def _repr_html_(self) -> str:
        """The page of the answer, in a frame of its own, so that its style does not touch the notebook's."""
        page = html.escape(render_answer_page(self.section, self.is_relative), quote=True)
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="Answer" '
            f'style="width: 100%; height: {_PAGE_HEIGHT}px; border: 0"></iframe>'
        )

    def __repr__(self) -> str:
        text = self.section.prompt + (self.section.completion or "")
        shown = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
        strongest = f", strongest {self.proponents[0].example_id}" if self.proponents else ""
        return f"Answer({shown!r}: {len(self.proponents)} proponents, {len(self.opponents)} opponents{strongest})"
