"""Fused experts are layers: they count as covered, the rules choose them, and what works otherwise is named."""

import copy

import pytest
import torch

from lorif_core.model.dry_run import NEVER_CALLED, USED_OUTSIDE, uncapturable_layers
from lorif_core.model.expert_routing import Routing, fused_product, looped_product
from lorif_core.model.experts import ExpertMatrix, expert_matrices
from lorif_core.model.layers import (
    choose_layers,
    coverage,
    folded_layer_specs,
    layer_specs,
    linear_layers,
    select_layers,
    tracked_module,
)
from lorif_core.model.loading import prepare_model
from tests.mixtures import MIXTURES
from tests.models import llama

DEEP = {"num_hidden_layers": 10, "hidden_size": 16}


def skeleton(model: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(model).to("meta")


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_are_covered(family: str) -> None:
    model = skeleton(MIXTURES[family]())
    left_out = uncapturable_layers(model)
    assert left_out == {}
    result = coverage(model, select_layers(model), left_out)
    other = sum(size for group, size in result.untracked if group in ("embeddings", "output head"))
    assert result.tracked >= 0.9 * (result.total - other), result.sentence()
    assert not any("expert" in group.lower() for group, _ in result.untracked)


def test_experts_that_are_left_out_are_named_in_the_coverage() -> None:
    model = MIXTURES["olmoe"]()
    size = model.model.layers[0].mlp.experts.gate_up_proj.numel()
    untracked = dict(coverage(model, select_layers(model, exclude="gate_up")).untracked)
    assert untracked["linear layers left out"] == 2 * size
    left_out = {f"model.layers.{block}.mlp.experts.gate_up_proj": "is odd" for block in range(2)}
    untracked = dict(coverage(model, select_layers(model, uncapturable=left_out), left_out).untracked)
    assert untracked["model.layers.*.mlp.experts.gate_up_proj (is odd)"] == 2 * size


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_sizes_are_those_of_all_experts_in_both_layouts(family: str) -> None:
    model = MIXTURES[family]()
    up, down = layer_specs(select_layers(model, r"layers\.0\..*experts"), 1)
    assert (up.in_features, up.out_features) == (32, 8 * 48)
    assert (down.in_features, down.out_features) == (8 * 24, 32)
    matrix = tracked_module(model, up.name)
    assert isinstance(matrix, ExpertMatrix) and matrix.weight is model.model.layers[0].mlp.experts.gate_up_proj


@pytest.mark.parametrize(
    ("max_side", "fold", "sizes"),
    [
        (None, None, [(32, 48), (48, 32)]), (100, None, [(32, 48), (48, 32)]), (40, None, [(32, 40), (24, 32)]),
        (20, None, [(16, 20), (20, 16)]), (None, 4, [(32, 96), (48, 32)]),
    ],
)  # fmt: skip
def test_neurons_are_folded_to_a_multiple_of_those_of_an_expert_or_to_fewer(
    max_side: int | None, fold: int | None, sizes: list[tuple[int, int]]
) -> None:
    layers = select_layers(MIXTURES["olmoe"](), r"layers\.0\..*experts")
    assert [(spec.d1, spec.d2) for spec in folded_layer_specs(layers, fold, max_side)] == sizes


@pytest.mark.parametrize("name", ["model.layers.0.mlp.experts.other", "model.layers.9.mlp.experts.down_proj"])
def test_a_name_of_no_matrix_is_no_layer(name: str) -> None:
    with pytest.raises(AttributeError):
        tracked_module(MIXTURES["olmoe"](), name)


@pytest.mark.parametrize("family", ["olmoe", "mixtral", "qwen3_moe", "gpt_oss"])
def test_auto_takes_the_down_matrices_of_experts_in_late_blocks(family: str) -> None:
    choice = choose_layers(MIXTURES[family](**DEEP), "auto")
    assert list(choice.layers) == [f"model.layers.{block}.mlp.experts.down_proj" for block in range(5, 10)]


def test_auto_takes_shared_experts_beside_the_routed_ones() -> None:
    model = MIXTURES["deepseek_v3"](**DEEP)
    choice = choose_layers(model, "auto", late_blocks=2)
    blocks = sorted({name.split(".")[2] for name in choice.layers})
    assert len(blocks) == 2
    assert sorted(choice.layers) == sorted(
        f"model.layers.{block}.mlp.{part}.down_proj" for block in blocks for part in ("experts", "shared_experts")
    )


@pytest.mark.parametrize("family", MIXTURES)
def test_mlp_takes_all_matrices_of_experts_and_neither_attention_nor_routers(family: str) -> None:
    model = MIXTURES[family]()
    names = set(select_layers(model, "mlp"))
    assert {name for name in linear_layers(model) if "experts" in name} <= names
    assert not any("attn" in name or name.endswith("gate") for name in names)


def test_the_dry_run_names_a_matrix_of_experts_that_is_also_used_without_calling_them() -> None:
    model = skeleton(MIXTURES["olmoe"]())
    other = model.model.layers[1].self_attn.q_proj
    other.borrowed = model.model.layers[0].mlp.experts.down_proj
    other.register_forward_hook(
        lambda module, inputs, output: output + inputs[0] @ module.borrowed[0] @ module.borrowed[0].mT
    )
    assert uncapturable_layers(model) == {"model.layers.0.mlp.experts.down_proj": USED_OUTSIDE}


def test_the_dry_run_names_experts_that_are_never_called() -> None:
    model = skeleton(MIXTURES["olmoe"]())
    block = model.model.layers[1].mlp
    block.spare = copy.deepcopy(block.experts)
    names = [f"model.layers.1.mlp.spare.{part}" for part in ("gate_up_proj", "down_proj")]
    assert uncapturable_layers(model) == dict.fromkeys(names, NEVER_CALLED)


def test_experts_with_a_norm_or_another_layout_are_not_taken_for_fused_ones() -> None:
    experts = MIXTURES["olmoe"]().model.layers[0].mlp.experts
    assert len(list(expert_matrices(experts))) == 2
    experts.has_post_expert_norm = True
    assert list(expert_matrices(experts)) == []
    assert list(expert_matrices(llama().model.layers[0].mlp)) == []


def test_a_mixture_in_float64_can_be_loaded() -> None:
    loaded = prepare_model(MIXTURES["olmoe"]().double())
    assert loaded.head.is_linear and loaded.model(torch.arange(4)[None]).logits.dtype == torch.float64


def test_rows_without_an_expert_have_no_weight() -> None:
    experts, weights = torch.tensor([[0, 4], [4, 2], [2, 0]]), torch.full((3, 2), 0.5)
    routing = Routing(experts, weights, 4)
    assert routing.experts.tolist() == sorted(routing.experts.tolist()) and int(routing.experts.max()) < 4
    assert routing.sum_by_token(routing.weights[:, None])[:, 0].tolist() == [0.5, 0.5, 1.0]


@pytest.mark.parametrize("counts", [[3, 0, 5], [0, 0, 8], [8, 0, 0]])
def test_both_products_agree(counts: list[int]) -> None:
    rows, weight = torch.randn(8, 12, requires_grad=True), torch.randn(3, 20, 12).transpose(1, 2)
    ends = torch.tensor(counts).cumsum(0).int()
    one, other = fused_product(rows, weight, ends), looped_product(rows, weight, ends)
    torch.testing.assert_close(one, other)
    gradient = torch.randn_like(one)
    torch.testing.assert_close(
        torch.autograd.grad(one, rows, gradient), torch.autograd.grad(other, rows, gradient)
    )
