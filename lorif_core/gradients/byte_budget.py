"""The layers and the code for a budget of bytes (`benchmarks/results/layers-rule.md`)."""

from collections.abc import Sequence

from lorif_core.config_sections import CodeConfig
from lorif_core.errors import UserError
from lorif_core.gradients.codes import CodeLayout
from lorif_core.spec import CodeSpec, LayerSpec

_TERMS = 16  # of a block, before a budget buys more blocks
_LEAST_TERMS = 4
_MOST_TERMS = 64  # of a layer; more take more time than they bring
FEWEST_BLOCKS = 3
"""Blocks of a deep model that a budget buys before it buys more terms of them."""


def late_blocks_of(budget: int, block: Sequence[LayerSpec]) -> int:
    """Number of blocks of a deep model to track for a budget of bytes; `block` has the layers of one."""
    term = CodeLayout(block, CodeSpec("cut", 1, "sign")).bytes_per_example
    return max(min(FEWEST_BLOCKS, budget // (_LEAST_TERMS * term)), budget // (_TERMS * term), 1)


def buys_least_terms(section: CodeConfig, layers: Sequence[LayerSpec]) -> bool:
    """Whether the budget of bytes, if there is one, buys four terms of each of these layers."""
    needed = sum(_LEAST_TERMS * _bytes(section, [layer], 1) for layer in layers)  # as `late_blocks_of` counts
    return section.bytes is None or needed <= section.bytes


def code_spec(section: CodeConfig, layers: Sequence[LayerSpec]) -> CodeSpec:
    """The code of the section, with the rank, at most 64, that its budget of bytes allows for these layers.

    Raises:
        UserError: not even rank 1 fits; the message names the bytes that it takes.
    """
    if section.bytes is None:
        return CodeSpec(section.kind, section.rank, section.dtype)
    dense = CodeSpec("dense", 1, section.dtype)
    if section.kind == "cut" and CodeLayout(layers, dense).bytes_per_example <= section.bytes:
        return dense
    low, high = 0, min(_MOST_TERMS, max(min(layer.d1, layer.d2) for layer in layers))
    while low < high:  # the highest rank in [low, high] that fits
        rank = (low + high + 1) // 2
        fits = _bytes(section, layers, rank) <= section.bytes
        low, high = (rank, high) if fits else (low, rank - 1)
    if low == 0:
        raise UserError(
            f"code.bytes = {section.bytes:,} is too small: rank 1 of {len(layers)} layers takes "
            f"{_bytes(section, layers, 1):,} bytes; raise it, or track fewer layers with model.layers"
        )
    return CodeSpec(section.kind, low, section.dtype)


def _bytes(section: CodeConfig, layers: Sequence[LayerSpec], rank: int) -> int:
    return CodeLayout(layers, CodeSpec(section.kind, rank, section.dtype)).bytes_per_example
