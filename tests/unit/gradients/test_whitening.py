"""Invariants: whitening is the K-FAC metric at any scale of a layer, and its sums do not depend on batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.corpus.batches import collate
from lorif_core.gradients import whitening
from lorif_core.gradients.extract import Calibrator, Extractor
from lorif_core.gradients.projection import ProjectionSet
from lorif_core.gradients.roots import EPSILON, exact_roots, inverse_root
from lorif_core.gradients.whitening import SIDES, Covariances, CovarianceSink, second_moment
from lorif_core.lifecycle.calibrate import calibration_sample, sample_size
from lorif_core.model.layers import folded_layer_specs, select_layers
from lorif_core.spec import CodeSpec, ProjectionSpec, ShardRef
from tests.models import FAMILIES, autograd_gradients, batch_of, loaded, random_examples, scaled, tracked

EXAMPLES = random_examples(12, seed=2)
SPEC = ProjectionSpec("whitened", factor=2, seed=5)
FOLDED = ProjectionSpec("folded-whitened", factor=1, seed=5)
DENSE = CodeSpec("dense", 1, "float32")


def calibrated(subject, layers, batches, spec=SPEC) -> Covariances:  # type: ignore[no-untyped-def]
    calibrator = Calibrator(subject, layers, spec)
    for batch in batches:
        calibrator.add(batch)
    return calibrator.covariances


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 99), st.sampled_from([1e-40, 1e-12, 1.0, 1e15]))
def test_the_inverse_root_is_right_at_any_rank_and_magnitude(
    size: int, rank: int, seed: int, magnitude: float
) -> None:
    x = np.random.default_rng(seed).standard_normal((rank, size))
    covariance = torch.from_numpy(x.T @ x) * magnitude
    root = inverse_root(covariance)
    assert torch.isfinite(root).all()
    if rank == 0:
        torch.testing.assert_close(root, torch.eye(size, dtype=torch.float64))
        return
    damped = covariance + EPSILON * covariance.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(root @ damped @ root, torch.eye(size, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@given(st.floats(1e-30, 1e10), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_second_moments_of_tiny_numbers_do_not_vanish(magnitude: float, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((20, 4)).astype(np.float32)
    rounded = np.float32(magnitude)
    moment = second_moment(torch.from_numpy(x * rounded)).numpy() / np.float64(rounded) ** 2
    np.testing.assert_allclose(moment, x.astype(np.float64).T @ x, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 127, 128, 129, 300]), st.integers(0, 40), st.integers(0, 99), st.booleans())
def test_only_finite_tokens_count(size: int, tokens: int, seed: int, is_masked: bool) -> None:
    """Sizes are around the columns of a block; padding may have any value."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((tokens, size)).astype(np.float32))
    counts = torch.from_numpy(rng.random(tokens) < 0.7)
    wrong = torch.from_numpy(rng.random(tokens) < 0.2)
    x[wrong, -1] = torch.tensor(rng.choice([np.nan, np.inf, -np.inf], int(wrong.sum())), dtype=torch.float32)
    left = x[~wrong & (counts if is_masked else torch.ones_like(counts))].double()
    moment = second_moment(x, counts if is_masked else None)
    assert moment.dtype == torch.float64 and torch.equal(moment, moment.T)
    torch.testing.assert_close(moment, left.T @ left, rtol=1e-4, atol=1e-4)


