"""Results of an evaluation as tables: one row per method with its costs, differences, CSV and JSON.

Shapes: Q queries, N examples.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorif_core.config import StorageConfig
from lorif_core.evaluation.bootstrap import Interval, mean_intervals
from lorif_core.storage.filesystem import open_filesystem, storage_errors

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MethodResults:
    """A method's scores and their costs.

    Attributes:
        name: name of the method.
        scores: (Q, N) float32.
        bytes_per_example: bytes of the index per example; None for a method without an index.
        timings: seconds by stage of the build.
        query_seconds: seconds to encode, fold and scan for all queries.
        searches: recall of the index's searches (`search_recall.search_recall`); empty if not measured.
    """

    name: str
    scores: np.ndarray
    bytes_per_example: float | None
    timings: Mapping[str, float]
    query_seconds: float
    searches: Sequence[Row] = ()


@dataclass(frozen=True, slots=True)
class MetricValues:
    """One metric of all methods: columns that name the metric, and per-query values (Q,) by method name."""

    labels: Mapping[str, str]
    values: Mapping[str, np.ndarray]


def tabulate(
    results: Sequence[MethodResults], metrics: Sequence[MetricValues], pairs: Sequence[tuple[str, str]]
) -> tuple[list[Row], list[Row]]:
    """Rows by method and metric with means over queries and intervals, and rows of the paired differences."""
    rows: dict[str, list[Row]] = {method.name: [] for method in results}
    difference_rows = []
    for metric in metrics:
        intervals, differences = mean_intervals(metric.values, pairs)
        for method in results:
            mean = intervals[method.name]
            rows[method.name].append(
                {"method": method.name, **metric.labels, "value": _short(mean.value), "low": _short(mean.low),
                 "high": _short(mean.high), "queries": len(metric.values[method.name]), **cost_columns(method)}
            )  # fmt: skip
        difference_rows += [{**metric.labels, **difference_row(*item)} for item in differences.items()]
    return [row for method_rows in rows.values() for row in method_rows], difference_rows


def cost_columns(method: MethodResults) -> Row:
    """Columns with the costs of a method."""
    size = method.bytes_per_example
    return {
        "bytes_per_example": None if size is None else round(size, 1),
        "index_seconds": round(method.timings.get("index", 0.0), 1),
        "fit_seconds": round(method.timings.get("calibrate", 0.0) + method.timings.get("curvature", 0.0), 1),
        "query_seconds": round(method.query_seconds, 1),
    }


def difference_row(pair: tuple[str, str], difference: Interval) -> Row:
    """Row of a paired difference, first minus second."""
    return {
        "first": pair[0], "second": pair[1], "difference": difference.value, "low": difference.low,
        "high": difference.high,
    }  # fmt: skip


def csv_file(rows: Sequence[Row]) -> bytes:
    """Encode rows with equal columns as CSV."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue().encode()


def json_file(summary: Mapping[str, Any]) -> bytes:
    """Encode a summary as indented JSON."""
    return (json.dumps(summary, indent=2) + "\n").encode()


def write_files(out: str, storage: StorageConfig, files: Mapping[str, bytes]) -> None:
    """Write files into the output folder; existing ones are replaced."""
    fs, path = open_filesystem(out, storage)
    with storage_errors(out, "write"):
        for name, content in files.items():
            fs.pipe_file(f"{path}/{name}", content)


def _short(value: float) -> float:
    return float(f"{value:.6g}")
