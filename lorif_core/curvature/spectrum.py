"""The spectrum of a layer as a small drawing: singular values over their index, on a logarithmic scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorif_core import formatting

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 292, 8, 112
PLOT = {"width": 300, "height": 130, "left": _LEFT, "right": _RIGHT, "top": _TOP, "bottom": _BOTTOM}
"""Bounds of the drawing, and of the curve in it."""
_POINTS = 120
_DECADES = 6  # singular values further below the largest are numerical zeros


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
class Tick:
    """A line of the scale and what is written beside it."""

    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A layer's spectrum in the coordinates of its drawing."""

    points: str
    ticks: tuple[Tick, ...]
    damping_y: float


def spectrum_plot(layer: LayerSection) -> Plot | None:
    """log10 of the singular values over their index, and sqrt(lambda), which is comparable with them.

    None where there is nothing to draw. The vertical range is whole decades.
    """
    top = max(layer.sigma, default=0.0)
    if top <= 0:
        return None
    floor = top / 10**_DECADES
    logs = [math.log10(max(value, floor)) for value in layer.sigma]
    damping = math.log10(max(math.sqrt(max(layer.damping, 0.0)), floor))
    low, high = math.floor(min(*logs, damping)), math.ceil(max(*logs, damping))
    high = max(high, low + 1)

    def y(log: float) -> float:
        return round(_BOTTOM - (log - low) / (high - low) * (_BOTTOM - _TOP), 1)

    step = -(-(high - low) // 4)
    ticks = tuple(Tick(y(e), f"10{formatting.superscript(e)}") for e in range(low, high + 1, step))
    return Plot(_polyline([y(log) for log in logs]), ticks, y(damping))


def _polyline(heights: Sequence[float]) -> str:
    """SVG points from left to right, thinned to what the drawing can show."""
    last = len(heights) - 1
    if last == 0:  # a single value is drawn as a level line
        return f"{_LEFT},{heights[0]} {_RIGHT},{heights[0]}"
    drawn = min(last, _POINTS - 1)
    indices = (round(i * last / drawn) for i in range(drawn + 1))
    width = _RIGHT - _LEFT
    return " ".join(f"{_LEFT + width * i / last:.1f},{heights[i]}" for i in indices)
