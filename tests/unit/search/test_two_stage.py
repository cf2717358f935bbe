"""Invariant: a term sketch has those terms of the full code that have the most energy, for any packing.

A two-stage search refuses codes and scores that it does not support.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.errors import UserError
from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.options import SearchOptions
from lorif_core.search.scoring import score_rows
from lorif_core.search.term_sketch import TermSketch, with_most_energy
from lorif_core.search.two_stage import candidate_count, check_two_stage
from lorif_core.spec import CodeSpec, LayerSpec
from tests.unit.search.test_top_rows import CODES, WIDE, queries_of, rows_of

SIZES = st.integers(3, 21)  # sizes of a side, at least the rank


@settings(max_examples=20, deadline=None)
@given(st.data(), st.sampled_from(sorted(CODES)), st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=3))
def test_a_sketch_decodes_to_the_terms_of_the_full_code(
    data: st.DataObject, name: str, sizes: list[tuple[int, int]]
) -> None:
    """For sides of any size: a term may start in the middle of a byte."""
    layers = tuple(LayerSpec(f"l{number}", 0, 0, *size) for number, size in enumerate(sizes))
    full = CodeLayout(layers, CODES[name])
    all_terms = [(layer, term) for layer, slot in enumerate(full.slots) for term in range(slot.terms)]
    sketch = TermSketch(full, data.draw(st.lists(st.sampled_from(all_terms), min_size=1, unique=True)))
    codes, scales = rows_of(full, 4)
    sketch_codes, sketch_scales = sketch.of_rows(codes, scales)
    assert sketch_codes.dtype == codes.dtype and sketch_codes.shape[1] == sketch.layout.stored_width
    for number, (layer, term) in enumerate(sketch.chosen):
        slot = full.slots[layer]
        u, v = (side[:, :, term] for side in full.factors(codes, slot))
        expected = torch.einsum("bi,bj->bij", u, v).flatten(1) * scales[:, slot.scales][:, term, None]
        torch.testing.assert_close(sketch.layout.decode(sketch_codes, sketch_scales, number), expected)


def test_all_terms_score_as_the_full_code_and_a_budget_selects_those_with_the_most_energy() -> None:
    full = CodeLayout(WIDE, CODES["cut 3"])
    codes, scales = rows_of(full, 50)
    scales = scales * torch.tensor([1.0, 1, 1, 1, 9, 1, 1, 1, 5])  # term 1 of layer 1, and term 2 of layer 2
    folded, sketch = queries_of(full, 3, 20), with_most_energy(full, codes, scales, 1e9)
    assert sorted(sketch.chosen) == [(layer, term) for layer in range(3) for term in range(3)]
    scores = score_rows(*sketch.of_rows(codes, scales), sketch.layout, sketch.of_queries(folded))
    expected = score_rows(codes, scales, full, folded)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    budget = sum(TermSketch(full, [term]).layout.bytes_per_example for term in ((1, 1), (2, 2)))
    assert with_most_energy(full, codes, scales, budget).chosen == ((1, 1), (2, 2))
    assert with_most_energy(full, codes, scales, 0).chosen == ((1, 1),), "a sketch must have at least one term"


def test_the_number_of_candidates() -> None:
    assert [candidate_count(rows, 10) for rows in (5, 100, 2048, 10**6)] == [5, 64, 74, 31_260]
    assert candidate_count(2048, 100) == 164


def test_unsupported_codes_and_scores_are_refused() -> None:
    with pytest.raises(UserError, match="are dense, and a two-stage search needs factors"):
        check_two_stage(CodeLayout(WIDE, CodeSpec("dense", 1, "sign")), SearchOptions())
    with pytest.raises(UserError, match=r"normalised scores \(cosine\)"):
        check_two_stage(CodeLayout(WIDE, CODES["cut 3"]), SearchOptions(normalise="cosine"))
