"""The picture of the packages and the wings of `lorif_core`, from the import contract in `pyproject.toml`."""

import ast
import re
import textwrap
import tomllib
from collections.abc import Sequence
from pathlib import Path

from docs_generators.svg import Box, Drawing, Line, characters, height_of

LIBRARY = "lorif_core"
_WIDTH, _MARGIN, _GAP = 760, 14, 10
_ARROW_SPACE = 34  # at the right, for the arrow that says which way imports run
_LABEL_SPACE = 26  # of the frame around the library
_COLOURS = {"flows": "#f6d8b8", "tasks": "#f3e6b3", LIBRARY: "#cfe2f3"}
_BETWEEN_LAYERS = re.compile(r"\s*[|:]\s*")


def wings_svg(repository: Path) -> str:
    """The layers from the top to the ground; a module imports from its own layer's module and from those below."""
    layers = contract_layers(repository)
    lines = {name: box_lines(repository, name, len(layer)) for layer in layers for name in layer}
    heights = [max(height_of(lines[name]) for name in layer) for layer in layers]
    first = next(place for place, layer in enumerate(layers) if layer[0].startswith(f"{LIBRARY}."))
    height = 2 * _MARGIN + sum(heights) + _GAP * (len(layers) - 1) + _LABEL_SPACE + _GAP
    drawing = Drawing(
        _WIDTH, height, "Packages and wings in layers",
        f"Layers from top to bottom: {'; '.join(', '.join(layer) for layer in layers)}. Imports run downwards.",
    )  # fmt: skip
    y: float = _MARGIN
    for place, (layer, row_height) in enumerate(zip(layers, heights, strict=True)):
        if place == first:
            bottom = height - _MARGIN / 2
            drawing.frame(Box(_MARGIN / 2, y, _WIDTH - _ARROW_SPACE - _MARGIN, bottom - y), LIBRARY)
            y += _LABEL_SPACE
        for name, box in zip(layer, _row(y, row_height, len(layer)), strict=True):
            drawing.box(box, lines[name], _COLOURS[name.partition(".")[0]])
        y += row_height + _GAP
    middle = _WIDTH - _ARROW_SPACE / 2
    drawing.arrow((middle, 56), (middle, height - _MARGIN))
    drawing.label(_WIDTH - 4, 34, "imports", anchor="end")
    return drawing.svg()


def contract_layers(repository: Path) -> list[list[str]]:
    """The layers of the import contract, from the top; a layer may have several modules."""
    settings = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [_BETWEEN_LAYERS.split(layer) for layer in layers]


def box_lines(repository: Path, module: str, neighbours: int) -> list[Line]:
    """The name of a module and, where there is room, the first sentence of its docstring."""
    name = Line(module.removeprefix(f"{LIBRARY}."), 14, is_bold=True)
    if neighbours > 2:
        return [name]
    room = characters(_box_width(neighbours) - 16)
    return [name, *(Line(text) for text in textwrap.wrap(summary(repository, module), room))]


def summary(repository: Path, module: str) -> str:
    """The first sentence of a module's docstring."""
    path = repository / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].replace("`", "").replace("->", "→").split())
    return re.split(r"(?<=[.!?])\s", paragraph)[0]


def _box_width(neighbours: int) -> float:
    inner = _WIDTH - _ARROW_SPACE - 3 * _MARGIN
    return (inner - _GAP * (neighbours - 1)) / neighbours


def _row(y: float, height: float, count: int) -> Sequence[Box]:
    width = _box_width(count)
    return [Box(1.5 * _MARGIN + place * (width + _GAP), y, width, height) for place in range(count)]
