"""Invariant: automatic sides are as large as bytes and memory allow, and never below the smallest size."""

import math
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from lorif_core.config_sections import CodeConfig
from lorif_core.gradients.byte_budget import code_spec, late_blocks_of
from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.side_limit import SIDES, LayersAt, automatic_side
from lorif_core.gradients.whitening import covariance_bytes, whitening_bytes
from lorif_core.spec import CodeSpec, LayerSpec, folded_sizes

SMALLEST = SIDES[-1]
SIZES = st.integers(16, 32_768)
SHAPES = st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=40)
MEMORY = st.floats(2**20, 2**40)
Shapes = Sequence[tuple[int, int]]


def layers_of(shapes: Shapes) -> LayersAt:
    return lambda side: [
        LayerSpec(str(i), *shape, *folded_sizes(*shape, None, side)) for i, shape in enumerate(shapes)
    ]


def side_of(shapes: Shapes, budget: int | None = None, memory: float = math.inf) -> int:
    code = CodeConfig(kind="cut", dtype="sign", bytes=budget)
    return automatic_side(layers_of(shapes), layers_of(shapes), code, memory)


@given(SHAPES, MEMORY)
def test_the_whitening_takes_at_most_half_of_the_memory(shapes: Shapes, memory: float) -> None:
    side = side_of(shapes, memory=memory)
    assert side == SMALLEST or whitening_bytes(layers_of(shapes)(side)) <= memory / 2
    larger = [other for other in SIDES if other > side]
    assert all(whitening_bytes(layers_of(shapes)(other)) > memory / 2 for other in larger)


@given(SHAPES, MEMORY, MEMORY, st.integers(1, 2**20), st.integers(1, 2**20))
def test_more_memory_or_bytes_never_make_sides_smaller(
    shapes: Shapes, memory: float, other_memory: float, budget: int, other_budget: int
) -> None:
    few = side_of(shapes, min(budget, other_budget), min(memory, other_memory))
    assert few <= side_of(shapes, max(budget, other_budget), max(memory, other_memory))


@given(SHAPES, MEMORY, st.integers(1, 2**20))
def test_a_side_is_the_layers_own_or_more_than_half_of_the_smallest_size(
    shapes: Shapes, memory: float, budget: int
) -> None:
    limited = layers_of(shapes)(side_of(shapes, budget, memory))
    for layer, free in zip(limited, layers_of(shapes)(2**20), strict=True):
        for side, own in ((layer.d1, free.d1), (layer.d2, free.d2)):
            # a side is divided by a whole number, so that the last one may be little more than half full
            assert side == own or SMALLEST / 2 < side <= own


@given(st.tuples(st.integers(1024, 2**15), st.integers(1024, 2**15)), st.integers(900, 2**17))
def test_a_budget_that_decides_the_sides_buys_four_terms_of_three_blocks(
    shape: tuple[int, int], budget: int
) -> None:
    """`byte_budget.py` chooses as many blocks as the sides were made for."""
    side = side_of([shape] * 3, budget)
    block = layers_of([shape])(side)
    assert late_blocks_of(budget, block) >= 3
    code = code_spec(CodeConfig(kind="cut", dtype="sign", bytes=budget), block * 3)
    assert code.kind == "dense" or code.rank >= 4
    assert CodeLayout(block * 3, code).bytes_per_example <= budget


def test_what_decides_the_sides_of_real_shapes() -> None:
    down = {"135M": (1536, 576), "8B": (14336, 4096), "70B": (28672, 8192)}
    assert [side_of([shape] * 15, memory=4 * 2**30) for shape in down.values()] == [1024, 1024, 1024]
    assert [side_of([shape] * 3, budget=4096) for shape in down.values()] == [1024, 1024, 1024]
    assert [side_of([shape] * 3, budget=2048) for shape in down.values()] == [1024, 512, 512]
    assert side_of([down["70B"]] * 560, memory=4 * 2**30) == 256
    assert covariance_bytes(layers_of([down["135M"]])(1024)) == 8 * (512**2 + 576**2)
    assert CodeLayout(layers_of([down["70B"]] * 3)(512), CodeSpec("cut", 4, "sign")).bytes_per_example <= 2048
