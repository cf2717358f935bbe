"""Invariant: a rehearsal without numbers allocates what the same code allocates with numbers."""

import gc
from typing import Any

import numpy as np
import pytest
import torch

from lorif_core.corpus.batches import Batch
from lorif_core.gradients import footprint
from lorif_core.gradients.captured_model import CapturedModel
from lorif_core.gradients.codes import encode
from lorif_core.gradients.footprint import BatchShape, Rehearsal
from lorif_core.gradients.whitening import CovarianceSink
from lorif_core.model.layers import folded_layer_specs, select_layers
from lorif_core.spec import CodeSpec, LayerSpec, ProjectionSpec
from tests.models import FAMILIES, VOCAB, loaded
from tests.real_shapes import llama_skeleton

FOLDED = ProjectionSpec("folded-whitened", 1)
CODE = CodeSpec("cut", 4, "sign")


def rehearsal_of(model: Any, dtype: torch.dtype = torch.float32) -> Rehearsal:
    return Rehearsal(model, dtype, folded_layer_specs(select_layers(model)), FOLDED)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rehearsal_allocates_what_a_calibration_does(family: str) -> None:
    """Up to small tensors of the head: a rehearsal scores the last token of an example, too."""
    model = loaded(FAMILIES[family]())
    specs = folded_layer_specs(select_layers(model.model))
    ids = np.random.default_rng(0).integers(0, VOCAB, (3, 40))
    sink = CovarianceSink([(layer.d1, layer.d2) for layer in specs])
    captured = CapturedModel(model, specs, FOLDED.without_whitening(), sink.take)
    gc.collect()
    with footprint._Allocations(model.model) as allocations:
        sink.start(np.full(3, 40), 40)
        captured.run(Batch([0, 1, 2], ids, ids.copy(), np.full(3, 40)))
    rehearsed = rehearsal_of(model.model).calibration(BatchShape(3, 40))
    assert rehearsed == pytest.approx(allocations.peak, rel=0.15)


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_grows_with_the_tokens_and_is_that_of_the_batch(family: str) -> None:
    rehearsal = rehearsal_of(loaded(FAMILIES[family]()).model.to("meta"))
    peaks = [rehearsal.codes(BatchShape(rows, 32), CODE) for rows in (8, 16, 32)]
    assert None not in peaks
    first, second, third = (peak or 0 for peak in peaks)
    assert first < second < third and (third - second) == pytest.approx(2 * (second - first), rel=0.1)


def test_weights_are_not_counted_and_the_model_stays_as_it_is() -> None:
    skeleton = llama_skeleton("8B")
    before = {name: (weight.device.type, weight.dtype) for name, weight in skeleton.model.named_parameters()}
    layers = {"model.layers.31.mlp.down_proj": skeleton.model.get_submodule("model.layers.31.mlp.down_proj")}
    specs = folded_layer_specs(layers, None, 1024)
    peak = Rehearsal(skeleton.model, torch.bfloat16, specs, FOLDED).codes(BatchShape(1, 16), CODE)
    assert peak is not None and 2**20 < peak < 2**29
    assert before == {
        name: (weight.device.type, weight.dtype) for name, weight in skeleton.model.named_parameters()
    }


def test_a_model_that_needs_numbers_has_no_estimate() -> None:
    class Odd(type(FAMILIES["llama"]())):  # type: ignore[misc]
        def forward(self, *arguments: Any, **named: Any) -> Any:
            np.asarray(self.lm_head.weight.detach())
            return super().forward(*arguments, **named)

    model = FAMILIES["llama"]()
    model.__class__ = Odd
    model.model.forward = lambda **_: np.asarray(model.lm_head.weight.detach())
    assert rehearsal_of(model).calibration(BatchShape(1, 8)) is None


@pytest.mark.parametrize("kind", ["cut", "rank", "dense"])
def test_a_rehearsal_leaves_no_fake_constants_behind(kind: Any) -> None:
    """Sizes that nothing else uses, so that the rehearsal is the first to need their constants."""
    code, model = CodeSpec(kind, 3, "sign"), FAMILIES["llama"]()
    layers = [LayerSpec("model.layers.1.mlp.down_proj", 40, 24, 19, 17)]
    rehearsal = Rehearsal(model, torch.float32, layers, FOLDED)
    assert rehearsal.codes(BatchShape(2, 30), code) is not None
    encoded = encode(torch.randn(2, 30, 19), torch.randn(2, 30, 17), code, unbiased=True)
    assert type(encoded.codes) is torch.Tensor and bool(torch.isfinite(encoded.scales).all())
