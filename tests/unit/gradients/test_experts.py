"""Invariant: the captured gradients of fused experts equal those of autograd, whatever the tokens' routing."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch

from lorif_core.errors import UserError
from lorif_core.gradients import expert_projection
from lorif_core.gradients.captured_model import CapturedModel
from lorif_core.gradients.expert_projection import expert_side
from lorif_core.gradients.extract import Calibrator, Extractor
from lorif_core.gradients.projection import FoldedSide, Side
from lorif_core.gradients.self_check import check_capture
from lorif_core.gradients.whitening import SIDES
from lorif_core.model.expert_routing import Routing
from lorif_core.model.experts import ExpertMatrix, expert_matrices
from lorif_core.model.layers import folded_layer_specs, layer_specs, select_layers
from lorif_core.spec import CodeSpec, LayerSpec, ProjectionSpec
from tests.mixtures import MIXTURES, nearly_tied
from tests.models import autograd_gradients, batch_of, loaded, make_example, random_examples

WHOLE = ProjectionSpec(factor=1)
FOLDED = ProjectionSpec("folded", 1, seed=3)
DENSE = CodeSpec("dense", 1, "float32")


def reference_of(model: torch.nn.Module) -> torch.nn.Module:
    reference = copy.deepcopy(model).double()
    reference.set_experts_implementation("eager")  # the fused product has no float64
    return reference


def experts_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in model.modules() if any(True for _ in expert_matrices(module))]


def assert_equal(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert float((actual - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize("family", MIXTURES)
def test_whole_gradients_equal_autograd_for_all_lengths_and_padding(family: str) -> None:
    model = MIXTURES[family]()
    reference = reference_of(model)
    subject = loaded(model)
    layers = layer_specs(select_layers(subject.model), 1)
    assert sum("experts." in layer.name for layer in layers) >= 2
    examples = random_examples(4, seed=1, shortest=2)
    _, gradients = Extractor(subject, layers, WHOLE, DENSE).gradients(batch_of(examples))
    for row, example in enumerate(examples):
        for actual, expected in zip(gradients, autograd_gradients(reference, layers, example), strict=True):
            assert_equal(actual[row].double(), expected.flatten(), 1e-4)


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_experts_without_a_token_have_no_gradient_and_the_others_the_right_one(family: str) -> None:
    model = MIXTURES[family]()
    reference = reference_of(model)
    subject = loaded(model.double(), torch.float64)
    layers = layer_specs(select_layers(subject.model, "experts"), 1)
    example = make_example([3, 4])  # two tokens, of which each has two experts of eight
    _, gradients = Extractor(subject, layers, WHOLE, DENSE).gradients(batch_of([example]))
    for layer, actual, expected in zip(
        layers, gradients, autograd_gradients(reference, layers, example), strict=True
    ):
        torch.testing.assert_close(actual[0], expected.flatten(), rtol=1e-6, atol=1e-9)
        shape = (8, -1, layer.out_features) if "down" in layer.name else (layer.in_features, 8, -1)
        per_expert = expected.reshape(shape).abs().sum(dim=(1, 2) if "down" in layer.name else (0, 2))
        assert 0 < int((per_expert > 0).sum()) < 8


@pytest.mark.parametrize("rule", ["down_proj", "gate_up_proj", r"layers\.1\..*experts"])
def test_the_graph_may_begin_at_any_matrix_of_experts(rule: str) -> None:
    model = MIXTURES["olmoe"]()
    reference = reference_of(model)
    subject = loaded(model.double(), torch.float64)
    layers = layer_specs(select_layers(subject.model, rule), 1)
    examples = random_examples(2, seed=5)
    _, gradients = Extractor(subject, layers, WHOLE, DENSE).gradients(batch_of(examples))
    for row, example in enumerate(examples):
        for actual, expected in zip(gradients, autograd_gradients(reference, layers, example), strict=True):
            torch.testing.assert_close(actual[row], expected.flatten(), rtol=1e-6, atol=1e-9)


def matrix_of(side: Side, wide: bool, experts: int) -> torch.Tensor:
    """P (features, d) of a folded side, written down entry by entry."""
    assert isinstance(side, FoldedSide)
    if side.signs is None:
        return torch.eye(side.size, dtype=torch.float64)
    features = torch.arange(len(side.signs))
    neurons = len(side.signs) // experts
    # the neurons of experts begin with the first bucket for each expert if they are more than there are buckets
    buckets = features % neurons % side.size if wide and side.size < neurons else features % side.size
    matrix = torch.zeros(len(side.signs), side.size, dtype=torch.float64)
    matrix[features, buckets] = side.signs.double()
    return matrix


def projections(model: CapturedModel) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for (first, *_), sides in zip(model.modules, model.projections.layers, strict=True):
        assert isinstance(first, ExpertMatrix)
        yield (
            matrix_of(sides.inner, first.is_down, first.experts),
            matrix_of(sides.outer, not first.is_down, first.experts),
        )


@pytest.mark.parametrize("max_side", [None, 64, 13, 5])
def test_folded_gradients_are_the_projections_of_those_by_autograd(max_side: int | None) -> None:
    model = MIXTURES["qwen3_moe"]()
    reference = reference_of(model)
    subject = loaded(model.double(), torch.float64)
    layers = folded_layer_specs(select_layers(subject.model, "experts"), max_side=max_side)
    captured: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    model = CapturedModel(subject, layers, FOLDED, lambda index, A, E: captured.update({index: (A, E)}))
    examples = random_examples(3, seed=2)
    model.run(batch_of(examples))
    for row, example in enumerate(examples):
        gradients = autograd_gradients(reference, layers, example)
        for index, (left, right) in enumerate(projections(model)):
            A, E = captured[index]
            actual, expected = A[row].T @ E[row], left.T @ gradients[index] @ right
            assert actual.shape == (layers[index].d1, layers[index].d2)
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


def test_covariances_are_those_of_the_neurons_of_all_experts() -> None:
    subject = loaded(MIXTURES["olmoe"]().double(), torch.float64)
    chosen = select_layers(subject.model, "experts")
    examples = random_examples(4, seed=3)
    whole, folded = {}, folded_layer_specs(chosen)
    model = CapturedModel(subject, layer_specs(chosen, 1), WHOLE, lambda i, A, E: whole.update({i: (A, E)}))
    model.run(batch_of(examples))
    calibrator = Calibrator(subject, folded, FOLDED)
    calibrator.add(batch_of(examples))
    sides = list(projections(CapturedModel(subject, folded, FOLDED, lambda *_: None)))
    mask = torch.arange(max(len(e.input_ids) for e in examples)) < torch.tensor(
        [[len(example.input_ids)] for example in examples]
    )
    for index, (left, right) in enumerate(sides):
        for side, tokens, matrix in zip(SIDES, whole[index], (left, right), strict=True):
            rows = (tokens @ matrix)[mask]
            torch.testing.assert_close(calibrator.covariances.sums[index, side], rows.T @ rows)


@pytest.mark.parametrize("projection", [ProjectionSpec(factor=4), FOLDED], ids=lambda spec: spec.kind)
def test_the_size_of_a_gradient_does_not_grow_with_the_number_of_experts(projection: ProjectionSpec) -> None:
    def specs(experts: int) -> tuple[LayerSpec, ...]:
        layers = select_layers(MIXTURES["olmoe"](num_experts=experts), "experts")
        return folded_layer_specs(layers) if projection.is_folded else layer_specs(layers, projection.factor)

    few, many = specs(8), specs(64)
    assert [(layer.d1, layer.d2) for layer in few] == [(layer.d1, layer.d2) for layer in many]
    assert many[0].out_features == 8 * few[0].out_features


@pytest.mark.parametrize("experts", [1, 5])
@pytest.mark.parametrize("size", [3, 6, 12])
def test_every_neuron_of_every_expert_has_a_sign_of_its_own(experts: int, size: int) -> None:
    neurons = 6
    if size > experts * neurons:
        return
    signs = torch.randint(0, 2, (experts * neurons,)).float() * 2 - 1
    side = expert_side(FoldedSide("x", signs, size), experts, size)
    rows = torch.eye(neurons).repeat(experts, 1)
    numbers = torch.arange(experts).repeat_interleave(neurons)
    projected = side(rows, numbers)
    assert projected.shape == (experts * neurons, size)
    assert (projected != 0).sum(dim=1).tolist() == [1] * len(rows)
    torch.testing.assert_close(projected.sum(dim=1), signs)


def test_codes_do_not_depend_on_how_many_tokens_are_folded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = loaded(MIXTURES["mixtral"]())
    layers = folded_layer_specs(select_layers(subject.model, "experts"))
    extractor, batch = Extractor(subject, layers, FOLDED, DENSE), batch_of(random_examples(4, seed=7))
    _, together = extractor.gradients(batch)
    monkeypatch.setattr(expert_projection, "_NUMBERS", 300)
    _, apart = extractor.gradients(batch)
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_codes_do_not_depend_on_the_batch() -> None:
    subject = loaded(MIXTURES["deepseek_v3"]())
    layers = folded_layer_specs(select_layers(subject.model))
    extractor = Extractor(subject, layers, FOLDED, DENSE)
    examples = random_examples(5, seed=6)
    _, together = extractor.gradients(batch_of(examples))
    for row, example in enumerate(examples):
        _, alone = extractor.gradients(batch_of([example]))
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a[0], b[row], rtol=1e-3, atol=1e-4 * float(b[row].abs().max()))


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_self_check_accepts_experts(family: str, dtype: torch.dtype) -> None:
    subject = loaded(MIXTURES[family](), dtype)
    layers = folded_layer_specs(select_layers(subject.model, "expert"), max_side=20)
    check_capture(CapturedModel(subject, layers, FOLDED, lambda *_: None))


def _doubled(original: Callable[..., torch.Tensor], module: torch.nn.Module) -> Callable[..., torch.Tensor]:
    def forward(hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        output = original(hidden, index, weights)
        return output if module.config._experts_implementation == "lorif" else 1.5 * output

    return forward


def _own_code(original: Callable[..., torch.Tensor], module: torch.nn.Module) -> Callable[..., torch.Tensor]:
    def forward(hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        every = torch.einsum("nh,eoh->neo", hidden, module.gate_up_proj)
        outputs = torch.einsum("nei,ehi->neh", module._apply_gate(every), module.down_proj)
        return (
            outputs.gather(1, index[..., None].expand(*index.shape, outputs.shape[2])) * weights[..., None]
        ).sum(1)

    return forward


def _beside_a_call(original: Callable[..., torch.Tensor], module: torch.nn.Module) -> Callable[..., torch.Tensor]:
    def forward(hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return original(hidden, index, weights) + hidden @ module.down_proj[0] @ module.gate_up_proj[0, :24]

    return forward


@pytest.mark.parametrize("forward", [_doubled, _own_code, _beside_a_call])
def test_experts_that_work_otherwise_are_refused_by_name(
    forward: Callable[..., Callable[..., torch.Tensor]],
) -> None:
    model = MIXTURES["olmoe"]()
    module = experts_of(model)[1]
    module.forward = forward(module.forward, module)
    subject = loaded(model)
    layers = layer_specs(select_layers(subject.model, "experts"), 4)
    with pytest.raises(UserError, match=r"cannot be captured: they differ .*model\.layers\.1\.mlp\.experts\."):
        check_capture(CapturedModel(subject, layers, ProjectionSpec(factor=4), lambda *_: None))


@pytest.mark.parametrize("is_tied", [False, True], ids=["clear", "nearly tied"])
@pytest.mark.parametrize("fault", ["experts", "weights", "tokens"])
def test_a_planted_fault_of_the_routing_is_caught(
    fault: str, is_tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    correct = expert_projection.FoldedExperts.by_token

    def faulty(self: expert_projection.FoldedExperts, rows: torch.Tensor, routing: Routing) -> torch.Tensor:
        other = copy.copy(routing)
        if fault == "experts":
            other.experts = routing.experts.roll(1)
        elif fault == "weights":
            rows = rows * routing.weights[:, None]
        projected = correct(self, rows, other)
        return projected.roll(1, 0) if fault == "tokens" else projected

    monkeypatch.setattr(expert_projection.FoldedExperts, "by_token", faulty)
    model = MIXTURES["olmoe"]()
    subject = loaded(nearly_tied(model, 1e-6) if is_tied else model)
    layers = folded_layer_specs(select_layers(subject.model, "experts"))
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.experts\.gate_up_proj"):
        check_capture(CapturedModel(subject, layers, FOLDED, lambda *_: None))


def test_the_model_has_its_own_implementation_after_a_run_even_if_it_fails() -> None:
    subject = loaded(MIXTURES["gpt_oss"]())
    before = subject.model.config._experts_implementation
    layers = folded_layer_specs(select_layers(subject.model))

    def fail(*_: object) -> None:
        assert subject.model.config._experts_implementation == "lorif"
        raise RuntimeError

    model = CapturedModel(subject, layers, FOLDED, fail)
    with pytest.raises(RuntimeError):
        model.run(batch_of(random_examples(2)))
    assert subject.model.config._experts_implementation == before != "lorif"
    expected = subject.model(torch.arange(5)[None]).logits
    model.run(batch_of(random_examples(2)), lambda *_: None)
    torch.testing.assert_close(subject.model(torch.arange(5)[None]).logits, expected, rtol=0, atol=0)
