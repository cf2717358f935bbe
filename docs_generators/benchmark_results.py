"""The JSON files of the benchmarks, and how their numbers are written on a page."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from docs_generators.markdown import code, fenced, page
from lorif_core.presets import PRESETS

REPOSITORY = Path(__file__).parents[1]
RESULTS = Path("benchmarks/results")


@cache
def load(name: str) -> dict[str, Any]:
    """A result by its path below `benchmarks/results`, such as `build.json`."""
    return json.loads((REPOSITORY / RESULTS / name).read_text(encoding="utf-8"))


def by_method(name: str) -> dict[str, Any]:
    """The entries of a result that has one for each method, without the run record."""
    return {key: value for key, value in load(name).items() if key != "run"}


def source_comment(*names: str) -> str:
    """The comment that names where the numbers of the next block come from (`quoted_numbers.py` reads it)."""
    return f"<!-- from {', '.join(str(RESULTS / name) for name in names)} -->"


def sourced(block: str, *names: str) -> str:
    """A block of numbers under the comment that names its source."""
    return f"{source_comment(*names)}\n{block}"


def provenance(name: str, *commands: str) -> str:
    """When and where a result was measured, and the commands that measure it again."""
    run = load(name)["run"]
    torch = f", torch {run['torch']}" if "torch" in run else ""
    place = f"Measured {run['date']} on {run['machine']}{torch}; recorded in commit `{run['commit']}`."
    return page(f"{place} To measure it again:", fenced("sh", "\n".join(commands)))


def measured_by(module: str, options: str = "", name: str | None = None) -> tuple[str, str]:
    """The result of a benchmark and the command that measures it."""
    result = name or f"{module}.json"
    return result, f"python -m benchmarks.{module}{options} --out benchmarks/results/{result}"


def method_name(name: str) -> str:
    """The name of a method, that of a preset in code type."""
    method, comma, rest = name.partition(", ")
    return f"{code(method)}{comma}{rest}" if method in PRESETS else name


def decimals(value: float, digits: int) -> str:
    """A number with a fixed number of decimals."""
    return f"{value:,.{digits}f}"


def rounded(value: float, digits: int = 3) -> str:
    """A number of a thousand or more with so many significant digits, a smaller one as an integer."""
    if value < 1000:
        return f"{value:.0f}"
    step = 10 ** (len(str(int(value))) - digits)
    return f"{round(value / step) * step:,}"


def interval(values: Sequence[float], digits: int = 3) -> str:
    """A value and its interval, such as `0.603 [0.546, 0.656]`."""
    value, low, high = values
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def signed_interval(values: Sequence[float], digits: int = 3) -> str:
    """A difference and its interval, such as `+0.106 [+0.052, +0.161]`."""
    value, low, high = values
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
