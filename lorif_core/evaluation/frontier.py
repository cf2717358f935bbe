"""LDS against bytes on disk for every method, as CSV, JSON and a plot with the frontier."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from lorif_core.config import StorageConfig
from lorif_core.errors import UserError
from lorif_core.evaluation.bootstrap import Interval
from lorif_core.evaluation.lds import Truth
from lorif_core.evaluation.results import (
    MethodResults,
    cost_columns,
    csv_file,
    difference_row,
    json_file,
    write_files,
)


def write_frontier(
    out: str,
    storage: StorageConfig,
    results: Sequence[MethodResults],
    intervals: Mapping[str, Interval],
    differences: Mapping[tuple[str, str], Interval],
    truth: Truth,
) -> dict[str, Any]:
    """Write lds.csv, lds.json and lds.svg into `out`, and return the content of the JSON file."""
    rows = [_row(method, intervals[method.name]) for method in results]
    difference_rows = [difference_row(pair, difference) for pair, difference in differences.items()]
    subsets, queries = truth.losses.shape
    summary = {
        "subsets": subsets, "seeds": truth.seeds, "queries": queries, "examples": truth.members.shape[1],
        "seed_agreement": truth.agreement, "methods": rows, "differences": difference_rows,
    }  # fmt: skip
    files = {"lds.csv": csv_file(rows), "lds.json": json_file(summary), "lds.svg": _plot(rows)}
    write_files(out, storage, files)
    return summary


def _row(method: MethodResults, interval: Interval) -> dict[str, Any]:
    return {
        "method": method.name,
        "lds": round(interval.value, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        **cost_columns(method),
    }


def require_plotting() -> None:
    """Raise UserError unless the packages of the optional dependency set `evaluate` are installed."""
    try:
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'lorif-pipeline[evaluate]'") from None


def _frontier(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows whose LDS exceeds that of every row with fewer bytes, in the order of bytes."""
    best: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["bytes_per_example"], -row["lds"])):
        if not best or row["lds"] > best[-1]["lds"]:
            best.append(row)
    return best


def _plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """An SVG plot of LDS with intervals against bytes per example on a logarithmic scale, with the frontier."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    with_size = [row for row in rows if row["bytes_per_example"] is not None]
    for row in with_size:
        errors = [[max(row["lds"] - row["low"], 0)], [max(row["high"] - row["lds"], 0)]]
        axes.errorbar(row["bytes_per_example"], row["lds"], yerr=errors, fmt="o", capsize=2, color="C0")
        axes.annotate(
            row["method"],
            (row["bytes_per_example"], row["lds"]),
            xytext=(5, 4),
            textcoords="offset points",
            size=7,
        )
    for row in rows:
        if row["bytes_per_example"] is None:
            axes.axhline(row["lds"], linestyle=":", color="0.5")
            axes.annotate(row["method"], (0.01, row["lds"]), xycoords=("axes fraction", "data"), size=7)
    best = _frontier(with_size)
    axes.step(
        [row["bytes_per_example"] for row in best],
        [row["lds"] for row in best],
        where="post",
        color="C1",
        zorder=0,
    )
    if with_size:
        axes.set_xscale("log")
    axes.set_xlabel("bytes per example on disk")
    axes.set_ylabel("LDS, 95 % interval")
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()
