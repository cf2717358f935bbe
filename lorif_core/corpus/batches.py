"""Batches of examples of similar length under a token budget. Shapes: B rows, T tokens of the longest row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lorif_core.spec import MASKED

_PADDING_ID = 0


class TokenRow(Protocol):
    """The part of an example that a batch needs: ids and labels, (T,) each."""

    @property
    def input_ids(self) -> np.ndarray:
        """Token ids."""

    @property
    def labels(self) -> np.ndarray:
        """Targets, -100 where not scored."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Right-padded rows.

    Attributes:
        indices: index of each row's example.
        input_ids: (B, T) int64, 0 in the padding.
        labels: (B, T) int64, -100 in the padding.
        lengths: (B,) int64, tokens of each row without padding.
    """

    indices: list[int]
    input_ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Each index once, in batches whose number of rows times longest length is within the budget.

    The longest sequences come first, so that a batch that exceeds the memory fails at the start and not at the
    end.

    Raises:
        ValueError: a single sequence is longer than the budget.
    """
    if lengths and max(lengths) > budget:
        raise ValueError(f"a sequence of {max(lengths)} tokens does not fit a budget of {budget} tokens per batch")
    batches: list[list[int]] = []
    room = 0
    for index in longest_first(lengths):
        if room == 0:
            batches.append([])
            room = fitting(lengths[index], budget)
        batches[-1].append(index)
        room -= 1
    return batches


def longest_first(lengths: Sequence[int]) -> list[int]:
    """The indices of all examples, the longest first."""
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def fitting(longest: int, budget: int) -> int:
    """How many examples of at most `longest` tokens a batch of `budget` tokens has; at least one."""
    return max(1, budget // max(longest, 1))


def collate(examples: Sequence[TokenRow], indices: Sequence[int]) -> Batch:
    """Pad the chosen examples on the right to the longest of them."""
    lengths = np.array([len(examples[i].input_ids) for i in indices], dtype=np.int64)
    longest = int(lengths.max(initial=0))
    ids_BT = np.full((len(indices), longest), _PADDING_ID, dtype=np.int64)
    labels_BT = np.full((len(indices), longest), MASKED, dtype=np.int64)
    for row, (i, length) in enumerate(zip(indices, lengths.tolist(), strict=True)):
        ids_BT[row, :length] = examples[i].input_ids
        labels_BT[row, :length] = examples[i].labels
    return Batch(list(indices), ids_BT, labels_BT, lengths)


def padding_waste(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of the batches' positions that are padding, in [0, 1)."""
    positions = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches if batch)
    tokens = sum(lengths[i] for batch in batches for i in batch)
    return 1 - tokens / positions if positions else 0.0
