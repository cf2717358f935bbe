"""The spectrum of a layer as a small SVG drawing: singular values over their index, on a logarithmic scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorif_core import formatting

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 292, 8, 112
PLOT = {"width": 300, "height": 130, "left": _LEFT, "right": _RIGHT, "top": _TOP, "bottom": _BOTTOM}
"""Size of the drawing and bounds of its curve, in SVG units."""
_POINTS = 120
_DECADES = 6  # singular values further below the largest are numerical zeros


@dataclass(frozen=True, slots=True)
class LayerSection:
    """A tracked layer: shapes, retained singular values (empty without a curvature) and damping lambda.

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
    """A line of the vertical scale and its label."""

    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A layer's spectrum in the coordinates of the drawing."""

    points: str
    ticks: tuple[Tick, ...]
    damping_y: float


def spectrum_plot(layer: LayerSection) -> Plot | None:
    """Curve of log10 of the singular values over their index, and the height of sqrt(lambda) on the same scale.

    The vertical range is whole decades. None if no singular value is positive.
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
    """SVG points from left to right, at most `_POINTS` of them."""
    last = len(heights) - 1
    if last == 0:  # a single value is drawn as a horizontal line
        return f"{_LEFT},{heights[0]} {_RIGHT},{heights[0]}"
    steps = min(last, _POINTS - 1)
    indices = (round(i * last / steps) for i in range(steps + 1))
    width = _RIGHT - _LEFT
    return " ".join(f"{_LEFT + width * i / last:.1f},{heights[i]}" for i in indices)
