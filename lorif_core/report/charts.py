"""Small drawings on a page: the distribution of all scores, influence by layer, and questions against passages."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lorif_core.report.answer_sections import Hit, QuerySection
from lorif_core.search.shares import LayerShare

HISTOGRAM = {"width": 320, "height": 102, "left": 4, "right": 316, "top": 14, "bottom": 76}
"""Size of the histogram and bounds of its bars, in SVG units."""
_SHADES = 4
_RANKS_COMPARED = 10  # of each side; in a small index every example is somewhere in a longer list
_MAX_PASSAGES = 40
_MIN_BAR = 1.5
_LABEL_WIDTH = 60


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the histogram in SVG units, and the number of rows that it stands for."""

    x: float
    y: float
    width: float
    height: float
    rows: int


@dataclass(frozen=True, slots=True)
class Mark:
    """The place of a shown example in the histogram."""

    x: float
    side: str
    rank: int
    example_id: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """All scores of a query. The heights are logarithmic, since nearly all rows have scores near zero."""

    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...]
    lowest: float
    highest: float
    zero_x: float | None
    rows: int

    @property
    def has_zero_label(self) -> bool:
        """Whether there is room for the label of zero between those of both ends."""
        left, right = HISTOGRAM["left"] + _LABEL_WIDTH, HISTOGRAM["right"] - _LABEL_WIDTH
        return self.zero_x is not None and left < self.zero_x < right


def histogram(query: QuerySection) -> Histogram | None:
    """The distribution of the scores of all rows, with the shown examples marked; None if it is not known."""
    if query.distribution is None or not any(query.distribution.counts):
        return None
    edges, counts = query.distribution.edges, query.distribution.counts
    left, width = HISTOGRAM["left"], HISTOGRAM["right"] - HISTOGRAM["left"]
    low, high = edges[0], edges[-1]
    span = (high - low) or 1.0

    def place(score: float) -> float:
        return round(left + width * min(1.0, max(0.0, (score - low) / span)), 1)

    full, tallest = HISTOGRAM["bottom"] - HISTOGRAM["top"], math.log1p(max(counts))
    bars = []
    for start, end, rows in zip(edges, edges[1:], counts, strict=False):
        height = round(max(_MIN_BAR, full * math.log1p(rows) / tallest), 1) if rows else 0.0
        x = place(start)
        bars.append(Bar(x, HISTOGRAM["bottom"] - height, round(max(0.5, place(end) - x - 0.5), 1), height, rows))
    sides = (("pro", query.proponents), ("con", query.opponents))
    marks = [
        Mark(place(hit.score), side, hit.rank, hit.example_id)
        for side, hits in sides
        for hit in hits[:_RANKS_COMPARED]
    ]
    zero_x = place(0.0) if low < 0 < high else None
    return Histogram(tuple(bars), tuple(marks), low, high, zero_x, sum(counts))


@dataclass(frozen=True, slots=True)
class LayerCell:
    """The part of a score in the layers of one kind in one block, over the absolute score; its shade, -4 to 4."""

    share: float
    level: int


@dataclass(frozen=True, slots=True)
class LayerMap:
    """Influence by layer: a row per kind, a column per block. A cell is None where the model has no such layer."""

    blocks: tuple[str, ...]
    rows: tuple[tuple[str, float, tuple[LayerCell | None, ...]], ...]


def layer_map(layers: Sequence[LayerShare]) -> LayerMap | None:
    """The parts of a score, or of a sum of scores, by kind and block of layers; None if they are not known."""
    shares: dict[tuple[str, int | None], float] = {}
    for layer in layers:
        key = layer.kind, layer.block
        shares[key] = shares.get(key, 0.0) + layer.share
    total, largest = abs(sum(shares.values())), max(map(abs, shares.values()), default=0.0)
    if not total:
        return None
    blocks = sorted({block for _, block in shares}, key=lambda block: math.inf if block is None else block)

    def cell(kind: str, block: int | None) -> LayerCell | None:
        share = shares.get((kind, block))
        return None if share is None else LayerCell(share / total, round(_SHADES * share / largest))

    rows = [
        (kind, sum(share for (name, _), share in shares.items() if name == kind) / total,
         tuple(cell(kind, block) for block in blocks))
        for kind in dict.fromkeys(kind for kind, _ in shares)
    ]  # fmt: skip
    return LayerMap(tuple("other" if block is None else str(block) for block in blocks), tuple(rows))


@dataclass(frozen=True, slots=True)
class PassageColumn:
    """A passage of the map, and under how many questions it is."""

    example_id: str
    questions: int


@dataclass(frozen=True, slots=True)
class PassageCell:
    """A passage under one question: its column, its share of the question's largest score, and its link."""

    column: int
    share: float
    side: str
    rank: int
    example_id: str


@dataclass(frozen=True, slots=True)
class PassageMap:
    """Questions against passages: the columns, most shared first, and the cells of each question."""

    columns: tuple[PassageColumn, ...]
    cells: tuple[tuple[PassageCell, ...], ...]
    left_out: int


def passage_map(queries: Sequence[QuerySection]) -> PassageMap:
    """Which passages are among the first of which questions; the 40 that are under most questions."""
    counts: Counter[str] = Counter()
    strength: dict[str, float] = {}
    for query in queries:
        counts.update({hit.example_id for hit in _compared(query)})
        for hit in _compared(query):
            share = abs(hit.score) / _largest(query)
            strength[hit.example_id] = strength.get(hit.example_id, 0.0) + share
    ordered = sorted(counts, key=lambda name: (-counts[name], -strength[name], name))
    columns = {name: column for column, name in enumerate(ordered[:_MAX_PASSAGES])}
    cells = []
    for query in queries:
        row: dict[int, PassageCell] = {}
        for side, hits in (("pro", query.proponents), ("con", query.opponents)):
            for hit in hits[:_RANKS_COMPARED]:
                column = columns.get(hit.example_id)
                if column is not None and column not in row:
                    row[column] = PassageCell(column, hit.score / _largest(query), side, hit.rank, hit.example_id)
        cells.append(tuple(row[column] for column in sorted(row)))
    return PassageMap(
        tuple(PassageColumn(name, counts[name]) for name in columns), tuple(cells), len(ordered) - len(columns)
    )


def _compared(query: QuerySection) -> tuple[Hit, ...]:
    return query.proponents[:_RANKS_COMPARED] + query.opponents[:_RANKS_COMPARED]


def _largest(query: QuerySection) -> float:
    return max((abs(hit.score) for hit in query.hits), default=0.0) or 1.0
