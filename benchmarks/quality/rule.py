"""Which layers and which code the product takes of a dump for a budget of bytes an example.

The rule is that of `model.layers: auto` with `code.bytes`; `benchmarks/results/layers-rule.md` has the reasons. It
needs the names and sizes of the layers, nothing that was measured on the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lorif_core.config_sections import CodeConfig
from lorif_core.gradients.byte_budget import code_spec, late_blocks_of
from lorif_core.model.layer_choice import AUTO, choose, is_mlp
from lorif_core.model.layers import folded_layer_specs

BUDGETS = tuple(1024 * kib for kib in (2, 4, 8, 16, 32, 64, 128, 1024))


@dataclass(frozen=True)
class Choice:
    """Names of the layers and the name of their code."""

    layers: list[str]
    code: str

    @property
    def label(self) -> str:
        """Such as `3 layers, cut 9`."""
        return f"{len(self.layers)} layers, {self.code.replace('cut', 'cut ')}"


def choose_for(sizes: Mapping[str, tuple[int, int]], budget: int) -> Choice:
    """The rule.

    Args:
        sizes: (in_features, out_features) by layer, of all linear layers.
        budget: bytes an example.
    """
    layers = {
        name: torch.nn.Linear(inner, outer, bias=False, device="meta") for name, (inner, outer) in sizes.items()
    }
    width = min(min(sizes[name]) for name in sizes if is_mlp(name))
    block = folded_layer_specs(choose(layers, AUTO, width, 1).layers, None, None)
    chosen = choose(layers, AUTO, width, late_blocks_of(budget, block)).layers
    code = code_spec(CodeConfig(kind="cut", dtype="sign", bytes=budget), folded_layer_specs(chosen, None, None))
    return Choice(list(chosen), "signs" if code.kind == "dense" else f"cut{code.rank}")


def spread(blocks: int, share: float, count: int) -> list[int]:
    """`count` blocks of the last share of the depth, each in the middle of one of `count` equal parts."""
    start = int(blocks * (1 - share))
    return sorted({int(start + (part + 0.5) * (blocks - start) / count) for part in range(count)})
