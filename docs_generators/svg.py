"""Drawing boxes, arrows and text as SVG that can be read on a light and on a dark page.

Text stands in filled boxes or in a grey that both backgrounds leave readable; the background is transparent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

GREY = "#7d7d7d"
_INK = "#1c1c1c"
_CHARACTER_WIDTH = 0.54  # of the font size, in a sans-serif font, on average


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text in a box."""

    text: str
    size: float = 12
    is_bold: bool = False
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on the page, in pixels."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> tuple[float, float]:
        """Its centre."""
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(slots=True)
class Drawing:
    """Shapes of a picture; `svg` is the file."""

    width: float
    height: float
    title: str
    description: str
    _shapes: list[str] = field(default_factory=list)

    def box(self, box: Box, lines: Sequence[Line], fill: str) -> None:
        """A filled box with centred lines of text."""
        self._shapes.append(
            f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" rx="5" '
            f'fill="{fill}" stroke="{GREY}"/>'
        )
        x, middle = box.middle
        y = middle - sum(_spacing(line) for line in lines) / 2
        for line in lines:
            y += _spacing(line)
            self._text(x, y - 0.28 * _spacing(line), line, _INK, "middle")

    def frame(self, box: Box, label: str) -> None:
        """A dashed outline with a label in its upper left corner."""
        self._shapes.append(
            f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" rx="7" fill="none" '
            f'stroke="{GREY}" stroke-dasharray="5 4"/>'
        )
        self.label(box.x + 10, box.y + 17, label)

    def label(self, x: float, y: float, text: str, anchor: str = "start") -> None:
        """Grey text outside a box."""
        self._text(x, y, Line(text), GREY, anchor)

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through some points, with a head at the last."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._shapes.append(
            f'<polyline points="{path}" fill="none" stroke="{GREY}" stroke-width="1.6" marker-end="url(#head)"/>'
        )

    def svg(self) -> str:
        """The file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'width="{self.width:g}" height="{self.height:g}" role="img" aria-labelledby="title description" '
            f'font-family="system-ui, Helvetica, Arial, sans-serif">'
        )
        marker = (
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{GREY}"/></marker></defs>'
        )
        titles = (
            f'<title id="title">{escape(self.title)}</title>'
            f'<desc id="description">{escape(self.description)}</desc>'
        )
        return "\n".join([head, titles, marker, *self._shapes, "</svg>"]) + "\n"

    def _text(self, x: float, y: float, line: Line, colour: str, anchor: str) -> None:
        weight = ' font-weight="600"' if line.is_bold else ""
        family = ' font-family="ui-monospace, Menlo, Consolas, monospace"' if line.is_code else ""
        self._shapes.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{line.size:g}" text-anchor="{anchor}" '
            f'fill="{colour}"{weight}{family}>{escape(line.text)}</text>'
        )


def _spacing(line: Line) -> float:
    """Height of a line of text."""
    return 1.32 * line.size


def characters(width: float, size: float = 12) -> int:
    """How many characters of a sans-serif font fit into a width."""
    return int(width / (size * _CHARACTER_WIDTH))


def height_of(lines: Sequence[Line], padding: float = 14) -> float:
    """Height of a box that holds some lines."""
    return sum(_spacing(line) for line in lines) + padding
