"""Invariants: a query does not repeat the checks of the build, reads the roots of the whitening, and refuses
another checkpoint before it loads it.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.config_file import parse_config
from lorif_core.corpus.batches import Batch
from lorif_core.errors import UserError
from lorif_core.gradients.extract import Extractor
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


def test_queries_for_which_memory_runs_out_are_encoded_in_smaller_batches(
    calibrated: tuple[IndexSpec, Store], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, store = calibrated
    loaded = load_matching(spec, ModelConfig(path=str(model_folder)), StorageConfig())
    roots = store.whitenings.roots(spec.projection.whitening)
    queries = [as_query(" ".join(["the cat sees the old tree"] * length), 0) for length in (1, 3, 2, 1, 2)]
    expected = QueryEncoder(loaded, spec, roots).gradients(queries)
    gradients, sizes = Extractor.gradients, []

    def failing(extractor: Extractor, batch: Batch) -> tuple[np.ndarray, list[torch.Tensor]]:
        if len(batch.indices) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(batch.indices))
        return gradients(extractor, batch)

    monkeypatch.setattr(Extractor, "gradients", failing)
    found = QueryEncoder(loaded, spec, roots).gradients(queries)
    assert sum(sizes) == len(queries)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # of other paddings
