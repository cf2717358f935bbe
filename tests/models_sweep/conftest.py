"""Collects the outcomes of a sweep, from all processes, and writes them where the documentation reads them."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.models_sweep.configurations import CONFIGURATIONS, NOT_MADE

RESULTS = Path(__file__).with_name("results.json")
_outcomes: dict[str, dict[str, Any]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the outcome that a test of this folder has recorded."""
    for key, value in report.user_properties if report.when == "call" and report.passed else ():
        if key == "outcome":
            _outcomes[report.nodeid] = value


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the results if every configuration was tried and none failed."""
    if hasattr(session.config, "workerinput") or len(_outcomes) < len(CONFIGURATIONS):
        return
    results = {
        "transformers": version("transformers"),
        "configurations": sorted(_outcomes.values(), key=lambda row: (row["model_type"].lower(), row["variant"])),
        "not made": NOT_MADE,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
