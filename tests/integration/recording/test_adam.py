"""Invariant: a training recorded in its optimiser's metric becomes an index that needs the optimiser no more."""

from pathlib import Path

import pytest

import lorif_core as lc
from flows.commands.maintenance import run_status
from flows.update import update
from lorif_core.tables.store import Store
from tests.integration.recording.test_publishing import ROWS, corpus, record_training
from tests.integration.recording.test_trainer import callback, steps_of, trainer

__all__ = ["corpus"]
ALONE = {"curvature": {"kind": "adam"}, "projection": {"calibration_examples": 16, "whiten": False}}


@pytest.mark.usefixtures("prefect_server", "ray_session")
def test_a_recorded_index_keeps_the_metric_of_adam(tmp_path: Path, model_folder: Path, corpus: Path) -> None:
    config = record_training(tmp_path, model_folder, corpus, rate=1e-4, **ALONE)
    store = Store(config.index)
    generation = store.latest()
    scales = generation.index_spec.projection.scales
    assert {part.index_spec.projection.scales for part in generation.parts} == {scales} == store.scales.names()
    (row,) = run_status(config.index, []).data["generations"]
    assert row["metric"] == "Adam's second moments" and row["rows"] == ROWS
    assert lc.open_index(config.index).query("the cat sees").proponents
    updated = update(config)
    assert updated.rows == ROWS and updated.index_spec.projection.scales == scales
    again = record_training(tmp_path, model_folder, corpus, rate=1e-3, **ALONE)
    assert Store(again.index).scales.names() == {scales}, "an index has one metric"


def test_a_trainer_gives_its_optimiser(tmp_path: Path, model_folder: Path, corpus: Path) -> None:
    index = tmp_path / "index"
    made = callback(index, corpus, curvature={"kind": "adam"})
    trainer(model_folder, tmp_path, corpus, [made]).train()
    projection = Store(str(index)).latest().index_spec.projection
    assert projection.kind == "folded-adam-whitened" and projection.scales and projection.whitening
    assert len(steps_of(index)) == ROWS and lc.open_index(index).query("the cat").proponents
