"""What an evaluation has measured, as tables: rows of methods with their costs, differences, CSV and JSON.

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
from lorif_core.storage.filesystem import contact, open_filesystem

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """A method's scores and what they cost.

    Attributes:
        name: of the method.
        scores: (Q, N) float32.
        bytes_per_example: on storage; None for a method without an index.
        timings: seconds of the build's stages.
        query_seconds: encoding, folding and scanning for all queries.
        searches: what searches of its index find, as `search_recall.search_recall` tells it, where that was asked.
    """

    name: str
    scores: np.ndarray
    bytes_per_example: float | None
    timings: Mapping[str, float]
    query_seconds: float
    searches: Sequence[Row] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity of all methods: the columns that name it, and per method a value (Q,) for each query."""

    labels: Mapping[str, str]
    values: Mapping[str, np.ndarray]


def tabulate(
    measured: Sequence[Measured], figures: Sequence[Figure], pairs: Sequence[tuple[str, str]]
) -> tuple[list[Row], list[Row]]:
    """Rows of every method and figure, means over queries with intervals; rows of the pairs' differences."""
    rows: dict[str, list[Row]] = {found.name: [] for found in measured}
    compared = []
    for figure in figures:
        intervals, differences = mean_intervals(figure.values, pairs)
        for found in measured:
            mean = intervals[found.name]
            rows[found.name].append(
                {"method": found.name, **figure.labels, "value": _short(mean.value), "low": _short(mean.low),
                 "high": _short(mean.high), "queries": len(figure.values[found.name]), **costs(found)}
            )  # fmt: skip
        compared += [{**figure.labels, **difference_row(*found)} for found in differences.items()]
    return [row for of_method in rows.values() for row in of_method], compared


def costs(found: Measured) -> Row:
    """What a method costs, as columns."""
    return {
        "bytes_per_example": None if found.bytes_per_example is None else round(found.bytes_per_example, 1),
        "index_seconds": round(found.timings.get("index", 0.0), 1),
        "fit_seconds": round(found.timings.get("calibrate", 0.0) + found.timings.get("curvature", 0.0), 1),
        "query_seconds": round(found.query_seconds, 1),
    }


def difference_row(pair: tuple[str, str], difference: Interval) -> Row:
    """First minus second."""
    return {
        "first": pair[0], "second": pair[1], "difference": difference.value, "low": difference.low,
        "high": difference.high,
    }  # fmt: skip


def csv_file(rows: Sequence[Row]) -> bytes:
    """Rows of equal columns."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue().encode()


def json_file(summary: Mapping[str, Any]) -> bytes:
    """For people too."""
    return (json.dumps(summary, indent=2) + "\n").encode()


def write_files(out: str, storage: StorageConfig, files: Mapping[str, bytes]) -> None:
    """Write into the output folder; what an earlier run has left is replaced."""
    fs, path = open_filesystem(out, storage)
    with contact(out, "write"):
        for name, content in files.items():
            fs.pipe_file(f"{path}/{name}", content)


def _short(value: float) -> float:
    return float(f"{value:.6g}")
