"""The table of models: what became of each architecture in the sweep (`make test-models`)."""

import json
from collections.abc import Mapping
from typing import Any

from docs_generators.benchmark_results import REPOSITORY
from docs_generators.markdown import code, page, table

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

Every causal language model of transformers {results["transformers"]} was made small and random, saved, loaded and
run as a build does it, on a padded batch of texts of different lengths. The gradient of each tracked layer and
each text was compared with plain autograd of the text alone. Of {len(rows)} configurations of
{len({row["model_type"] for row in rows})} model types, {len(right)} are right to a relative error of 1e-4, and
{len(refused)} are refused. None is wrong. `make test-models` does it again.

`lorif check` says how much of your own model is covered.
""",
        "## Right {#right}",
        """\
Coverage is the share of the parameters of the small model whose gradients are tracked. A small model has large
embeddings for its size, so coverage of a real one is usually higher. What is not covered is listed from the
largest on.
""",
        table(["Model type", "Variant", "Class", "Coverage", "Not covered"], map(_right_row, right)),
        "## Refused {#refused}",
        "The reason is what a build says.",
        table(["Model type", "Variant", "Class", "Reason"], map(_refused_row, refused)),
        "## Not tried {#not-tried}",
        table(["Model type", "Reason"], ([code(name), why] for name, why in results["not made"].items())),
    )


def _right_row(row: Mapping[str, Any]) -> list[str]:
    return [*_names(row), f"{row['coverage']:.0%}", ", ".join(row["left_out"]) or "nothing"]


def _refused_row(row: Mapping[str, Any]) -> list[str]:
    return [*_names(row), row["detail"]]


def _names(row: Mapping[str, Any]) -> list[str]:
    return [code(row["model_type"]), row["variant"], code(row["architecture"])]
