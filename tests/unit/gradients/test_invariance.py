"""Invariant: codes and scores do not depend on which examples share a batch, on their order or on padding.

If they did, a rebuild with another number of workers would give other answers.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.corpus.batches import collate
from lorif_core.gradients.extract import Extractor
from lorif_core.search.scoring import FoldedQueries, score_rows
from lorif_core.spec import CodeSpec, ProjectionSpec
from tests.models import FAMILIES, batch_of, loaded, random_examples, scaled, tracked

EXAMPLES = random_examples(10, seed=4)


def scores_of(extractor: Extractor, order: list[int], sizes: list[int]) -> np.ndarray:
    """(Q, N) scores of EXAMPLES that were encoded in the given order and batch sizes."""
    codes = torch.zeros(len(EXAMPLES), extractor.layout.width)
    scales = torch.zeros(len(EXAMPLES), extractor.layout.scales)
    start = 0
    for size in sizes:
        indices = order[start : start + size]
        result = extractor.extract(collate(EXAMPLES, indices))
        codes[indices], scales[indices] = torch.from_numpy(result.codes), torch.from_numpy(result.scales)
        start += size
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(3, slot.layer.dim, generator=generator) for slot in extractor.layout.slots]
    return score_rows(codes, scales, extractor.layout, FoldedQueries(tuple(weights))).numpy()


def make_extractor(family: str, code: CodeSpec) -> Extractor:
    subject = loaded(scaled(FAMILIES[family]()))
    return Extractor(subject, tracked(subject, 2), ProjectionSpec(factor=2, seed=3), code)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("code", [CodeSpec("rank", 1, "float32"), CodeSpec("dense", 1, "float32")], ids=str)
def test_scores_do_not_depend_on_batches(family: str, code: CodeSpec) -> None:
    extractor = make_extractor(family, code)
    alone = scores_of(extractor, list(range(10)), [1] * 10)

    @settings(max_examples=8, deadline=None)
    @given(st.permutations(range(10)), st.integers(1, 9))
    def check(order: list[int], first: int) -> None:
        together = scores_of(extractor, order, [first, 10 - first])
        assert np.abs(together - alone).max() <= 1e-4 * np.abs(alone).max()

    check()


def test_two_extractors_create_the_same_projections() -> None:
    code = CodeSpec("rank", 1, "float32")
    first, second = make_extractor("llama", code), make_extractor("llama", code)
    batch = batch_of(EXAMPLES)
    np.testing.assert_array_equal(first.extract(batch).codes, second.extract(batch).codes)
