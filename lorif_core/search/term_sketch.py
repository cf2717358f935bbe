"""Term sketch: some terms of some layers of a factored code, with their scales, as a smaller code of a row.

At a tenth of a row's bytes, its terms with the most energy approximate a score far better than a projection does,
because whitened gradients have a flat spectrum (`benchmarks.quality.twostage`).

Shapes: B rows, S scales of a row.
"""

from collections.abc import Sequence

import numpy as np
import torch

from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.quantisation import LEVELS_PER_BYTE
from lorif_core.search.scoring import FoldedQueries
from lorif_core.spec import CodeSpec

Term = tuple[int, int]  # number of a layer, number of a term


class TermSketch:
    """Chosen terms as a code with its own layout, in which every term is a layer of one term.

    Args:
        full: layout of full rows, which are not dense.
        chosen: the terms.
    """

    def __init__(self, full: CodeLayout, chosen: Sequence[Term]) -> None:
        self._full, self.chosen = full, tuple(chosen)
        layers = [full.slots[layer].layer for layer, _ in chosen]
        self.layout = CodeLayout(layers, CodeSpec(full.code.kind, 1, full.code.dtype))

    def of_rows(self, codes: torch.Tensor, scales_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scales of the sketch, from those of full rows; packed in the same way."""
        sides = [self._levels_of(codes, *term) for term in self.chosen]
        scales = [self._full.slots[layer].scales.start + term for layer, term in self.chosen]
        return torch.cat(sides, dim=1), scales_BS[:, scales]

    def of_queries(self, folded: FoldedQueries) -> FoldedQueries:
        """The weights that the sketch is scored with; not copied."""
        return FoldedQueries(tuple(folded.weights[layer] for layer, _ in self.chosen))

    def _levels_of(self, codes: torch.Tensor, layer: int, term: int) -> torch.Tensor:
        slot, per_byte = self._full.slots[layer], LEVELS_PER_BYTE.get(self._full.code.dtype)
        d1, d2, middle = slot.layer.d1, slot.layer.d2, slot.middle - slot.start
        u, v = slice(term * d1, (term + 1) * d1), slice(middle + term * d2, middle + (term + 1) * d2)
        if per_byte is None:
            levels = codes[:, slot.start : slot.stop]
            return torch.cat([levels[:, u], levels[:, v]], dim=1)
        bits = np.unpackbits(codes[:, slot.packed].numpy(), axis=1, bitorder="little")
        levels_B = bits.reshape(len(codes), -1, 8 // per_byte)
        both = np.concatenate([levels_B[:, u], levels_B[:, v]], axis=1)
        return torch.from_numpy(np.packbits(both.reshape(len(codes), -1), axis=1, bitorder="little"))


def with_most_energy(full: CodeLayout, codes: torch.Tensor, scales_BS: torch.Tensor, budget: float) -> TermSketch:
    """The sketch of the terms with the most energy per byte, of at most `budget` bytes a row, at least one term.

    The energy of a term is the mean of |s u v^T|^2 over the given rows. The choice depends only on these rows.
    """
    energy = {}
    for number, slot in enumerate(full.slots):
        u, v = full.factors(codes, slot)
        norms_Bc = u.norm(dim=1) * v.norm(dim=1) * scales_BS[:, slot.scales]
        means = norms_Bc.double().square().mean(dim=0).tolist()
        energy.update({(number, term): value / _term_bytes(full, number) for term, value in enumerate(means)})
    chosen: list[Term] = []
    for term in sorted(energy, key=lambda term: (-energy[term], term)):
        used = sum(_term_bytes(full, layer) for layer, _ in (*chosen, term))
        if used <= budget or not chosen:
            chosen.append(term)
    return TermSketch(full, chosen)


def _term_bytes(full: CodeLayout, layer: int) -> float:
    """Stored bytes of a term of a layer; includes the float32 that packed codes have once a row."""
    sketch_code = CodeSpec(full.code.kind, 1, full.code.dtype)
    return CodeLayout([full.slots[layer].layer], sketch_code).bytes_per_example
