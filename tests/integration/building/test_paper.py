"""Invariant: the preset `paper` is LoRIF as published (arXiv 2601.21929, section 3): rank-1 factors, by power
iteration, of two-sided projected gradients, a truncated SVD, the Woodbury identity, factored queries.

The reference is a dense float64 implementation of the formulas; it shares only the random signs with our code.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import lorif_core as lc
from flows.build import build
from lorif_core.corpus.tokenise import Example, encode_text, make_example
from lorif_core.spec import IndexSpec
from tests.conftest import WORDS
from tests.integration.conftest import MakeConfig
from tests.models import autograd_gradients
from tests.tiny_tokenizer import VOCAB, byte_tokenizer
from tests.unit.gradients.test_codes_against_autograd import low_rank_reference, projected

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")

EXAMPLES, RANK, OVERSAMPLE = 60, 12, 10
QUERIES = ["the cat sees it", "a small red bird likes the old tree", "then the dog runs"]


def example_of(text: str) -> Example:
    sequence = encode_text(text, byte_tokenizer(), VOCAB, "a test")
    return make_example(text, 0, sequence.ids, sequence.labels, text)


def published_scores(model: torch.nn.Module, spec: IndexSpec, texts: list[str]) -> np.ndarray:
    """Scores (Q, N): the sum over layers of q^T (G^T G + lambda I)^-1 g at rank r, by the Woodbury identity."""
    rows: list[list[np.ndarray]] = [
        [
            low_rank_reference(projected(gradient, layer, spec.projection, spec.layers), 1).ravel()
            for layer, gradient in zip(
                spec.layers, autograd_gradients(model, spec.layers, example_of(text)), strict=True
            )
        ]
        for text in [*texts, *QUERIES]
    ]
    scores = np.zeros((len(QUERIES), len(texts)))
    for of_layer in zip(*rows, strict=True):
        stacked, queries = np.stack(of_layer[: len(texts)]), np.stack(of_layer[len(texts) :])
        _, sigma, Vt = np.linalg.svd(stacked, full_matrices=False)
        damping = 0.1 * np.mean(sigma[: RANK + OVERSAMPLE] ** 2)
        V, shrink = Vt[:RANK].T, sigma[:RANK] ** 2 / (sigma[:RANK] ** 2 + damping)
        scores += (queries @ stacked.T - (queries @ V * shrink) @ (stacked @ V).T) / damping
    return scores


def test_the_paper_preset_is_the_published_algorithm(make_config: MakeConfig, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    texts = list(dict.fromkeys(" ".join(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(EXAMPLES)))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": text, "text": text}) + "\n" for text in texts))
    config = make_config(
        tmp_path / "index",
        preset="paper",
        corpus={"uri": str(corpus)},
        projection={"factor": 2},
        curvature={"rank": RANK, "oversample": OVERSAMPLE, "power_iterations": 10},
    )
    generation = build(config)
    assert generation.newest.factored_query and config.code.dtype == "float16" and config.code.rank == 1
    model = AutoModelForCausalLM.from_pretrained(config.model.path).double().eval()
    expected = published_scores(model, generation.index_spec, texts)
    ids, scores = lc.open_index(config.index).scores(QUERIES)
    scores = scores[:, [ids.index(text) for text in texts]]
    error = np.linalg.norm(scores - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() <= 1e-3, error
