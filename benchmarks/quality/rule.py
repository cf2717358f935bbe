"""Which layers and which code for a budget of bytes an example: the rule of `benchmarks/results/layers-rule.md`.

It needs the names and folded sizes of the layers, nothing that was measured on the model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.quality.folded import code_bytes
from benchmarks.quality.layer_scores import block_of

# between the last two, the rule takes the choice of 128 KiB: more terms cost more time than they bring
BUDGETS = tuple(1024 * kib for kib in (2, 4, 8, 16, 32, 64, 128, 1024))
SMALL_MODEL = 8  # blocks, up to which all matrices of the MLPs are tracked
DEPTH = 0.5  # share of the depth, counted from the output, in which larger models are tracked
FEWEST = 3
TERMS = 16  # of a layer, before a budget buys more layers
MOST_TERMS = 64
LEAST_TERMS = 4
_MLP, _DOWN = r"\.mlp\.", r"\.mlp\.(down_proj|c_proj)$"


@dataclass(frozen=True)
class Choice:
    """Names of the layers and the name of their code."""

    layers: list[str]
    code: str

    @property
    def label(self) -> str:
        """Such as `3 layers, cut 9`."""
        return f"{len(self.layers)} layers, {re.sub('cut', 'cut ', self.code)}"


def choose(shapes: Mapping[str, tuple[int, int]], budget: int) -> Choice:
    """The rule.

    Args:
        shapes: folded sides by layer, of all linear layers.
        budget: bytes an example.
    """
    blocks = 1 + max(block_of(name) for name in shapes)
    if blocks <= SMALL_MODEL:
        return _coded({name: shape for name, shape in shapes.items() if re.search(_MLP, name)}, budget)
    downs = {block_of(name): name for name in shapes if re.search(_DOWN, name)}
    late = [downs[block] for block in range(int(blocks * (1 - DEPTH)), blocks)]
    size = code_bytes("cut1", shapes[late[0]])
    count = max(FEWEST, min(len(late), budget // (TERMS * size)))
    while count > 1 and budget < count * LEAST_TERMS * size:
        count -= 1
    chosen = [downs[block] for block in spread(blocks, DEPTH, count)]
    return _coded({name: shapes[name] for name in chosen}, budget)


def spread(blocks: int, share: float, count: int) -> list[int]:
    """`count` blocks of the last share of the depth, each in the middle of one of `count` equal parts."""
    start = int(blocks * (1 - share))
    return sorted({int(start + (part + 0.5) * (blocks - start) / count) for part in range(count)})


def _coded(shapes: Mapping[str, tuple[int, int]], budget: int) -> Choice:
    """Signs of the whole gradients if they fit, else as many terms as fit."""
    names = list(shapes)
    if sum(code_bytes("signs", shape) for shape in shapes.values()) <= budget:
        return Choice(names, "signs")
    terms = MOST_TERMS
    while terms > 1 and sum(code_bytes(f"cut{terms}", shape) for shape in shapes.values()) > budget:
        terms -= 1
    return Choice(names, f"cut{terms}")
