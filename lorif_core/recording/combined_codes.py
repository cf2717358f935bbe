"""One row for each example out of its rows in the journal.

A score is linear in what a code decodes to, so the mean of what the rows of an example decode to has the mean of
their scores. It is encoded again, or has the terms of all rows if the code has room for them.

Shapes: B examples, N rows of each, R = B N rows, W levels and S scales of a row, c terms.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorif_core.gradients.codes import CodeLayout, LayerCode, LayerSlot, encode
from lorif_core.gradients.extract import to_stored

JournalRow = tuple[float, np.ndarray, np.ndarray]
"""Loss, codes (W,) as stored and scales (S,) of a row of the journal."""
_BYTES_AT_ONCE = 64 * 2**20  # of levels as float32


@dataclass(frozen=True, slots=True)
class StoredCodes:
    """Losses (B,), codes (B, W) as stored and scales (B, S) of some examples."""

    losses: np.ndarray
    codes: np.ndarray
    scales: np.ndarray


def combined(
    groups: Sequence[Sequence[JournalRow]], journal: CodeLayout, stored: CodeLayout, *, unbiased: bool
) -> StoredCodes:
    """One row for each example: its only one, or one of the mean over its rows.

    Args:
        groups: the rows of each example.
        journal: their layout.
        stored: the layout of the result.
        unbiased: as for `encode`.
    """
    losses = np.array([np.mean([loss for loss, _, _ in group]) for group in groups], np.float32)
    codes: list[np.ndarray] = [group[0][1] for group in groups]
    scales: list[np.ndarray] = [group[0][2] for group in groups]
    for numbers in _alike(groups, journal):
        count = len(groups[numbers[0]])
        if count == 1 and journal.code == stored.code:
            continue
        rows = [row for number in numbers for row in groups[number]]
        codes_RW, scales_RS = (torch.from_numpy(np.stack([row[part] for row in rows])) for part in (1, 2))
        found = _mean_of_rows(codes_RW, scales_RS, count, journal, stored, unbiased=unbiased)
        for number, code, scale in zip(numbers, *(part.numpy() for part in found), strict=True):
            codes[number], scales[number] = code, scale
    return StoredCodes(losses, np.stack(codes), np.stack(scales))


def _alike(groups: Sequence[Sequence[JournalRow]], journal: CodeLayout) -> Iterator[list[int]]:
    """Numbers of examples with the same number of rows, as many as may be decoded at once."""
    by_count: defaultdict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        by_count[len(group)].append(number)
    for count, numbers in by_count.items():
        size = max(1, _BYTES_AT_ONCE // (4 * journal.width * count))
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


def _mean_of_rows(
    codes_RW: torch.Tensor, scales_RS: torch.Tensor, count: int, journal: CodeLayout, stored: CodeLayout,
    *, unbiased: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Codes as stored and scales of the mean over every `count` rows."""
    levels = torch.zeros(len(codes_RW) // count, stored.width)
    scales = torch.zeros(len(levels), stored.scales)
    for index, (slot, target) in enumerate(zip(journal.slots, stored.slots, strict=True)):
        if journal.code.kind == "dense":
            G = journal.decode(codes_RW, scales_RS, index).view(len(levels), count, slot.layer.d1, slot.layer.d2)
            A = torch.eye(slot.layer.d1).expand(len(levels), -1, -1)
            code = encode(A.contiguous(), G.mean(dim=1), stored.code, unbiased=unbiased)
        else:
            u, v = (
                factor.transpose(1, 2).reshape(len(levels), count * slot.terms, -1)
                for factor in journal.factors(codes_RW, slot)
            )
            s = scales_RS[:, slot.scales].reshape(len(levels), -1) / count
            if _has_room(journal, stored, count * slot.terms, target):
                code = _all_terms(u, v, s, target)
            else:  # sum_k s_k u_k v_k^T = A^T E: terms are like tokens
                code = encode(u.contiguous(), v * s[:, :, None], stored.code, unbiased=unbiased)
        levels[:, target.start : target.stop], scales[:, target.scales] = code.codes, code.scales
    return to_stored(levels, stored), scales


def _has_room(journal: CodeLayout, stored: CodeLayout, terms: int, target: LayerSlot) -> bool:
    """Whether a code can have these terms as they are."""
    same = (journal.code.kind, journal.code.dtype) == (stored.code.kind, stored.code.dtype)
    return same and terms <= target.terms


def _all_terms(u_Bcd: torch.Tensor, v_Bcd: torch.Tensor, s_Bc: torch.Tensor, target: LayerSlot) -> LayerCode:
    """The code of these terms, and of terms with scale zero behind them."""
    more = target.terms - s_Bc.shape[1]
    sides = [torch.nn.functional.pad(side, (0, 0, 0, more), value=1.0).flatten(1) for side in (u_Bcd, v_Bcd)]
    return LayerCode(torch.cat(sides, dim=1), torch.nn.functional.pad(s_Bc, (0, more)))
