"""The HTML report: one self-contained page showing which training examples moved each query, and at what cost."""

import math
from dataclasses import dataclass

from lorif_core.curvature.spectrum import LayerSection
from lorif_core.errors import LorifError
from lorif_core.report.answer_sections import QuerySection
from lorif_core.report.changes import Change
from lorif_core.report.templating import asset, page, source_hash
from lorif_core.spec import Coverage


@dataclass(frozen=True, slots=True)
class Storage:
    """Measured bytes of the index, and what uncompressed projected gradients in float16 (LoGRA) would take."""

    bytes_per_example: float
    dense_bytes_per_example: float
    rows: int
    total_bytes: int

    @property
    def dense_ratio(self) -> float | None:
        """How many times larger dense storage would be; None for an index without bytes."""
        return self.dense_bytes_per_example / self.bytes_per_example if self.bytes_per_example else None


@dataclass(frozen=True, slots=True)
class JudgeRow:
    """One self-check. The three results are shares between 0 and 1; None where a method doesn't apply."""

    question: str
    ours: float
    bm25: float | None
    chance: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page shows.

    `timings` are (stage, seconds), `skipped` (example id, reason). `relative`: scores are shares of the query's
    influence on itself, as of a generation with several checkpoints. `change`: from a former generation; its
    queries are the report's, in their order. `omitted`: what is left out, as a sentence.
    """

    title: str
    generation: int
    checkpoint: str
    spec: str
    created_at: str
    curvature: str
    queries: tuple[QuerySection, ...]
    layers: tuple[LayerSection, ...]
    coverage: Coverage
    storage: Storage
    timings: tuple[tuple[str, float], ...]
    skipped: tuple[tuple[str, str], ...]
    judge: tuple[JudgeRow, ...] = ()
    relative: bool = False
    change: Change | None = None
    omitted: str | None = None


@dataclass(frozen=True, slots=True)
class Explorer:
    """What the live page says of the index that it asks.

    Attributes:
        columns: names of the columns that a filter may use.
        top_k_max: the largest number of results that may be asked for.
        needs_token: requests must carry the server's token.
        two_stage: searches may miss rows, and know plain scores only.
    """

    title: str
    generation: int
    rows: int
    checkpoint: str
    created_at: str
    columns: tuple[str, ...]
    top_k_max: int
    needs_token: bool
    two_stage: bool


def render(report: Report) -> str:
    """The report as one HTML document that loads nothing from anywhere; all text in it is escaped.

    Raises:
        LorifError: a score or a loss isn't finite; such numbers must never get this far.
    """
    for query in report.queries:
        _check_finite(query)
    style, script = asset("style.css"), asset("answers.js")
    policy = (
        f"default-src 'none'; style-src {source_hash(style)}; script-src {source_hash(script)}; base-uri 'none'; "
        f"form-action 'none'"
    )
    return page(
        "report.html.j2", report=report, title=report.title, style=style, script=script, policy=policy, nonce=None
    )


def render_answer(section: QuerySection, relative: bool) -> str:
    """One answered query as an HTML fragment for the explorer's page: the same that a report has of it.

    Args:
        section: the answered query.
        relative: scores are shares of the query's influence on itself, as in `Report`.

    Raises:
        LorifError: a score or the loss isn't finite.
    """
    _check_finite(section)
    return page("fragment.html.j2", query=section, relative=relative)


def render_explorer(explorer: Explorer, nonce: str) -> str:
    """The explorer's page; its style and its script carry the nonce of the server's policy.

    It posts `text`, or `prompt` and `completion`, with `top_k`, `where` (a string or null), `normalise`, `explain`
    (a boolean) and `totals` ("uri" or null).
    """
    script = asset("answers.js") + asset("explorer.js")
    return page(
        "explorer.html.j2", explorer=explorer, title=explorer.title, style=asset("style.css"), script=script,
        nonce=nonce,
    )  # fmt: skip


def _check_finite(query: QuerySection) -> None:
    contributions = [token.contribution for token in query.tokens or ()]
    for hit in query.hits:
        contributions.extend(hit.tokens or ())
        if not math.isfinite(hit.score):
            raise LorifError(f"query {query.query_id!r}: the score of {hit.example_id!r} is {hit.score}")
    if not math.isfinite(query.loss):
        raise LorifError(f"query {query.query_id!r}: its loss is {query.loss}")
    if not all(map(math.isfinite, contributions)):
        raise LorifError(f"query {query.query_id!r}: what its tokens add to the scores isn't finite")
