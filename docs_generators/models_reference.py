"""The table of models: what became of each architecture in the sweep (`make test-models`)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from docs_generators.benchmark_results import REPOSITORY
from docs_generators.markdown import code, page, table
from lorif_core.formatting import listed

_LISTED = 4
RESULTS = "tests/models_sweep/results.json"


def models_page() -> str:
    """The page `reference/models.md`."""
    results = json.loads((REPOSITORY / RESULTS).read_text(encoding="utf-8"))
    rows = results["configurations"]
    right = [row for row in rows if row["outcome"] == "right"]
    refused = [row for row in rows if row["outcome"] == "refused"]
    return page(
        f"""\
# Models

Every causal language model of transformers {results["transformers"]} was made small, with random weights. It was
saved, loaded and run as a build does it, on a padded batch of texts of different lengths. The gradient of each
tracked layer for each text was compared with plain autograd of that text alone. Of {len(rows)} configurations of
{len({row["model_type"] for row in rows})} model types, {len(right)} are right to a relative error of 1e-4, and
{len(refused)} are refused. None is wrong. `make test-models` does it again.

`lorif check` says how much of your own model is covered.
""",
        "## Right {#right}",
        """\
Coverage is the share of the parameters of the small model whose gradients are tracked. A small model has large
embeddings for its size, so coverage of a real one is usually higher. What is not covered is listed from the
largest on; layers that cannot be captured stand behind it with the reason.
""",
        table(["Model type", "Variant", "Class", "Coverage", "Not covered"], map(_right_row, right)),
        "## Refused {#refused}",
        "The reason is what a build says, with `MODEL` for the path.",
        table(["Model type", "Variant", "Class", "Reason"], map(_refused_row, refused)),
        "## Not tried {#not-tried}",
        table(["Model type", "Reason"], ([code(name), why] for name, why in results["not made"].items())),
    )


def _right_row(row: Mapping[str, Any]) -> list[str]:
    return [*_names(row), f"{row['coverage']:.0%}", "; ".join(_by_reason(row["left_out"]))]


def _by_reason(groups: Sequence[str]) -> Iterator[str]:
    """Groups of parameters; layers that are left out for the same reason are listed before it."""
    layers: dict[str, list[str]] = {}
    for group in groups:
        layer, _, reason = group.removesuffix(")").partition(" (")
        if "." in layer:
            layers.setdefault(reason, []).append(layer)
        else:
            yield group
    for reason, names in layers.items():
        yield f"{listed(list(map(code, names)), _LISTED)}: {reason}"


def _refused_row(row: Mapping[str, Any]) -> list[str]:
    return [*_names(row), row["detail"]]


def _names(row: Mapping[str, Any]) -> list[str]:
    return [code(row["model_type"]), row["variant"], code(row["architecture"])]