def test_layers_that_share_their_input_share_its_second_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = loaded(scaled(FAMILIES["llama"]()))
    layers = tracked(subject, 2)
    calls = []
    monkeypatch.setattr(whitening, "second_moment", lambda *of: calls.append(of) or second_moment(*of))
    covariances = calibrated(subject, layers, [batch_of(EXAMPLES)])
    sharing = {layer.name.rpartition(".")[2] for layer in layers}
    assert {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"} <= sharing
    blocks = len(layers) // 7
    assert len(layers) == 7 * blocks and len(calls) == (7 + 4) * blocks, "q, k, v and gate, up read the same"
    inputs = {layer.name: covariances.sums[index, "in"] for index, layer in enumerate(layers)}
    for name, sums in inputs.items():
        if name.endswith("q_proj"):
            assert torch.equal(sums, inputs[name.replace("q_proj", "v_proj")])


def test_off_the_cpu_the_host_waits_for_nothing() -> None:
    """A tensor on the meta device has no numbers, so whatever moves one to the host fails there."""
    sink = CovarianceSink([(8, 6), (8, 6)])
    for lengths in ([5, 3], [5, 5]):
        sink.start(np.array(lengths), 5)
        A, E = torch.empty(2, 5, 8, device="meta"), torch.empty(2, 5, 6, device="meta")
        sink.take(0, A, E)
        sink.take(1, torch.empty(2, 9, 8, device="meta"), torch.empty(2, 9, 6, device="meta"))
    sums = sink.covariances.sums
    assert {tuple(matrix.shape) for matrix in sums.values()} == {(8, 8), (6, 6)}
    assert all(matrix.is_meta and matrix.dtype == torch.float64 for matrix in sums.values())


@pytest.mark.parametrize("is_masked", [True, False])
def test_the_second_moment_off_the_cpu_is_the_same(is_masked: bool) -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((50, 33)).astype(np.float32)) * 1e-25
    x[3, 2], x[7, 0] = np.nan, np.inf
    counts = torch.from_numpy(rng.random(50) < 0.7) if is_masked else None
    moment = whitening._moment_on_device(x, counts)
    expected = second_moment(x, counts)
    assert (moment - expected).norm() <= 1e-6 * expected.norm() > 0
    assert not whitening._moment_on_device(x[:0], None).any()


def test_a_reset_begins_at_zero() -> None:
    subject = loaded(scaled(FAMILIES["gpt2"]()))
    layers = tracked(subject, 2)
    calibrator = Calibrator(subject, layers, SPEC)
    digests = []
    for _ in range(2):
        calibrator.add(batch_of(EXAMPLES))
        digests.append(calibrator.covariances.digest())
        calibrator.reset()
    assert digests[0] == digests[1] and calibrator.covariances.tokens == 0


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_sums_do_not_depend_on_batches_or_padding(family: str) -> None:
    subject = loaded(scaled(FAMILIES[family]()))
    layers = tracked(subject, 2)
    together = calibrated(subject, layers, [batch_of(EXAMPLES)])
    alone = calibrated(subject, layers, [collate(EXAMPLES, [i]) for i in range(len(EXAMPLES))])
    added_up = Covariances()
    for part in (range(5), range(5, 12)):
        added_up.add(calibrated(subject, layers, [collate(EXAMPLES, list(part))]))
    assert together.tokens == alone.tokens == added_up.tokens == sum(len(e.input_ids) for e in EXAMPLES)
    for key, sums in together.sums.items():
        for other in (alone, added_up):
            assert (other.sums[key] - sums).norm() <= 1e-5 * sums.norm()


