"""Invariants: stored roots whiten as exact ones do; sides that share a covariance share one root; the name of a
whitening identifies covariances and roots.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.gradients.extract import Calibrator, Extractor
from lorif_core.gradients.roots import (
    SideMatrices,
    WhitenedSide,
    exact_roots,
    inverse_root,
    inverse_roots,
    stored_roots,
    whitened_sides,
    whitening_name,
)
from lorif_core.gradients.whitening import SIDES, Covariances, summed
from lorif_core.model.layers import folded_layer_specs, select_layers
from lorif_core.spec import CodeSpec, ProjectionSpec
from tests.models import FAMILIES, batch_of, loaded, random_examples, scaled

CPU = torch.device("cpu")
FOLDED = ProjectionSpec("folded-whitened", factor=1, seed=5)
COSINE = 0.9999  # of gradients whitened with stored and with exact roots


def roots_of(sides: list[WhitenedSide]) -> SideMatrices:
    return SideMatrices({(side.summary.layer, side.summary.side): side.matrix for side in sides})


def measured(family: str) -> tuple[Calibrator, int]:
    """A calibrator with a batch, and the number of its layers."""
    subject = loaded(scaled(FAMILIES[family]()))
    layers = folded_layer_specs(select_layers(subject.model))
    calibrator = Calibrator(subject, layers, FOLDED)
    calibrator.add(batch_of(random_examples(12, seed=2)))
    return calibrator, len(layers)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.sampled_from([1, 8, 40]), st.integers(0, 60), st.integers(0, 99))
def test_roots_of_many_matrices_are_those_of_each(count: int, size: int, rank: int, seed: int) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, rank, size)))
    covariances = x.mT @ x * torch.logspace(-12, 12, count, dtype=torch.float64)[:, None, None]
    together = inverse_roots(covariances)
    for matrix, root in zip(covariances, together, strict=True):
        torch.testing.assert_close(root, inverse_root(matrix), rtol=1e-9, atol=1e-12 * float(root.abs().max()))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([8, 64, 200]), st.floats(0, 3), st.integers(0, 99))
def test_stored_roots_whiten_like_exact_ones(size: int, spread: float, seed: int) -> None:
    """Also if few coordinates are far larger than the others, as activations of language models are."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((3 * size, size)) * np.exp(spread * rng.standard_normal(size)))
    covariances = Covariances({(0, side): x.T @ x for side in SIDES}, tokens=len(x), examples=1)
    (_, stored), (_, exact) = (
        roots.matrix(0, "in") for roots in (roots_of(stored_roots(covariances)[1]), exact_roots(covariances))
    )
    cosines = torch.nn.functional.cosine_similarity(x @ stored, x @ exact)
    assert cosines.min() >= COSINE


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_codes_of_stored_and_of_exact_roots_agree(family: str) -> None:
    """Cosine and scores of whitened gradients of a model."""
    subject = loaded(scaled(FAMILIES[family]()))
    layers = folded_layer_specs(select_layers(subject.model))
    calibrator = Calibrator(subject, layers, FOLDED)
    calibrator.add(batch_of(random_examples(12, seed=2)))
    covariances = calibrator.covariances
    code = CodeSpec("dense", 1, "float32")
    gradients = [
        torch.cat(
            Extractor(subject, layers, FOLDED, code, roots).gradients(batch_of(random_examples(9, seed=3)))[1], 1
        )
        for roots in (roots_of(stored_roots(covariances)[1]), exact_roots(covariances))
    ]
    assert torch.nn.functional.cosine_similarity(*gradients).min() >= COSINE
    stored, exact = (rows @ rows.T for rows in gradients)
    np.testing.assert_allclose(stored, exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))


def test_sides_that_share_their_input_share_one_root() -> None:
    calibrator, count = measured("llama")
    covariances = calibrator.covariances
    parts = [covariances.packed(range(count))]
    sides = whitened_sides((keys, total / covariances.tokens) for keys, total in summed(parts, CPU))
    assert [(side.summary.layer, side.summary.side) for side in sides] == [
        (layer, side) for layer in range(count) for side in SIDES
    ]
    sources = {side.summary.layer: side.summary.source for side in sides if side.summary.side == "in"}
    assert sum(source != layer for layer, source in sources.items()) >= 2 * count // 7, "k, v and up"
    dense = roots_of(sides).of_layers([torch.empty(0)] * count)
    for layer, source in sources.items():
        assert dense[layer][0] is dense[source][0]
        assert torch.equal(covariances.sums[layer, "in"], covariances.sums[source, "in"])


@pytest.mark.parametrize("groups", [1, 3])
def test_groups_and_parts_add_up_to_the_covariances(groups: int) -> None:
    """Sums that went through parts and groups equal dense float64 sums to 1e-6."""
    calibrator, count = measured("gpt2")
    parts = [calibrator.covariances]
    calibrator.add(batch_of(random_examples(5, seed=4)))
    together = calibrator.covariances
    parts.append(
        Covariances({key: together.sums[key] - parts[0].sums[key] for key in together.sums}, together.tokens, 17)
    )
    for group in np.array_split(range(count), groups):
        packed = [part.packed(group.tolist()) for part in parts]
        for keys, total in summed(packed, CPU):
            for key in keys:
                assert (total - together.sums[key]).norm() <= 1e-6 * together.sums[key].norm()


def test_the_name_identifies_covariances_and_roots() -> None:
    covariances = Covariances({(0, "in"): torch.eye(3).double(), (0, "out"): torch.eye(2).double()}, 9, 3)
    name, sides = stored_roots(covariances)
    summaries = [side.summary for side in sides]
    assert stored_roots(covariances)[0] == name == whitening_name(9, 3, reversed(summaries))
    assert name != whitening_name(9, 4, summaries) and name != whitening_name(9, 3, summaries[:1])
    for changed in ({"matrix": 1}, {"covariance": 1}, {"size": 4}, {"layer": 1}):
        assert name != whitening_name(9, 3, [replace(summaries[0], **changed), summaries[1]])  # type: ignore[arg-type]
    exact = replace(summaries[0], source=5)
    assert name == whitening_name(9, 3, [exact, summaries[1]]), "where equal matrices lie does not matter"
