"""The largest size of a folded side under `projection.max_side: auto`.

The memory of the whitening grows with the square of the sides, and the bytes of a term with their sum, while wider
models lose little by a further fold. So the largest of a few sizes is taken with which bytes and memory suffice.
"""

from collections.abc import Callable, Sequence

from lorif_core.config_sections import CodeConfig
from lorif_core.gradients.byte_budget import buys_least_terms
from lorif_core.gradients.whitening import whitening_bytes
from lorif_core.spec import LayerSpec

SIDES = (1024, 512, 256, 128)
"""The sizes to try; the last one is taken even if nothing suffices."""
_SHARE = 0.5  # of a worker's working memory, for the whitening

LayersAt = Callable[[int], Sequence[LayerSpec]]


def automatic_side(tracked: LayersAt, fewest: LayersAt, code: CodeConfig, memory_bytes: float) -> int:
    """The largest size with which the budget buys four terms of each layer and the whitening fits into the memory.

    Args:
        tracked: the layers that are tracked if this is the largest size of a side.
        fewest: those that are tracked at least, however small the budget of bytes is.
        code: the code, with its budget.
        memory_bytes: working memory of a worker, half of which the whitening may take; infinite without whitening.
    """
    for side in SIDES:
        if buys_least_terms(code, fewest(side)) and whitening_bytes(tracked(side)) <= _SHARE * memory_bytes:
            return side
    return SIDES[-1]
