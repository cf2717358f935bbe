"""The picture of the data flow: from the corpus to a generation, and from a query to a report."""

from dataclasses import dataclass
from itertools import pairwise

from docs_generators.svg import Box, Drawing, Line

_WIDTH, _MARGIN = 760, 10
_BOX_WIDTH, _BOX_HEIGHT, _STEP = 330, 62, 84
_RIGHT = _WIDTH - _MARGIN - _BOX_WIDTH
_FIRST_QUERY_ROW = 4
_BUILDING, _ASKING = "#cfe2f3", "#d9ead3"


@dataclass(frozen=True, slots=True)
class Stage:
    """Something that flows, how it is made, and the files that make it (without a folder: of `lorif_core`)."""

    name: str
    explanation: str
    files: tuple[str, ...]


BUILDING = (
    Stage("corpus shard", "up to 512 rows of one file", ("corpus/shards.py", "corpus/records.py")),
    Stage("token batch", "similar lengths together", ("corpus/tokenise.py", "corpus/batches.py")),
    Stage("projected pairs", "inputs and output gradients", ("gradients/capture.py", "gradients/projection.py")),
    Stage("codes", "factors or signs, packed", ("gradients/codes.py", "gradients/extract.py")),
    Stage("Lance fragment", "written, not yet committed", ("lifecycle/index_shard.py", "tables/rows.py")),
    Stage("receipt", "record of a finished shard", ("tables/receipts.py", "tasks/dispatch.py")),
    Stage("large fragment", "the rows of many shards", ("tables/rows.py", "lifecycle/waves.py")),
    Stage("wave commit", "many shards in one transaction", ("lifecycle/waves.py", "tables/datasets.py")),
    Stage("curvature", "of all committed rows", ("tasks/curvature.py", "curvature/randomized_svd.py")),
    Stage("generation", "versions that belong together", ("lifecycle/publishing.py", "tables/store.py")),
)
ASKING = (
    Stage("query", "text, or prompt and completion", ("search/queries.py", "search/query_encoder.py")),
    Stage("folded query", "gradient times inverse curvature", ("search/part_reader.py",)),
    Stage("scan", "prefilter, then exact scores", ("search/prefilter.py", "search/top_rows.py")),
    Stage("top k", "proponents and opponents", ("search/heaps.py", "search/top_k.py")),
    Stage("report", "page, table and summary", ("report/page.py", "report/batch_outputs.py")),
)


def data_flow_svg() -> str:
    """Two columns: building an index on the left, asking it on the right."""
    height = _MARGIN + _STEP * len(BUILDING) - (_STEP - _BOX_HEIGHT) + _MARGIN
    stages = " to ".join(stage.name for stage in BUILDING), " to ".join(stage.name for stage in ASKING)
    drawing = Drawing(
        _WIDTH, height, "Data flow", f"Building: {stages[0]}. Asking: {stages[1]}. A scan reads a generation."
    )
    built = [_place(_MARGIN, row) for row in range(len(BUILDING))]
    asked = [_place(_RIGHT, row + _FIRST_QUERY_ROW) for row in range(len(ASKING))]
    for places, stages_of, colour in ((built, BUILDING, _BUILDING), (asked, ASKING, _ASKING)):
        for stage, box in zip(stages_of, places, strict=True):
            drawing.box(box, _lines(stage), colour)
        for upper, lower in pairwise(places):
            drawing.arrow((upper.middle[0], upper.y + upper.height), (lower.middle[0], lower.y - 1))
    _draw_read(drawing, built[-1], asked[_index(ASKING, "scan")])
    drawing.label(asked[0].middle[0], asked[0].y - 12, "asking an index", anchor="middle")
    for row, text in enumerate(("tasks/ is a folder of the repository;", "all other files are in lorif_core/")):
        drawing.label(_RIGHT + _BOX_WIDTH / 2, _MARGIN + 24 + 18 * row, text, anchor="middle")
    return drawing.svg()


def _draw_read(drawing: Drawing, generation: Box, scan: Box) -> None:
    """An arrow from the generation up the gap between the columns to the scan."""
    gap = (generation.x + generation.width + scan.x) / 2
    drawing.arrow(
        (generation.x + generation.width, generation.middle[1]),
        (gap, generation.middle[1]),
        (gap, scan.middle[1]),
        (scan.x - 1, scan.middle[1]),
    )


def _place(x: float, row: int) -> Box:
    return Box(x, _MARGIN + row * _STEP, _BOX_WIDTH, _BOX_HEIGHT)


def _lines(stage: Stage) -> list[Line]:
    return [
        Line(stage.name, 14, is_bold=True),
        Line(stage.explanation),
        Line(", ".join(stage.files), 11, is_code=True),
    ]


def _index(stages: tuple[Stage, ...], name: str) -> int:
    return [stage.name for stage in stages].index(name)
