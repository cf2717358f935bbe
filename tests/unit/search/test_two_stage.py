"""Invariant: columns are those of the whole code, however it is packed; those with most energy are taken, and what
cannot be looked for in two stages is refused.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.errors import UserError
from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.options import Terms
from lorif_core.search.scoring import score_rows
from lorif_core.search.term_sketch import Columns, with_most_energy
from lorif_core.search.two_stage import candidates, check_two_stage
from lorif_core.spec import CodeSpec, LayerSpec
from tests.unit.search.test_top_rows import CODES, WIDE, queries_of, rows_of

SIZES = st.integers(3, 21)  # of a side: no less than the rank


@settings(max_examples=20, deadline=None)
@given(st.data(), st.sampled_from(sorted(CODES)), st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=3))
def test_columns_decode_to_the_terms_of_the_whole_code(
    data: st.DataObject, name: str, sizes: list[tuple[int, int]]
) -> None:
    """Sides of any size: those of a column need not begin at a byte."""
    layers = tuple(LayerSpec(f"l{number}", 0, 0, *size) for number, size in enumerate(sizes))
    whole = CodeLayout(layers, CODES[name])
    every = [(layer, term) for layer in range(len(layers)) for term in range(whole.terms)]
    columns = Columns(whole, data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True)))
    codes, scales = rows_of(whole, 4)
    cut, cut_scales = columns.of_rows(codes, scales)
    assert cut.dtype == codes.dtype and cut.shape[1] == columns.layout.stored_width
    for number, (layer, term) in enumerate(columns.chosen):
        slot = whole.slots[layer]
        u, v = (side[:, :, term] for side in whole.factors(codes, slot))
        expected = torch.einsum("bi,bj->bij", u, v).flatten(1) * scales[:, slot.scales][:, term, None]
        torch.testing.assert_close(columns.layout.decode(cut, cut_scales, number), expected)


def test_all_columns_score_as_the_whole_code_and_a_budget_takes_those_with_most_energy() -> None:
    whole = CodeLayout(WIDE, CODES["cut 3"])
    codes, scales = rows_of(whole, 50)
    scales = scales * torch.tensor([1.0, 1, 1, 1, 9, 1, 1, 1, 5])  # layer 1 term 1, and layer 2 term 2
    folded, all_of = queries_of(whole, 3, 20), with_most_energy(whole, codes, scales, 1e9)
    assert sorted(all_of.chosen) == [(layer, term) for layer in range(3) for term in range(3)]
    scores = score_rows(*all_of.of_rows(codes, scales), all_of.layout, all_of.of_queries(folded))
    expected = score_rows(codes, scales, whole, folded)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    budget = sum(Columns(whole, [column]).layout.bytes_per_example for column in ((1, 1), (2, 2)))
    assert with_most_energy(whole, codes, scales, budget).chosen == ((1, 1), (2, 2))
    assert with_most_energy(whole, codes, scales, 0).chosen == ((1, 1),), "at least one"


def test_candidates_are_few_but_enough() -> None:
    assert [candidates(rows, 10) for rows in (5, 100, 2048, 10**6)] == [5, 64, 74, 31_260]
    assert candidates(2048, 100) == 164


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(UserError, match="are dense and have no columns"):
        check_two_stage(CodeLayout(WIDE, CodeSpec("dense", 1, "sign")), Terms())
    with pytest.raises(UserError, match=r"normalised \(cosine\)"):
        check_two_stage(CodeLayout(WIDE, CODES["cut 3"]), Terms(normalise="cosine"))
