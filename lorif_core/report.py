"""The HTML report: one self-contained page showing which training examples moved each query, and at what cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from lorif_core import formatting
from lorif_core.change import Change
from lorif_core.errors import LorifError
from lorif_core.sections import QuerySection
from lorif_core.spec import Coverage

_EXCERPT_CHARS = 360
_PLOT_WIDTH, _PLOT_HEIGHT = 300, 130
_PLOT_LEFT, _PLOT_BOTTOM = 44, 112
_PLOT_RIGHT, _PLOT_TOP = 292, 8
_PLOT_POINTS = 120
_PLOT_DECADES = 6  # singular values further below the largest are numerical zeros


@dataclass(frozen=True, slots=True)
class LayerSection:
    """A tracked layer: shapes, retained singular values (none without curvature), damping lambda.

    `energy` is the share of the total gradient energy in the retained space.
    """

    name: str
    in_features: int
    out_features: int
    d1: int
    d2: int
    sigma: tuple[float, ...]
    damping: float
    energy: float | None


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
    """

    title: str
    generation: int
    rows: int
    checkpoint: str
    created_at: str
    columns: tuple[str, ...]
    top_k_max: int
    needs_token: bool


@dataclass(frozen=True, slots=True)
class _Tick:
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class _Plot:
    """A layer's spectrum in the coordinates of its drawing."""

    points: str
    ticks: tuple[_Tick, ...]
    damping_y: float


def render(report: Report) -> str:
    """The report as one HTML document that loads nothing from anywhere; all text in it is escaped.

    Raises:
        LorifError: a score or a loss isn't finite; such numbers must never get this far.
    """
    for query in report.queries:
        _check_finite(query)
    return _template("report.html.j2").render(report=report)


def render_answer(section: QuerySection, relative: bool) -> str:
    """One answered query as an HTML fragment for the explorer's page: the same that a report has of it.

    Args:
        section: the answered query.
        relative: scores are shares of the query's influence on itself, as in `Report`.

    Raises:
        LorifError: a score or the loss isn't finite.
    """
    _check_finite(section)
    return _template("answer.html.j2").render(query=section, relative=relative)


def render_explorer(explorer: Explorer, nonce: str) -> str:
    """The explorer's page; its style and its script carry the nonce of the server's policy.

    It posts `text`, or `prompt` and `completion`, with `top_k`, `where` (a string or null), `normalise` and
    `explain` (a boolean).
    """
    return _template("explorer.html.j2").render(explorer=explorer, nonce=nonce)


def _check_finite(query: QuerySection) -> None:
    for hit in query.hits:
        if not math.isfinite(hit.score):
            raise LorifError(f"query {query.query_id!r}: the score of {hit.example_id!r} is {hit.score}")
    if not math.isfinite(query.loss):
        raise LorifError(f"query {query.query_id!r}: its loss is {query.loss}")


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes=formatting.format_bytes,
        count=lambda number: f"{number:,}",
        excerpt=_excerpt,
        percent=formatting.format_percent,
        score=formatting.format_score,
        seconds=formatting.format_seconds,
        significant=formatting.format_significant,
    )
    environment.globals.update(
        largest=_largest_score,
        plot_of=_spectrum_plot,
        plot={
            "width": _PLOT_WIDTH,
            "height": _PLOT_HEIGHT,
            "left": _PLOT_LEFT,
            "right": _PLOT_RIGHT,
            "top": _PLOT_TOP,
            "bottom": _PLOT_BOTTOM,
        },
    )
    return environment.get_template(name)


def _excerpt(text: str) -> str | None:
    """The beginning of a long text, cut between words; None where the whole text is short enough to show."""
    if len(text) <= _EXCERPT_CHARS * 1.25:
        return None
    head = text[:_EXCERPT_CHARS]
    at_a_word = head.rsplit(maxsplit=1)[0] if len(head.split()) > 1 else head
    return f"{at_a_word} …"


def _printable(value: Any) -> Any:
    """Control characters and lone surrogates aren't allowed in HTML; line breaks and tabs are."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(c if c in "\n\t" or c.isprintable() or c.isspace() else "\ufffd" for c in value)


def _largest_score(query: QuerySection) -> float:
    return max((abs(hit.score) for hit in (*query.proponents, *query.opponents)), default=0.0)


def _spectrum_plot(layer: LayerSection) -> _Plot | None:
    """log10 of the singular values over their index, and sqrt(lambda), which is comparable with them.

    None where there is nothing to draw. The vertical range is whole decades.
    """
    top = max(layer.sigma, default=0.0)
    if top <= 0:
        return None
    floor = top / 10**_PLOT_DECADES
    logs = [math.log10(max(value, floor)) for value in layer.sigma]
    damping = math.log10(max(math.sqrt(max(layer.damping, 0.0)), floor))
    low, high = math.floor(min(*logs, damping)), math.ceil(max(*logs, damping))
    high = max(high, low + 1)

    def y(log: float) -> float:
        return round(_PLOT_BOTTOM - (log - low) / (high - low) * (_PLOT_BOTTOM - _PLOT_TOP), 1)

    step = -(-(high - low) // 4)
    ticks = tuple(_Tick(y(e), f"10{formatting.superscript(e)}") for e in range(low, high + 1, step))
    return _Plot(_polyline([y(log) for log in logs]), ticks, y(damping))


def _polyline(heights: Sequence[float]) -> str:
    """SVG points from left to right, thinned to what the drawing can show."""
    last = len(heights) - 1
    if last == 0:  # a single value is drawn as a level line
        return f"{_PLOT_LEFT},{heights[0]} {_PLOT_RIGHT},{heights[0]}"
    drawn = min(last, _PLOT_POINTS - 1)
    indices = (round(i * last / drawn) for i in range(drawn + 1))
    width = _PLOT_RIGHT - _PLOT_LEFT
    return " ".join(f"{_PLOT_LEFT + width * i / last:.1f},{heights[i]}" for i in indices)
