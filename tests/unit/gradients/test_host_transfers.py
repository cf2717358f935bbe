"""Invariant: in the loop of batches a device tells the host nothing but the finished codes, in one transfer.

The model runs on the meta device, whose tensors have no numbers: whatever asks for one of them raises.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, masking_utils

from lorif_core.gradients import cut, extract, low_rank
from lorif_core.gradients.extract import Calibrator, Extractor
from lorif_core.gradients.roots import exact_roots
from lorif_core.gradients.whitening import Covariances
from lorif_core.model.loading import LoadedModel, prepare_model
from lorif_core.spec import CodeSpec, LayerSpec, ProjectionSpec
from tests.models import VOCAB, batch_of, gpt2, llama, random_examples, tracked

BATCH = batch_of(random_examples(5, seed=2))
META = torch.device("meta")


def capped() -> Any:
    config = Gemma2Config(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, vocab_size=VOCAB, max_position_embeddings=64, final_logit_softcapping=5.0,
        pad_token_id=0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


MODELS: dict[str, Callable[[], Any]] = {"llama": llama, "gpt2": gpt2, "capped logits": capped}
PROJECTIONS = {
    "random": ProjectionSpec(factor=2),
    "whitened": ProjectionSpec("whitened", 2),
    "folded": ProjectionSpec("folded", 1),
    "folded and whitened": ProjectionSpec("folded-whitened", 1),
}
CODES = {
    "rank 1": CodeSpec("rank", 1, "float16"),
    "rank 2, int8": CodeSpec("rank", 2, "int8"),
    "cut": CodeSpec("cut", 4, "sign"),
    "dense": CodeSpec("dense", 1, "float16"),
    "dense signs": CodeSpec("dense", 1, "sign"),
    "dense int4": CodeSpec("dense", 1, "int4"),
}


@pytest.fixture(autouse=True)
def _device_without_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave out what is not ours: transformers asks once in a forward pass whether texts are packed in a row."""
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    yield
    cut.probes.cache_clear()
    low_rank._start_basis.cache_clear()


class Transfers:
    """Stands for `HostCopy`, and counts the tensors that go to the host."""

    def __init__(self) -> None:
        self.bytes: list[int] = []

    def __call__(self, tensor: torch.Tensor) -> "Transfers":
        assert tensor.device == META
        self.bytes.append(tensor.nbytes)
        return self


def on_meta(make: Callable[[], Any]) -> LoadedModel:
    loaded = prepare_model(make())
    return dataclasses.replace(loaded, model=loaded.model.to(META))


def identity_covariances(layers: tuple[LayerSpec, ...]) -> Covariances:
    sums = {}
    for number, layer in enumerate(layers):
        sums[number, "in"], sums[number, "out"] = torch.eye(layer.d1).double(), torch.eye(layer.d2).double()
    return Covariances(sums, 1, 1)  # type: ignore[arg-type]


def projected(loaded: LoadedModel, projection: ProjectionSpec) -> tuple[LayerSpec, ...]:
    return tracked(loaded, projection.factor if not projection.is_folded else 2)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_batch_reaches_the_host_as_codes_alone(
    projection: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _one_transfer(llama, PROJECTIONS[projection], CODES[code], monkeypatch)


@pytest.mark.parametrize("model", MODELS)
def test_so_it_is_for_every_head(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _one_transfer(MODELS[model], PROJECTIONS["folded and whitened"], CODES["cut"], monkeypatch)


def _one_transfer(
    make: Callable[[], Any], projection: ProjectionSpec, code: CodeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = on_meta(make)
    layers = projected(loaded, projection)
    covariances = identity_covariances(layers) if projection.is_whitened else None
    roots = None if covariances is None else exact_roots(covariances)
    extractor = Extractor(loaded, layers, projection, code, roots)
    transfers = Transfers()
    monkeypatch.setattr(extract, "HostCopy", transfers)
    extractor.start(BATCH)
    row = extractor.layout.stored_width * torch.empty(0, dtype=_stored(code.dtype)).element_size()
    assert transfers.bytes == [len(BATCH.indices) * (4 + 4 * extractor.layout.scales + row)]


def _stored(dtype: str) -> torch.dtype:
    return torch.uint8 if dtype in ("sign", "int4") else getattr(torch, dtype)


@pytest.mark.parametrize("projection", ["random", "folded"])
def test_calibration_leaves_its_sums_on_the_device(projection: str) -> None:
    loaded = on_meta(llama)
    spec = PROJECTIONS[projection]
    calibrator = Calibrator(loaded, projected(loaded, spec), spec)
    for _ in range(2):
        calibrator.add(BATCH)
    assert all(matrix.device == META for matrix in calibrator._sink._sums.values())


def test_the_meta_device_finds_a_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that asks for a number, as a check of finite losses would, fails the tests above."""
    backward = LoadedModel.backward

    def asks(self: LoadedModel, *arguments: Any) -> torch.Tensor:
        losses = backward(self, *arguments)
        assert torch.isfinite(losses).all()
        return losses

    monkeypatch.setattr(LoadedModel, "backward", asks)
    with pytest.raises(RuntimeError, match="meta"):
        _one_transfer(llama, PROJECTIONS["random"], CODES["rank 1"], monkeypatch)
