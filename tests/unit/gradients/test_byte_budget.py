"""Invariant: the code of a budget fits it, and the next rank would not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorif_core.config_sections import CodeConfig
from lorif_core.errors import UserError
from lorif_core.gradients.byte_budget import code_spec, late_blocks_of
from lorif_core.gradients.codes import CodeLayout
from lorif_core.spec import CodeSpec, LayerSpec

LAYERS = (LayerSpec("a", 96, 384, 96, 96), LayerSpec("b", 384, 96, 96, 96), LayerSpec("c", 40, 24, 40, 24))


def bytes_of(code: CodeSpec) -> int:
    return CodeLayout(LAYERS, code).bytes_per_example


@given(st.integers(200, 10_000))
def test_the_highest_rank_that_fits_is_chosen(budget: int) -> None:
    code = code_spec(CodeConfig(kind="cut", dtype="sign", bytes=budget), LAYERS)
    dense = CodeSpec("dense", 1, "sign")
    assert bytes_of(code) <= budget
    if budget >= bytes_of(dense):
        assert code == dense
    else:
        assert bytes_of(CodeSpec("cut", code.rank + 1, "sign")) > budget


@pytest.mark.parametrize(("budget", "rank"), [(8_835, 63), (8_836, 64), (36_000, 64)])
def test_no_budget_buys_more_than_64_terms_of_a_layer(budget: int, rank: int) -> None:
    layers = (LayerSpec("model.layers.22.mlp.down_proj", 1536, 576, 512, 576),)
    code = code_spec(CodeConfig(kind="cut", dtype="sign", bytes=budget), layers)
    assert code == CodeSpec("cut", rank, "sign")


def test_without_a_budget_the_rank_is_that_of_the_section() -> None:
    assert code_spec(CodeConfig(kind="cut", dtype="sign", rank=5), LAYERS) == CodeSpec("cut", 5, "sign")


def test_a_budget_below_rank_1_is_refused_with_the_bytes_that_it_takes() -> None:
    needed = bytes_of(CodeSpec("cut", 1, "sign"))
    with pytest.raises(UserError, match=f"{needed:,} bytes"):
        code_spec(CodeConfig(kind="cut", dtype="sign", bytes=needed - 1), LAYERS)


@pytest.mark.parametrize(
    ("kib", "blocks"), [(0.5, 1), (1, 1), (2, 3), (4, 3), (8, 3), (16, 7), (32, 14), (64, 28)]
)
def test_a_budget_buys_terms_first_and_then_blocks(kib: float, blocks: int) -> None:
    """At the width of SmolLM2-135M, as in `benchmarks/results/layers-rule.md`."""
    block = (LayerSpec("model.layers.22.mlp.down_proj", 1536, 576, 512, 576),)
    assert late_blocks_of(round(kib * 1024), block) == blocks
