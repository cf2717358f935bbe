"""Invariants: a query does not repeat the checks of the build, reads the roots of the whitening, and refuses
another checkpoint before it loads it.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.config_file import parse_config
from lorif_core.errors import UserError
from lorif_core.lifecycle.calibrate import ShardCalibrator, calibration_sample
from lorif_core.lifecycle.plan import make_plan
from lorif_core.model import loading
from lorif_core.search.queries import as_query
from lorif_core.search.query_encoder import QueryEncoder, load_matching
from lorif_core.spec import IndexSpec
from lorif_core.tables.store import Store


@pytest.fixture(scope="module")
def calibrated(
    model_folder: Path, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[IndexSpec, Store]:
    """The spec of a whitened index with all defaults, and its tables."""
    config = parse_config(
        {
            "index": str(tmp_path_factory.mktemp("query") / "index"),
            "model": {"path": str(model_folder)},
            "corpus": {"uri": str(corpus_file), "max_length": 64},
        }
    )
    plan, store = make_plan(config), Store(config.index)
    covariances = ShardCalibrator(config, plan.spec).covariances(calibration_sample(plan.shards, 20))
    spec = plan.spec.with_whitening(store.whitenings.add(covariances, plan.spec.layers, plan.spec))
    return spec, store


def test_a_query_runs_the_model_only_for_its_gradient(
    calibrated: tuple[IndexSpec, Store], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, store = calibrated
    for where, name in ((torch.linalg, "eigh"), (torch.linalg, "eigvalsh"), (loading, "check_causal")):
        monkeypatch.setattr(where, name, lambda *_, name=name: pytest.fail(f"a query calls {name}"))
    loaded = load_matching(spec, ModelConfig(path=str(model_folder)), StorageConfig())
    encoder = QueryEncoder(loaded, spec, store.whitenings.roots(spec.projection.whitening))
    gradients = encoder.gradients([as_query("the cat sees the old tree", 0)])
    assert all(torch.isfinite(layer).all() and layer.any() for layer in gradients.layers)


def test_another_checkpoint_is_refused_before_it_is_loaded(
    calibrated: tuple[IndexSpec, Store], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _ = calibrated
    config = ModelConfig(path=str(model_folder))
    other = replace(spec, tokenisation=replace(spec.tokenisation, tokenizer="sha256:0"))
    with pytest.raises(UserError, match="the tokenizer at"):
        load_matching(other, config, StorageConfig())
    monkeypatch.setattr(loading, "load_full_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match="the model at"):
        load_matching(replace(spec, checkpoint="sha256:0"), config, StorageConfig())
