"""Invariant: every causal architecture of transformers is right to 1e-4 of plain autograd, or refused by name.

`make test-models` runs it and writes `results.json`, which is the table of models in the documentation.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lorif_core.corpus.batches import Batch
from lorif_core.gradients.extract import Extractor
from tests.models_sweep.configurations import CONFIGURATIONS, NOT_MADE, REFUSED, Configuration
from tests.models_sweep.trial import attempt

pytestmark = pytest.mark.models


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda configuration: configuration.name)
def test_gradients_are_right_or_refused(
    configuration: Configuration, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    outcome = attempt(configuration, tmp_path)
    record_property("outcome", outcome.as_row())
    expected = REFUSED.get(configuration.name)
    if expected is None:
        assert outcome.outcome == "right", outcome.detail
    else:
        assert outcome.outcome == "refused", outcome.detail
        assert re.search(expected, outcome.detail)


@pytest.mark.parametrize("name", [name for name, reason in REFUSED.items() if "model.exclude" in reason])
def test_what_a_refusal_advises_helps(name: str, tmp_path: Path) -> None:
    (configuration,) = (configuration for configuration in CONFIGURATIONS if configuration.name == name)
    advice = re.search(r"model\.exclude: (\S+)$", attempt(configuration, tmp_path / "refused").detail)
    assert advice is not None
    outcome = attempt(configuration, tmp_path / "followed", exclude=advice[1])
    assert outcome.outcome == "right", outcome.detail


def test_there_are_enough_configurations_and_few_are_left_out() -> None:
    names = [configuration.name for configuration in CONFIGURATIONS]
    assert len(set(names)) == len(names) >= 150
    assert set(names) >= set(REFUSED) and len(NOT_MADE) <= 5


@pytest.mark.parametrize("fault", ["scaled layer", "layer of zeros", "other loss", "mixed examples"])
def test_the_comparison_finds_a_fault(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    correct = Extractor.gradients

    def faulty(self: Extractor, batch: Batch) -> tuple[np.ndarray, list[torch.Tensor]]:
        losses, gradients = correct(self, batch)
        if fault == "scaled layer":
            gradients[3] *= 1.001
        elif fault == "layer of zeros":
            gradients[3].zero_()
        elif fault == "other loss":
            losses[1] += 0.1
        else:
            gradients[3] = gradients[3].flip(0)
        return losses, gradients

    monkeypatch.setattr(Extractor, "gradients", faulty)
    assert attempt(Configuration("llama"), tmp_path).outcome == "wrong"
