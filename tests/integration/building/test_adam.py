"""Invariant: an index in the metric of Adam needs the state of the optimiser for its first build only."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import lorif_core as lc
from flows.build import build
from flows.commands.maintenance import run_status
from flows.update import update
from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.lifecycle.local_build import build_here
from lorif_core.lifecycle.verify import verify
from lorif_core.tables.store import Store
from tests.integration.growing import Folder

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")


def trained_further(folder: Path, target: Path, rate: float) -> Path:
    """A checkpoint after two steps, with the state of its optimiser."""
    shutil.copytree(folder, target)
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for seed in range(2):
        ids = torch.randint(1, 60, (4, 12), generator=torch.Generator().manual_seed(seed))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(target)
    torch.save(optimizer.state_dict(), target / "optimizer.pt")
    return target


def config_of(index: Path, model: Path, corpus: Folder, whiten: bool, **sections: Any) -> Config:
    return parse_config(
        {
            "index": str(index), "model": {"path": str(model), "layers": "all"},
            "corpus": {**corpus.section, "id": "id", "max_length": 64}, "compute": {"workers": 1},
            "projection": {"whiten": whiten}, "curvature": {"kind": "adam"}, **sections,
        }
    )  # fmt: skip


@pytest.mark.parametrize("whiten", [True, False])
def test_the_state_of_the_optimiser_is_read_once(
    whiten: bool, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    corpus = Folder(tmp_path / "corpus", corpus_file)
    corpus.put("a", range(10, 50))
    model = trained_further(model_folder, tmp_path / "model", 0.0)
    config = config_of(tmp_path / "index", model, corpus, whiten)
    generation, store = build(config), Store(config.index)
    projection = generation.index_spec.projection
    assert projection.is_adam and projection.is_whitened is whiten and store.scales.names() == {projection.scales}
    (model / "optimizer.pt").rename(tmp_path / "moved.pt")
    elsewhere = config_of(
        tmp_path / "here", model, corpus, whiten,
        curvature={"kind": "adam", "optimizer_state": str(tmp_path / "moved.pt")},
    )  # fmt: skip
    here = build_here(elsewhere)
    assert here.rows == generation.rows and here.index_spec.projection.scales == projection.scales
    assert whiten or here.spec == generation.spec, "the last bits of a whitening depend on the number of threads"
    assert build(config).generation == 1, "nothing has changed"
    corpus.put("b", range(60, 80))
    assert update(config).rows == 60
    newer = trained_further(model, tmp_path / "newer", 1e-4)
    (newer / "optimizer.pt").unlink()
    final = update(config_of(tmp_path / "index", newer, corpus, whiten))
    assert {part.index_spec.projection.scales for part in final.parts} == {projection.scales}
    assert final.rows == 60 and len(final.parts) == 2
    words = "K-FAC, damped by Adam's second moments" if whiten else "Adam's second moments"
    assert run_status(config.index, []).data["generations"][-1]["metric"] == words
    assert lc.open_index(config.index).query("the cat sees").proponents
    assert not verify(store).damage
