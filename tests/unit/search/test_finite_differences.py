"""Invariant: a score predicts the change of the query's loss in a real training step, in sign and size.

`none`: a gradient descent step of size eta on example i lowers the query's loss by eta * score.
`exact`: the same holds for a damped Gauss-Newton step, -eta H^-1 g_i.
"""

import copy

import numpy as np
import pytest
import torch

from lorif_core.curvature.randomized_svd import fit_layers
from lorif_core.curvature.scan import ScanRequest, ScanResult, scan_blocks
from lorif_core.curvature.woodbury import CurvatureSpec, LayerCurvature
from lorif_core.gradients.extract import Extractor
from lorif_core.model.loading import LoadedModel, prepare_model
from lorif_core.search.scoring import fold_queries, score_rows
from lorif_core.spec import CodeSpec, ProjectionSpec
from tests.models import batch_of, gpt2, make_example, random_examples, tracked

DENSE = CodeSpec("dense", 1, "float32")


def trained_model() -> torch.nn.Module:
    """A model after some training; at a random initialisation all gradients are similar."""
    model = gpt2(n_embd=12, n_layer=2, n_head=2)
    examples = random_examples(24, seed=5)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = batch_of(examples)
    ids, labels = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.labels)
    for _ in range(30):
        optimiser.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
    return model.eval()


def losses(model: LoadedModel, queries: list) -> np.ndarray:
    batch = batch_of(queries)
    ids, labels = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.labels)
    with torch.no_grad():
        logits = model.model(input_ids=ids).logits
    return (
        torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
        )
        .sum(dim=1)
        .numpy()
    )


@pytest.mark.parametrize("kind", ["none", "exact"])
def test_scores_predict_real_training_steps(kind: str) -> None:
    model = trained_model()
    original = prepare_model(copy.deepcopy(model))
    stepped = prepare_model(model.double())
    layers = tracked(original, 1)
    extractor = Extractor(original, layers, ProjectionSpec(factor=1), DENSE)
    training, queries = (
        random_examples(24, seed=5),
        [*random_examples(5, seed=6), make_example([1, 2, 3, 4, 5, 6])],
    )
    result = extractor.extract(batch_of(training))
    codes, scales = torch.from_numpy(result.codes), torch.from_numpy(result.scales)

    def scan(request: ScanRequest) -> ScanResult:
        return scan_blocks([(codes, scales)], extractor.layout, request)

    dims = [layer.dim for layer in layers]
    fitted: dict[int, LayerCurvature] = fit_layers(
        range(len(dims)), dims, len(training), CurvatureSpec(kind), scan
    )
    curvature = [fitted[index] for index in range(len(dims))]
    _, gradients = extractor.gradients(batch_of(queries))
    scores = score_rows(codes, scales, extractor.layout, fold_queries(gradients, curvature)).numpy()

    weights = [stepped.model.get_submodule(layer.name).weight for layer in layers]
    start = losses(stepped, queries)
    eta = 1e-4 if kind == "none" else 1e-3
    drops = np.zeros_like(scores)
    for row in range(len(training)):
        steps = []
        for index, (layer, fit) in enumerate(zip(layers, curvature, strict=True)):
            gradient = extractor.layout.decode(codes[row : row + 1], scales[row : row + 1], index)
            steps.append(fit.fold(gradient).view(layer.in_features, layer.out_features).double())
        with torch.no_grad():
            for weight, step in zip(weights, steps, strict=True):
                weight -= eta * step
            drops[:, row] = (start - losses(stepped, queries)) / eta
            for weight, step in zip(weights, steps, strict=True):
                weight += eta * step
    pearson = np.corrcoef(scores.ravel(), drops.ravel())[0, 1]
    slope = float((scores * drops).sum() / (scores**2).sum())
    assert pearson >= 0.98
    assert slope == pytest.approx(1.0, abs=0.05)
