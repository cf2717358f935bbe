"""The page of models has every configuration of the sweep, with the outcome that the sweep demands."""

import json

from docs_generators.benchmark_results import REPOSITORY
from docs_generators.models_reference import RESULTS, models_page
from tests.models_sweep.configurations import CONFIGURATIONS, NOT_MADE, REFUSED


def test_the_results_are_those_of_the_configurations() -> None:
    rows = json.loads((REPOSITORY / RESULTS).read_text())["configurations"]
    outcomes = {(row["model_type"], row["variant"]): row["outcome"] for row in rows}
    assert outcomes == {
        (configuration.model_type, configuration.variant): "refused" if configuration.name in REFUSED else "right"
        for configuration in CONFIGURATIONS
    }, "run make test-models"


def test_every_model_type_is_on_the_page() -> None:
    text = models_page()
    names = {configuration.model_type for configuration in CONFIGURATIONS} | set(NOT_MADE)
    assert [name for name in names if f"| `{name}` |" not in text] == []
