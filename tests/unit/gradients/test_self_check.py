"""The self-check passes right captures in every dtype and names the layer of every planted fault."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lorif_core.errors import UserError
from lorif_core.gradients import capture as capture_module
from lorif_core.gradients.capture import GradientCapture
from lorif_core.gradients.captured_model import CapturedModel
from lorif_core.gradients.projection import Side
from lorif_core.gradients.self_check import check_capture
from lorif_core.model import loading, loss
from lorif_core.model.head import Head
from lorif_core.model.layers import layer_specs, select_layers
from lorif_core.model.loading import LoadedModel
from lorif_core.spec import LayerSpec, ProjectionSpec
from tests.mixtures import MIXTURES
from tests.models import FAMILIES, VOCAB, gpt2, llama, loaded, scaled
from tests.unit.model.odd_layers import LAYER, with_shared_weight, with_tuple_output, with_use

PROJECTION = ProjectionSpec(factor=2, seed=1)


def check(model: torch.nn.Module, dtype: torch.dtype = torch.float32, prepare: Any = None) -> None:
    subject = loaded(model, dtype)
    if prepare:
        prepare(subject.model)
    layers = layer_specs(select_layers(subject.model), PROJECTION.factor)
    check_capture(CapturedModel(subject, layers, PROJECTION, lambda *_: None))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_right_captures_pass_in_every_dtype(family: str, dtype: torch.dtype) -> None:
    check(scaled(FAMILIES[family]()), dtype)


def test_the_model_is_as_before_after_a_check() -> None:
    model = scaled(gpt2())
    check(model)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("build", [llama, gpt2, MIXTURES["olmoe"], MIXTURES["gpt_oss"]])
def test_gradients_that_a_training_left_behind_neither_matter_nor_change(build: Callable[[], Any]) -> None:
    model = scaled(build())
    left = [torch.randn_like(parameter) for parameter in model.parameters()]
    for parameter, gradient in zip(model.parameters(), left, strict=True):
        parameter.grad = gradient.clone()
    check(model)
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), left, strict=True))


@pytest.mark.parametrize(
    "use", ["weight without a call", "weight beside a call", "sorted rows", "tokens before examples"]
)
def test_uses_that_capture_gets_wrong_are_refused(use: str) -> None:
    with pytest.raises(UserError, match=r"model\.exclude"):
        check(with_use(use))


def test_a_layer_that_returns_two_tensors_is_refused() -> None:
    with pytest.raises(UserError, match=rf"{LAYER} returns tuple.*model\.exclude"):
        check(with_tuple_output())


Patch = Callable[[pytest.MonkeyPatch], None]


def _gradient_times(factor: float) -> Patch:
    def plant(patch: pytest.MonkeyPatch) -> None:
        hook = GradientCapture._gradient_hook

        def scaled_hook(self: Any, index: int, A: torch.Tensor, project: Any) -> Any:
            inner = hook(self, index, A, project)
            return lambda grad: inner(grad * factor if index == 3 else grad)

        patch.setattr(GradientCapture, "_gradient_hook", scaled_hook)

    return plant


def _project(change: Callable[[torch.Tensor], torch.Tensor]) -> Patch:
    """Plant a change of the activations of layer 2."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        project = GradientCapture._project_input

        def changed(self: Any, index: int, inner: Side, x: torch.Tensor) -> torch.Tensor:
            A = project(self, index, inner, x)
            return change(A) if index == 2 else A

        patch.setattr(GradientCapture, "_project_input", changed)

    return plant


def _stale_input(patch: pytest.MonkeyPatch) -> None:
    """The projected input of one layer is reused for the next."""
    project = GradientCapture._project_input
    seen: dict[tuple[int, ...], torch.Tensor] = {}

    def stale(self: Any, index: int, inner: Side, x: torch.Tensor) -> torch.Tensor:
        A = project(self, index, inner, x)
        return seen.setdefault(tuple(A.shape), A)

    patch.setattr(GradientCapture, "_project_input", stale)


def _uncounted_use(patch: pytest.MonkeyPatch) -> None:
    """Only the last call of a shared weight is kept."""
    patch.setattr(capture_module._Pairs, "joined", lambda self: (self.A[-1], self.E[-1]))


def _no_finish(patch: pytest.MonkeyPatch) -> None:
    """Pairs of one layer never arrive."""
    hook = GradientCapture._gradient_hook

    def dropped(self: Any, index: int, A: torch.Tensor, project: Any) -> Any:
        return (lambda grad: None) if index == 1 else hook(self, index, A, project)

    patch.setattr(GradientCapture, "_gradient_hook", dropped)


def _wrong_layout(patch: pytest.MonkeyPatch) -> None:
    """Rows of a flat tensor are split token by token instead of example by example."""

    def transposed(self: Any, index: int, x: torch.Tensor) -> torch.Tensor:
        batch, tokens = self._shape
        return x.reshape(tokens, batch, -1).transpose(0, 1) if x.dim() == 2 else x.reshape(batch, tokens, -1)

    patch.setattr(GradientCapture, "_as_batch", transposed)


def _mean_loss(patch: pytest.MonkeyPatch) -> None:
    """The loss is a mean over tokens."""
    head_loss = loss.head_loss

    def mean(*arguments: Any) -> Any:
        result = head_loss(*arguments)
        return replace(result, hidden_grad=result.hidden_grad / (arguments[3] != -100).sum())

    patch.setattr(loading, "head_loss", mean)