@pytest.mark.parametrize("spec", [SPEC, FOLDED], ids=["random", "folded"])
def test_whitened_codes_are_the_gradients_in_the_kfac_metric(spec: ProjectionSpec) -> None:
    """Codes equal W_in (P_in^T G P_out) W_out with G from autograd in float64 and W from the covariances."""
    model = scaled(FAMILIES["gpt2"]()).double()
    subject = loaded(model, torch.float64)
    layers = tracked(subject, 2) if spec is SPEC else folded_layer_specs(select_layers(model))
    covariances = calibrated(subject, layers, [batch_of(EXAMPLES)], spec)
    extractor = Extractor(subject, layers, spec, DENSE, exact_roots(covariances))
    result = extractor.extract(batch_of(EXAMPLES[:3]))
    codes, scales = torch.from_numpy(result.codes), torch.from_numpy(result.scales)
    placements = [(torch.device("cpu"), torch.float64)] * len(layers)
    sides = ProjectionSet(layers, spec.without_whitening(), placements).layers
    for number, example in enumerate(EXAMPLES[:3]):
        for index, gradient in enumerate(autograd_gradients(model, layers, example)):
            projected = sides[index].outer(sides[index].inner(gradient.T).T)
            roots = [inverse_root(covariances.mean(index, side)) for side in SIDES]
            expected = (roots[0] @ projected @ roots[1]).flatten()
            decoded = extractor.layout.decode(codes[number : number + 1], scales[number : number + 1], index)[0]
            assert (decoded.double() - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("code", [CodeSpec("cut", 3, "sign"), CodeSpec("rank", 2, "float32")], ids=str)
def test_folded_codes_do_not_depend_on_the_rows_of_a_batch(code: CodeSpec) -> None:
    """Alone, short rows take another form of the product than in a batch whose padding is long."""
    subject = loaded(scaled(FAMILIES["llama"]()).double(), torch.float64)
    layers = folded_layer_specs(select_layers(subject.model))
    covariances = calibrated(subject, layers, [batch_of(EXAMPLES)], FOLDED)
    extractor = Extractor(subject, layers, FOLDED, code, exact_roots(covariances))
    _, together = extractor.gradients(batch_of(EXAMPLES))
    for number in range(len(EXAMPLES)):
        _, alone = extractor.gradients(collate(EXAMPLES, [number]))
        for layer, other in zip(together, alone, strict=True):
            torch.testing.assert_close(layer[number], other[0], rtol=1e-4, atol=1e-6)


@settings(max_examples=6, deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(0, 3))
def test_codes_do_not_change_when_a_layer_activation_is_rescaled(gain: float, number: int) -> None:
    """x -> g x with W -> W / g is the same model; a metric that depends on g would weigh layers by their units."""
    layer_name = ["transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"][number % 2]
    results = []
    for factor in (1.0, gain):
        model = scaled(FAMILIES["gpt2"]())
        consumer = model.get_submodule(layer_name)
        with torch.no_grad():
            consumer.weight.div_(factor)
        consumer.register_forward_pre_hook(lambda _, inputs, factor=factor: (inputs[0] * factor,))
        subject = loaded(model.double(), torch.float64)
        layers = tracked(subject, 2)
        covariances = calibrated(subject, layers, [batch_of(EXAMPLES)])
        result = Extractor(subject, layers, SPEC, DENSE, exact_roots(covariances)).extract(batch_of(EXAMPLES))
        results.append(result)
    np.testing.assert_allclose(results[1].codes, results[0].codes, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(results[1].scales, results[0].scales, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 600), min_size=1, max_size=30), st.integers(1, 700))
def test_the_calibration_sample_has_a_share_of_every_shard(rows: list[int], examples: int) -> None:
    shards = [ShardRef("u", f"f{i}", "e", 1, 0, count) for i, count in enumerate(rows)]
    sample = calibration_sample(shards, examples)
    sampled = {part.shard.name: part.examples for part in sample}
    assert sum(sampled.values()) == min(examples, sum(rows))
    for shard in shards:
        share = shard.rows * examples / sum(rows)
        assert abs(sampled.get(shard.name, 0) - min(share, shard.rows)) < 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10**7), st.integers(1, 2000))
def test_the_sample_is_a_small_share_of_a_large_corpus(rows: int, number: int) -> None:
    size = sample_size(ProjectionSpec("whitened", calibration_examples="auto"), rows)
    assert min(rows, 128) <= size <= min(rows, 256)
    assert size <= max(128, rows / 16), "calibration must stay a small share of a build"
    assert size <= sample_size(ProjectionSpec("whitened", calibration_examples="auto"), rows + 1)
    assert sample_size(ProjectionSpec("whitened", calibration_examples=number), rows) == min(number, rows)
