"""Columns of factors: some terms of some layers, with their scales, are a coarse code of a row.

Of a tenth of a row's bytes its own columns with the most energy say far more of a score than a projection does, as
whitened gradients have a flat spectrum (`benchmarks.quality.twostage`).

Shapes: B rows, S scales of a row.
"""

from collections.abc import Sequence

import numpy as np
import torch

from lorif_core.gradients.codes import CodeLayout
from lorif_core.gradients.quantisation import PER_BYTE
from lorif_core.search.scoring import FoldedQueries
from lorif_core.spec import CodeSpec

Column = tuple[int, int]  # number of a layer, number of a term


class Columns:
    """Chosen columns as a code of its own, in which every column is a layer of one term.

    Args:
        whole: layout of whole rows, which are not dense.
        chosen: the columns.
    """

    def __init__(self, whole: CodeLayout, chosen: Sequence[Column]) -> None:
        self._whole, self.chosen = whole, tuple(chosen)
        layers = [whole.slots[layer].layer for layer, _ in chosen]
        self.layout = CodeLayout(layers, CodeSpec(whole.code.kind, 1, whole.code.dtype))

    def of_rows(self, codes: torch.Tensor, scales_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scales of whole rows, cut to the columns and packed as they were."""
        sides = [self._levels_of(codes, *column) for column in self.chosen]
        places = [layer * self._whole.terms + term for layer, term in self.chosen]
        return torch.cat(sides, dim=1), scales_BS[:, places]

    def of_queries(self, folded: FoldedQueries) -> FoldedQueries:
        """What the columns are scored with; nothing is copied."""
        return FoldedQueries(tuple(folded.weights[layer] for layer, _ in self.chosen))

    def _levels_of(self, codes: torch.Tensor, layer: int, term: int) -> torch.Tensor:
        slot, per_byte = self._whole.slots[layer], PER_BYTE.get(self._whole.code.dtype)
        d1, d2, middle = slot.layer.d1, slot.layer.d2, slot.middle - slot.start
        u, v = slice(term * d1, (term + 1) * d1), slice(middle + term * d2, middle + (term + 1) * d2)
        if per_byte is None:
            levels = codes[:, slot.start : slot.stop]
            return torch.cat([levels[:, u], levels[:, v]], dim=1)
        bits = np.unpackbits(codes[:, slot.packed].numpy(), axis=1, bitorder="little")
        levels_B = bits.reshape(len(codes), -1, 8 // per_byte)
        both = np.concatenate([levels_B[:, u], levels_B[:, v]], axis=1)
        return torch.from_numpy(np.packbits(both.reshape(len(codes), -1), axis=1, bitorder="little"))


def with_most_energy(whole: CodeLayout, codes: torch.Tensor, scales_BS: torch.Tensor, budget: float) -> Columns:
    """The columns with the most energy a byte over some rows that together take at most `budget` bytes of a row.

    At least one. Energy is the mean of |s u v^T|^2. Depends on nothing but the rows.
    """
    energy = {}
    for number, slot in enumerate(whole.slots):
        u, v = whole.factors(codes, slot)
        norms_Bc = u.norm(dim=1) * v.norm(dim=1) * scales_BS[:, slot.scales]
        means = norms_Bc.double().square().mean(dim=0).tolist()
        energy.update({(number, term): value / _bytes(whole, number) for term, value in enumerate(means)})
    chosen: list[Column] = []
    for column in sorted(energy, key=lambda column: (-energy[column], column)):
        spent = sum(_bytes(whole, layer) for layer, _ in (*chosen, column))
        if spent <= budget or not chosen:
            chosen.append(column)
    return Columns(whole, chosen)


def _bytes(whole: CodeLayout, layer: int) -> float:
    """Of a column of a layer on storage, its share of what is stored once a row left aside."""
    alone = CodeSpec(whole.code.kind, 1, whole.code.dtype)
    return CodeLayout([whole.slots[layer].layer], alone).bytes_per_example