def _unshifted_labels(patch: pytest.MonkeyPatch) -> None:
    """A token predicts itself."""
    head_loss = loss.head_loss
    patch.setattr(loading, "head_loss", lambda h, w, b, y: head_loss(h, w, b, y.roll(1, 1)))


def _padding_scored(patch: pytest.MonkeyPatch) -> None:
    """The mask of the padding is lost."""
    head_loss = loss.head_loss
    patch.setattr(loading, "head_loss", lambda h, w, b, y: head_loss(h, w, b, y.clamp_min(0)))


def _missing_scale(patch: pytest.MonkeyPatch) -> None:
    """The head is taken for linear though its logits are scaled."""
    backward = LoadedModel.backward

    def scaled_backward(self: LoadedModel, *arguments: Any) -> torch.Tensor:
        handle = self.model.get_output_embeddings().register_forward_hook(lambda module, inputs, out: out * 0.5)
        try:
            return backward(self, *arguments)
        finally:
            handle.remove()

    patch.setattr(LoadedModel, "backward", scaled_backward)
    patch.setattr(loading, "inspect_head", lambda model, ids: Head(False, VOCAB))


def _sign(patch: pytest.MonkeyPatch) -> None:
    head_loss = loss.head_loss

    def negative(*arguments: Any) -> Any:
        result = head_loss(*arguments)
        return replace(result, hidden_grad=-result.hidden_grad)

    patch.setattr(loading, "head_loss", negative)


FAULTS: dict[str, tuple[Patch, Callable[[], torch.nn.Module]]] = {
    "a scale of 1.01": (_gradient_times(1.01), llama),
    "a scale of 2": (_gradient_times(2.0), llama),
    "a missing factor -1": (_sign, llama),
    "a use dropped": (_uncounted_use, with_shared_weight),
    "pairs that never arrive": (_no_finish, llama),
    "the input of another layer": (_stale_input, llama),
    "tokens shifted by one": (_project(lambda A: A.roll(1, 1)), llama),
    "features permuted": (_project(lambda A: A.flip(2)), llama),
    "examples swapped": (_project(lambda A: A.flip(0)), llama),
    "rows split token by token": (_wrong_layout, lambda: with_use("flat")),
    "a mean over tokens": (_mean_loss, llama),
    "labels not shifted": (_unshifted_labels, llama),
    "padding scored": (_padding_scored, llama),
    "a logit scale ignored": (_missing_scale, llama),
    "values that are not finite": (_project(lambda A: A * float("nan")), llama),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, build = FAULTS[name]
    model = scaled(build())
    check(model)
    plant(monkeypatch)
    with pytest.raises(UserError, match="cannot be captured: they differ from autograd"):
        check(model)


def test_a_transposed_weight_is_caught() -> None:
    """A square weight that is taken for its transpose has the right shape and wrong numbers."""
    model = loaded(scaled(gpt2()))
    names = [name for name in select_layers(model.model) if name.endswith("attn.c_proj")]
    layers = tuple(LayerSpec(name, 24, 24, 12, 12) for name in names)
    captured = CapturedModel(model, layers, PROJECTION, lambda *_: None)
    check_capture(captured)
    for side in captured.projections.layers:
        assert side.inner.matrix is not None and side.outer.matrix is not None
    hook = GradientCapture._gradient_hook
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            GradientCapture, "_project_input", lambda self, index, inner, x: self._projections[index].outer(x)
        )
        patch.setattr(GradientCapture, "_gradient_hook", hook)
        with pytest.raises(UserError, match="c_proj"):
            check_capture(captured)


def test_a_stale_hook_is_caught() -> None:
    """A hook of somebody else's that changes the output during capture only."""
    model = loaded(scaled(llama()))
    layers = layer_specs(select_layers(model.model), 2)
    captured = CapturedModel(model, layers, PROJECTION, lambda *_: None)
    calls = []

    def stale(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return output * 1.5 if len(calls) % 2 else output

    model.model.model.layers[0].mlp.register_forward_hook(stale)
    with pytest.raises(UserError, match="differ from autograd"):
        check_capture(captured)


def test_a_layer_that_nobody_sees_is_not_counted_as_covered() -> None:
    model = scaled(llama())
    model.model.idle = torch.nn.Linear(4, 4)
    with pytest.raises(UserError, match=r"model\.idle"):
        check(model)


def test_an_error_of_the_models_code_names_the_model() -> None:
    class Untrained(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
            return x

        @staticmethod
        def backward(context: Any, grad: torch.Tensor) -> torch.Tensor:
            raise AssertionError("only in training")

    model = scaled(llama())
    model.model.norm.register_forward_hook(lambda module, inputs, out: Untrained.apply(out))
    with pytest.raises(UserError, match=r"LlamaForCausalLM cannot run .* AssertionError only in training"):
        check(model)


def test_lists_of_special_tokens_and_weights_in_float64_that_compute_in_float32_pass() -> None:
    model = scaled(llama())
    model.config.eos_token_id = [1, 2]
    model.model.norm.register_forward_hook(lambda module, inputs, out: out.float().double())
    check(model, torch.float64)


def test_a_gradient_that_is_zero_but_for_rounding_passes() -> None:
    check(with_use("cancelling"))
