"""Ties of a router that rounding breaks in two ways do not fail the self-check, and faults still do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lorif_core.errors import UserError
from lorif_core.gradients import self_check
from lorif_core.gradients.captured_model import CapturedModel
from lorif_core.gradients.repeated_choices import ChoiceRecorder, ChoiceRepeater
from lorif_core.gradients.self_check import check_capture
from lorif_core.model.layers import folded_layer_specs, select_layers
from lorif_core.spec import ProjectionSpec
from tests.mixtures import MIXTURES, nearly_tied, routers
from tests.models import loaded

ROUNDING = {torch.float64: 1e-7, torch.float32: 1e-6, torch.bfloat16: 4e-3}


def rounded_by_shape(model: Any, size: float) -> Any:
    """The model with a relative error in what routers see, which depends on the number of their rows."""

    def disturb(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(inputs[0].numel())
        noise = torch.randn(inputs[0].shape, generator=generator, dtype=torch.float64)
        return ((inputs[0].double() * (1 + size * noise)).to(inputs[0].dtype), *inputs[1:])

    for router in routers(model):
        router.register_forward_pre_hook(disturb)
    return model


def check(model: Any, dtype: torch.dtype) -> None:
    subject = loaded(model, dtype)
    layers = folded_layer_specs(select_layers(subject.model, "expert"))
    check_capture(CapturedModel(subject, layers, ProjectionSpec("folded", 1, seed=3), lambda *_: None))


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("family", MIXTURES)
def test_near_ties_pass_that_rounding_breaks_in_two_ways(family: str, dtype: torch.dtype) -> None:
    for seed in range(3):
        size = ROUNDING[dtype]
        check(rounded_by_shape(nearly_tied(MIXTURES[family](), size, seed), size), dtype)


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_the_same_near_ties_fail_if_each_run_chooses_for_itself(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_check, "ChoiceRepeater", lambda choices, tolerance: ChoiceRepeater([], tolerance))
    with pytest.raises(UserError, match="differ from autograd"):
        check(rounded_by_shape(nearly_tied(MIXTURES[family](), 1e-6, 0), 1e-6), torch.float32)


def _smallest(module: torch.nn.Module) -> Callable[..., Any]:
    """The forward pass of OLMoE's router, which chooses the worst experts while experts are observed."""
    original = module.forward

    def forward(hidden: torch.Tensor) -> Any:
        logits, weights, indices = original(hidden)
        if module.config._experts_implementation == "lorif":
            weights, indices = torch.topk(-logits.float(), indices.shape[1])
        return logits, weights, indices

    return forward


def test_a_choice_that_rounding_does_not_explain_is_refused() -> None:
    model = MIXTURES["olmoe"]()
    router = routers(model)[0]
    router.config = model.config
    router.forward = _smallest(router)
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.experts\.gate_up_proj"):
        check(model, torch.float32)


def repeated(
    recorded: torch.Tensor, numbers: torch.Tensor, batch: int = 1, tolerance: float = 0.01, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The choice of two among `numbers` (T, M), after that among `recorded` in a run of `batch` examples."""
    with ChoiceRecorder(batch, len(recorded) // batch) as recorder:
        torch.topk(recorded, 2, **options)
    with ChoiceRepeater(recorder.of_example(batch - 1, len(numbers)), tolerance):
        values, indices = torch.topk(numbers, 2, **options)
    return values, indices


def test_each_row_chooses_again_what_is_as_good_and_keeps_its_own_choice_else() -> None:
    recorded = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    numbers = torch.tensor([[3.0, 1.999, 2.0, 0.0], [3.0, 1.9, 2.0, 0.0], [3.0, 2.0, float("-inf"), 0.0]])
    values, indices = repeated(recorded, numbers)
    assert indices.tolist() == [[0, 1], [0, 2], [0, 1]]
    torch.testing.assert_close(values, numbers.gather(1, indices))


def test_rows_are_those_of_the_example_and_padding_is_left_out() -> None:
    recorded = torch.rand(2 * 3, 8)
    numbers = recorded[3:5] + 1e-3 * torch.randn(2, 8)  # two tokens of the second of two examples of three
    _, indices = repeated(recorded, numbers, batch=2, tolerance=1.0)
    assert torch.equal(indices.sort().values, torch.topk(recorded[3:5], 2).indices.sort().values)


def test_repeated_numbers_descend_and_have_gradients() -> None:
    numbers = torch.tensor([[2.0, 2.001, 1.999]], requires_grad=True)
    values, indices = repeated(torch.tensor([[2.001, 1.0, 2.0]]), numbers)
    assert indices.tolist() == [[0, 2]] and values.tolist() == sorted(values.tolist(), reverse=True)
    (gradient,) = torch.autograd.grad(values.sum(), numbers)
    assert gradient.tolist() == [[1.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("recorded", "numbers", "batch", "options"),
    [
        (torch.rand(4, 9), torch.rand(4, 3), 1, {}),  # other numbers to choose from
        (torch.rand(5, 4), torch.rand(2, 4), 2, {}),  # no rows for each token
        (torch.rand(4, 4), torch.rand(4, 4), 1, {"largest": False}),
        (torch.rand(4, 4), torch.rand(4, 4), 1, {"dim": 0}),
    ],
)
def test_other_choices_stay_as_they_are(
    recorded: torch.Tensor, numbers: torch.Tensor, batch: int, options: dict[str, Any]
) -> None:
    assert torch.equal(repeated(recorded, numbers, batch, 1.0, **options)[1], torch.topk(numbers, 2, **options)[1])


def test_further_choices_than_were_recorded_stay_as_they_are() -> None:
    numbers = torch.rand(4, 4)
    with ChoiceRepeater([], 1.0):
        assert torch.equal(numbers.topk(2).indices, torch.topk(numbers, 2).indices)
