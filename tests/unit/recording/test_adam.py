"""Invariant: rows recorded in the metric of Adam are those that a build makes with the optimiser's state of the
step at which it was read; an optimiser without second moments stops the recording only.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorif_core.corpus.batches import collate
from lorif_core.errors import UserError
from lorif_core.gradients.extract import Extractor
from lorif_core.gradients.side_scales import adam_scales
from lorif_core.lifecycle.plan import projection_spec
from lorif_core.model.layers import out_by_in, tracked_module
from lorif_core.model.loading import prepare_model
from lorif_core.model.optimizer_state import read_moments
from lorif_core.recording.record import record
from lorif_core.recording.recorder import Recorder
from tests.models import gpt2, llama, llama_lora, scaled
from tests.unit.recording.trainings import (
    COLUMNS,
    EXACT,
    batches_of,
    corpus_of,
    differing,
    journal_rows,
    padded,
    recorded,
    texts,
    train,
)

EXAMPLES = texts(24)
CORPUS = corpus_of(EXAMPLES)
BATCHES = [padded(batch) for batch in batches_of(EXAMPLES, 4)]
ADAM: dict[str, Any] = {"curvature": {"kind": "adam"}}
KINDS: dict[str, dict[str, Any]] = {
    "alone": {**ADAM, "projection": {"calibration_examples": 8, "whiten": False}},
    "whitened": {**ADAM, "projection": {"calibration_examples": 8}},
}


def arguments(folder: Path, **settings: Any) -> dict[str, Any]:
    return recorded(folder, corpus=CORPUS, columns=COLUMNS, **{**EXACT, **settings})


def train_with_adam(
    model: torch.nn.Module, recorder: Recorder, batches: Sequence[dict[str, torch.Tensor]], rate: float = 0.0
) -> dict[int, Any]:
    """The state of the optimiser after each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99))
    states = {}
    model.train()
    for batch in batches:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        states[recorder.step] = copy.deepcopy(optimizer.state_dict())
    return states


@pytest.mark.parametrize("family", [gpt2, llama])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_equal_those_of_a_build_with_the_state_of_the_optimiser(
    kind: str, family: Any, tmp_path: Path
) -> None:
    model = scaled(family())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with record(model, **arguments(tmp_path, **KINDS[kind])) as recorder:
        states = train_with_adam(model, recorder, [*BATCHES, *BATCHES])
    assert recorder.stopped is None and recorder._scales is not None
    step, whitening = recorder._scales.step, recorder._whitening
    assert step == 2 and (whitening is None if kind == "alone" else whitening is not None and whitening.step == 4)
    torch.save(states[step], tmp_path / "optimizer.pt")
    layers = recorder._tracked.layers
    moments = read_moments(tmp_path / "optimizer.pt", model, layers)
    modules = [tracked_module(model, layer.name) for layer in layers]
    squares = (out_by_in(module, of.squared()) for module, of in zip(modules, moments, strict=True))
    scales = adam_scales(layers, squares)
    assert scales.name == recorder._scales.scales.name
    roots = None if whitening is None else whitening.roots
    projection = projection_spec(recorder._settings.config)
    extractor = Extractor(prepare_model(model), layers, projection, recorder._layout.code, roots, scales)
    built = extractor.extract(collate(EXAMPLES, list(range(len(EXAMPLES)))))
    rows = journal_rows(tmp_path)[2]
    found = differing(rows, built, EXAMPLES, recorder)
    assert found["missing"] == 0 and found["gradients"][-1] < 2e-4, found
    assert min(row["step"] for of in rows.values() for row in of) == (3 if kind == "alone" else 5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_training_keeps_its_metric(kind: str, tmp_path: Path) -> None:
    names = []
    for first in (0, 6):
        model = scaled(llama())
        with record(model, start_step=first, **arguments(tmp_path, **KINDS[kind])) as recorder:
            train_with_adam(model, recorder, [*BATCHES, *BATCHES][first:], 1e-2)
        assert recorder.stopped is None and recorder._scales is not None and recorder._scales.step == 2
        names.append((recorder._scales.scales.name, recorder._whitening and recorder._whitening.name))
    assert names[0] == names[1]
    steps = sorted({row["step"] for of in journal_rows(tmp_path)[2].values() for row in of})
    assert steps == list(range(3 if kind == "alone" else 5, 13))


def test_an_optimiser_without_second_moments_stops_the_recording_only(tmp_path: Path) -> None:
    trained = []
    for recording in (True, False):
        model = scaled(llama())
        if recording:
            with record(model, **arguments(tmp_path, **ADAM)) as recorder:
                train(model, BATCHES, recorder, rate=0.1)
            assert recorder.stopped is not None and "no optimiser has second moments" in recorder.stopped
        else:
            train(model, BATCHES, rate=0.1)
        trained.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]).numpy())
    assert np.array_equal(*trained)


def test_the_optimiser_of_the_layers_may_be_another_than_that_of_the_first_weights(tmp_path: Path) -> None:
    model = scaled(llama()).train()
    others = [weight for name, weight in model.named_parameters() if "mlp" not in name]
    layers = [weight for name, weight in model.named_parameters() if "mlp" in name]
    optimizers = [torch.optim.SGD(others, lr=0.1), torch.optim.AdamW(layers, lr=1e-3)]
    with record(model, **arguments(tmp_path, model={"layers": "mlp"}, **KINDS["alone"])) as recorder:
        for batch in BATCHES:
            model(**batch).loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()
    assert recorder.stopped is None and recorder._scales is not None and recorder.step == len(BATCHES)


def test_layers_that_are_not_trained_are_refused_at_the_start(tmp_path: Path) -> None:
    settings = {**ADAM, "model": {"layers": "q_proj|v_proj"}}
    with (
        pytest.raises(UserError, match=r"needs layers that are trained, and .*base_layer is frozen; leave it out"),
        record(llama_lora(), **arguments(tmp_path, **settings)),
    ):
        pass
