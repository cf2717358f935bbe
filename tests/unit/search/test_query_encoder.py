"""Invariants: a query does not repeat the checks of the build, reads the roots of the whitening, and refuses
another checkpoint before it loads it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.config_file import parse_config
from lorif_core.corpus.batches import Batch
from lorif_core.corpus.chat_template import ChatTemplate
from lorif_core.errors import UserError
from lorif_core.gradients.extract import Extractor
from lorif_core.lifecycle.calibrate import ShardCalibrator, calibration_sample
from lorif_core.lifecycle.plan import make_plan
from lorif_core.model import loading
from lorif_core.model.token_losses import token_losses
from lorif_core.search.queries import as_query, parse_queries
from lorif_core.search.query_encoder import QueryEncoder, load_matching
from lorif_core.spec import IndexSpec
from lorif_core.tables.store import Store

CHAT = """\
{%- for message in messages %}<{{ message.role }}>
{%- if message.role == "assistant" %}{% generation %}{{ message.content }}{% endgeneration %}
{%- else %}{{ message.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""


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


def test_the_gradient_pass_knows_the_losses_of_the_tokens(
    calibrated: tuple[IndexSpec, Store], model_folder: Path
) -> None:
    """They equal those of a pass of the query alone that computes no gradient, in batches with padding."""
    spec, store = calibrated
    loaded = load_matching(spec, ModelConfig(path=str(model_folder)), StorageConfig())
    encoder = QueryEncoder(loaded, spec, store.whitenings.roots(spec.projection.whitening))
    single: list[Any] = ["the cat", {"prompt": "a small ", "completion": "dog sees the tree"}, "x" * 200]
    queries = parse_queries([*single, {"group": single}, {"contrast": single[:2]}])
    gradients = encoder.gradients(queries)
    for query, losses_2T, loss in zip(queries[:3], gradients.by_token, gradients.losses, strict=False):
        example = encoder.example(query)
        expected_2T = np.stack(token_losses(loaded, example.input_ids, example.labels))
        assert losses_2T is not None
        np.testing.assert_allclose(losses_2T, expected_2T, rtol=1e-4, atol=1e-5)
        assert np.nansum(losses_2T[0]) == pytest.approx(float(loss), rel=1e-5)
    assert gradients.by_token[3:] == [None, None]


def test_a_conversation_is_opened_as_its_query_is(calibrated: tuple[IndexSpec, Store], model_folder: Path) -> None:
    """What the model answers to is what stands before its answer in a question about that answer."""
    spec, store = calibrated
    loaded = load_matching(spec, ModelConfig(path=str(model_folder)), StorageConfig())
    chat = replace(spec, tokenisation=replace(spec.tokenisation, chat=ChatTemplate(CHAT, None, {}).to_json()))
    encoder = QueryEncoder(loaded, chat, store.whitenings.roots(spec.projection.whitening))
    messages = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "no"}]
    ids = encoder.example(as_query({"messages": messages}, 0)).input_ids.tolist()
    opening = encoder.opening(messages[:1], None)
    assert 0 < len(opening) < len(ids) and ids[: len(opening)] == opening


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

    def failing(extractor: Extractor, batch: Batch, take: Any) -> tuple[np.ndarray, list[torch.Tensor]]:
        if len(batch.indices) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(batch.indices))
        return gradients(extractor, batch, take)

    monkeypatch.setattr(Extractor, "gradients", failing)
    found = QueryEncoder(loaded, spec, roots).gradients(queries)
    assert sum(sizes) == len(queries)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # of other paddings
