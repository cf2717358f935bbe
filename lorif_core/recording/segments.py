"""Which tokens of a batch belong to which example: rows with padding, or documents packed into rows.

Shapes: B rows, T tokens of a row, S examples, L tokens of the longest example.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorif_core.spec import MASKED

Bounds = tuple[int, int, int]
"""Row of an example, its first token, and the token after its last."""


@dataclass(frozen=True, slots=True)
class Segments:
    """The examples of a batch of (B, T) tokens, in the order of rows and tokens."""

    shape: tuple[int, int]
    bounds: Sequence[Bounds]

    @property
    def lengths(self) -> np.ndarray:
        """(S,) int64, tokens of each example."""
        return np.array([stop - start for _, start, stop in self.bounds], np.int64)

    @property
    def longest(self) -> int:
        """L."""
        return self.shape[1] if self.are_rows else int(self.lengths.max(initial=0))

    @property
    def are_rows(self) -> bool:
        """Whether every row is one example that begins at its first token."""
        firsts = [(row, start) for row, start, _ in self.bounds]
        return firsts == [(row, 0) for row in range(self.shape[0])]

    def split(self, x_BTd: torch.Tensor) -> torch.Tensor:
        """(S, L, d): the tokens of each example, zeros behind them; the tensor itself if examples are rows."""
        if self.are_rows:
            return x_BTd
        positions_SL, is_token_SL = (torch.from_numpy(array).to(x_BTd.device) for array in self._positions())
        return x_BTd.reshape(-1, x_BTd.shape[-1])[positions_SL] * is_token_SL[:, :, None]

    def _positions(self) -> tuple[np.ndarray, np.ndarray]:
        offsets = np.arange(self.longest)[None]
        starts = np.array([row * self.shape[1] + start for row, start, _ in self.bounds], np.int64)[:, None]
        is_token = offsets < self.lengths[:, None]
        return np.where(is_token, starts + offsets, starts), is_token


def find_segments(inputs: Mapping[str, Any], pad_id: int | None = None) -> Segments:
    """The examples of the inputs of a forward pass, which are on the host.

    A row is split where a document id of `attention_mask`, `seq_idx` or `cu_seq_lens_q` changes, or where
    `position_ids` restart.

    Args:
        inputs: `input_ids` (B, T), and as far as the collator gives them `labels`, `attention_mask`,
            `position_ids`, `seq_idx` (B, T each) and `cu_seq_lens_q` (documents + 1,), as arrays.
        pad_id: token of the padding, which is cut off the ends of rows without a mask where it has no loss.
    """
    ids_BT = inputs["input_ids"]
    documents_BT = _documents(inputs, ids_BT.shape)
    real_BT = _real_tokens(inputs, pad_id)
    bounds: list[Bounds] = []
    for row, (real_T, documents_T) in enumerate(zip(real_BT, documents_BT, strict=True)):
        tokens = np.flatnonzero(real_T)
        if not len(tokens):
            continue
        begins = tokens[np.r_[True, (np.diff(tokens) > 1) | (np.diff(documents_T[tokens]) != 0)]]
        ends = np.r_[begins[1:], tokens[-1] + 1]
        bounds += [(row, int(first), int(last)) for first, last in zip(begins, ends, strict=True)]
    return Segments((ids_BT.shape[0], ids_BT.shape[1]), bounds)


def _documents(inputs: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """(B, T): a number that changes between documents of a row."""
    mask, positions, sequences = (inputs.get(key) for key in ("attention_mask", "position_ids", "seq_idx"))
    documents = np.zeros(shape, np.int64)
    if sequences is not None:
        documents += sequences.reshape(shape)
    elif inputs.get("cu_seq_lens_q") is not None:
        edges = inputs["cu_seq_lens_q"].reshape(-1)[1:]
        documents += np.searchsorted(edges, np.arange(documents.size), side="right").reshape(shape)
    elif mask is not None and mask.shape == shape and mask.max(initial=0) > 1:
        documents += mask.astype(np.int64)
    elif positions is not None and positions.shape[-1] == shape[1] and positions.ndim == 2:
        restarts = np.diff(np.broadcast_to(positions, shape), axis=1) != 1
        documents[:, 1:] += np.cumsum(restarts, axis=1)
    return documents


def _real_tokens(inputs: Mapping[str, Any], pad_id: int | None) -> np.ndarray:
    """(B, T): False for padding."""
    ids_BT, mask, labels = inputs["input_ids"], inputs.get("attention_mask"), inputs.get("labels")
    if mask is not None and mask.shape == ids_BT.shape:
        return mask != 0
    real = np.ones(ids_BT.shape, bool)
    if pad_id is None or labels is None:
        return real
    is_padding = (ids_BT == pad_id) & (labels == MASKED)
    real &= ~np.logical_and.accumulate(is_padding[:, ::-1], axis=1)[:, ::-1]
    return real & ~np.logical_and.accumulate(is_padding, axis=1)
