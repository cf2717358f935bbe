"""Layers that cannot be captured are found without weights, left out and named; the others are right."""

import copy

import pytest
import torch

from lorif_core.errors import UserError
from lorif_core.gradients.captured_model import CapturedModel
from lorif_core.gradients.extract import Extractor
from lorif_core.gradients.self_check import check_capture
from lorif_core.model.dry_run import NEVER_CALLED, NO_GRADIENT, NO_TENSOR, USED_OUTSIDE, uncapturable_layers
from lorif_core.model.layers import coverage, layer_specs, select_layers
from lorif_core.spec import CodeSpec, ProjectionSpec
from tests.models import FAMILIES, autograd_gradients, batch_of, loaded, random_examples
from tests.unit.model.odd_layers import LAYER, with_shared_weight, with_tuple_output, with_use

PLAIN = ProjectionSpec(factor=1)


def skeleton(model: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(model).to("meta")


def assert_codes_equal_autograd(model: torch.nn.Module, left_out: dict[str, str]) -> None:
    reference = copy.deepcopy(model).double()
    subject = loaded(model.double(), torch.float64)
    layers = layer_specs(select_layers(subject.model, uncapturable=left_out), 1)
    extractor = Extractor(subject, layers, PLAIN, CodeSpec("dense", 1, "float32"))
    examples = random_examples(3, seed=4)
    _, gradients = extractor.gradients(batch_of(examples))
    for row, example in enumerate(examples):
        expected = autograd_gradients(reference, layers, example)
        for actual, gradient in zip(gradients, expected, strict=True):
            torch.testing.assert_close(actual[row], gradient.flatten(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_ordinary_models_have_nothing_to_leave_out(family: str) -> None:
    model = FAMILIES[family]()
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    assert uncapturable_layers(skeleton(model)) == {}


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        ("weight without a call", NEVER_CALLED), ("weight beside a call", USED_OUTSIDE),
        ("without gradient", NO_GRADIENT), ("tokens before examples", "(6, 2, 24)"),
    ],
)  # fmt: skip
def test_a_layer_that_hooks_cannot_see_is_left_out_and_named(use: str, reason: str) -> None:
    left_out = uncapturable_layers(skeleton(with_use(use)))
    assert list(left_out) == [LAYER] and reason in left_out[LAYER]
    assert_codes_equal_autograd(with_use(use), left_out)


def test_a_layer_that_returns_two_tensors_is_left_out() -> None:
    left_out = uncapturable_layers(skeleton(with_tuple_output()))
    assert left_out == {LAYER: NO_TENSOR}
    assert_codes_equal_autograd(with_tuple_output(), left_out)


@pytest.mark.parametrize("use", ["extra dimension", "one row too many", "flat", "twice"])
def test_what_can_be_captured_is(use: str) -> None:
    assert uncapturable_layers(skeleton(with_use(use))) == {}
    assert_codes_equal_autograd(with_use(use), {})


def test_a_call_without_gradient_beside_one_with_it_changes_nothing() -> None:
    assert_codes_equal_autograd(with_use("once with, once without gradient"), {})


def test_modules_with_one_weight_are_one_layer_with_the_sum_of_all_calls() -> None:
    model = with_shared_weight()
    names = list(select_layers(model))
    assert LAYER in names and LAYER.replace(".0.", ".1.") not in names
    assert uncapturable_layers(skeleton(model)) == {}
    assert_codes_equal_autograd(model, {})


def test_what_is_left_out_is_not_covered_and_is_named_in_the_coverage() -> None:
    model = with_use("weight without a call")
    left_out = uncapturable_layers(skeleton(model))
    untracked = dict(coverage(model, select_layers(model, uncapturable=left_out), left_out).untracked)
    assert (
        untracked[f"model.layers.*.mlp.up_proj ({NEVER_CALLED})"]
        == model.model.layers[0].mlp.up_proj.weight.numel()
    )


def test_a_model_without_a_layer_to_track_is_refused() -> None:
    model = with_use("without gradient")
    with pytest.raises(UserError, match=rf"no layer of this model can be tracked: {LAYER} {NO_GRADIENT}"):
        select_layers(model, LAYER, uncapturable=uncapturable_layers(skeleton(model)))


def test_a_model_that_needs_numbers_to_run_is_left_to_the_self_check() -> None:
    model = with_use("flat")
    model.model.layers[0].mlp._use = lambda layer, x: (
        layer(x) if x.isfinite().all() else x.new_zeros(*x.shape[:2], 40)
    )
    assert uncapturable_layers(skeleton(model)) == {}
    subject = loaded(model)
    layers = layer_specs(select_layers(subject.model), 1)
    check_capture(CapturedModel(subject, layers, PLAIN, lambda *_: None))
