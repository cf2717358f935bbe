"""How a page draws the text of a training example: shades of its tokens, and shared words."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from lorif_core.report.answer_sections import Hit

_SHADES = 4


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A part of an example's text.

    Attributes:
        text: the characters from `start` to `end` of the example's text.
        start: where it begins, in characters.
        end: where it ends.
        level: how much it raises (up to 4) or lowers (down to -4) the likelihood of the query, or hardly (0).
        is_shared: whether its words also occur in the query.
    """

    text: str
    start: int
    end: int
    level: int
    is_shared: bool


@dataclass(frozen=True, slots=True)
class _Run:
    start: int
    end: int
    level: int


def text_pieces(hit: Hit, part: tuple[int, int] | None = None) -> Iterator[TextPiece]:
    """Cut the text of an example, or a part of it, where its shade or its shared words change.

    The concatenated pieces are that text. Levels are relative to the example's strongest token.
    """
    text, (start, stop) = hit.text or "", part or (0, len(hit.text or ""))
    runs = _runs(hit)
    cuts = {start, stop}
    for first, last in (*((run.start, run.end) for run in runs), *hit.overlap):
        cuts.update(cut for cut in (first, last) if start < cut < stop)
    ordered, next_run, next_shared = sorted(cuts), 0, 0
    for first, last in pairwise(ordered):
        while next_run < len(runs) and runs[next_run].end <= first:
            next_run += 1
        while next_shared < len(hit.overlap) and hit.overlap[next_shared][1] <= first:
            next_shared += 1
        is_in_run = next_run < len(runs) and runs[next_run].start <= first
        is_shared = next_shared < len(hit.overlap) and hit.overlap[next_shared][0] <= first
        yield TextPiece(text[first:last], first, last, runs[next_run].level if is_in_run else 0, is_shared)


def _runs(hit: Hit) -> list[_Run]:
    """Neighbouring tokens of the same level as one run, without the spaces around it; level 0 has no run."""
    tokens, text = hit.training_tokens or (), hit.text or ""
    largest = max((abs(token.share) for token in tokens), default=0.0)
    merged: list[_Run] = []
    for token in tokens:
        level = round(_SHADES * token.share / largest) if largest else 0
        if merged and merged[-1].level == level and not text[merged[-1].end : token.start].strip():
            merged[-1] = _Run(merged[-1].start, token.end, level)
        else:
            merged.append(_Run(token.start, token.end, level))
    return [trimmed for run in merged if run.level and (trimmed := _without_spaces(run, text)) is not None]


def _without_spaces(run: _Run, text: str) -> _Run | None:
    content = text[run.start : run.end]
    start = run.start + len(content) - len(content.lstrip())
    end = run.start + len(content.rstrip())
    return _Run(start, end, run.level) if start < end else None
