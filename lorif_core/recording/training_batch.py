"""The examples of a batch in training, on the host, and their identity.

Shapes: B rows, T tokens, S examples.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorif_core.errors import UserError
from lorif_core.recording.loss_scale import LARGEST_RESIDUAL
from lorif_core.recording.segments import Segments, find_segments

_ON_HOST = ("input_ids", "labels", "attention_mask", "position_ids", "seq_idx", "cu_seq_lens_q")
KEY_BYTES = 16


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch:
    """A batch.

    Attributes:
        input_ids: (B, T).
        labels: (B, T), -100 where a token has no loss; None if the forward pass does not get them.
        segments: the examples.
        ids: (S,) ids of the examples; None if the batch has none.
        step: the optimiser step that its gradients belong to, from 1.
        is_first: whether it is the first batch that is recorded.
    """

    input_ids: np.ndarray
    labels: np.ndarray | None
    segments: Segments
    ids: Sequence[str] | None
    step: int
    is_first: bool
    largest_residual: float = LARGEST_RESIDUAL

    def examples(self, labels_BT: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token ids and labels of each example, int32."""
        bounds = self.segments.bounds
        ids, labels = self.input_ids.astype(np.int32), labels_BT.astype(np.int32)
        return [(ids[row, start:stop], labels[row, start:stop]) for row, start, stop in bounds]


def training_batch(
    inputs: Mapping[str, Any], ids: Any, pad_id: int | None, step: int, is_first: bool
) -> TrainingBatch:
    """The batch of a forward pass.

    Args:
        inputs: its arguments.
        ids: the ids of its examples, a list or a tensor; None if they have none.
        pad_id: token of the padding, for batches without a mask.
        step: the optimiser step that its gradients belong to.
        is_first: whether it is the first one that is recorded.

    Raises:
        UserError: the forward pass has no token ids, or another number of ids than of examples.
    """
    if not isinstance(inputs.get("input_ids"), torch.Tensor):
        raise UserError("the model is not called with input_ids, which a recorded row is known by; pass token ids")
    if inputs.get("shift_labels") is not None:
        raise UserError("the model is called with shift_labels, which splits sequences; record without it")
    tensors = {key: inputs[key] for key in _ON_HOST if isinstance(inputs.get(key), torch.Tensor)}
    arrays = {key: tensor.detach().cpu().numpy() for key, tensor in tensors.items()}
    segments = find_segments(arrays, pad_id)
    named = None if ids is None else [str(value) for value in (ids.tolist() if hasattr(ids, "tolist") else ids)]
    if named is not None and len(named) != len(segments.bounds):
        raise UserError(
            f"a batch has {len(named)} ids for {len(segments.bounds)} examples; give one id for each example, in "
            f"the order of rows and documents"
        )
    return TrainingBatch(arrays["input_ids"], arrays.get("labels"), segments, named, step, is_first)


def content_key(ids: np.ndarray, labels: np.ndarray) -> bytes:
    """16 bytes that identify tokens and targets, (T,) each; the first target is never predicted."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    digest.update(ids.astype("<i4").tobytes())
    digest.update(labels[1:].astype("<i4").tobytes())
    return digest.digest()
