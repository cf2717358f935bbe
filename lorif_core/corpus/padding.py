"""Cuts padding off given tokens by their mask, and refuses tokens that are padded without one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lorif_core.errors import UserError
from lorif_core.spec import MASKED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASK_NAME = "attention_mask"
"""The usual name of a column of masks; if it is not configured, it must not mask anything."""


def unpadded(ids: np.ndarray, targets: np.ndarray, mask: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The ids and targets whose mask is 1; padding may be on both sides.

    Args:
        ids: (T,) token ids.
        targets: (T,) labels.
        mask: (T,) 1 for tokens, 0 for padding.
        where: the row, for messages.

    Raises:
        UserError: the mask has another length or other values, or a 0 between two 1.
    """
    if len(mask) != len(ids):
        raise UserError(f"{where} has {len(ids)} tokens and a mask of {len(mask)}; give one value for each token")
    if not np.isin(mask, (0, 1)).all():
        raise UserError(f"the mask of {where} must contain only 0 and 1")
    real = np.flatnonzero(mask)
    first, stop = (int(real[0]), int(real[-1]) + 1) if len(real) else (0, 0)
    if len(real) != stop - first:
        raise UserError(
            f"the mask of {where} masks a token between others, which a model that was trained on it did not see; "
            f"give each sequence a row of its own"
        )
    return ids[first:stop], targets[first:stop]


def mask_of(record: Mapping[str, Any], column: str | None, where: str) -> Any:
    """The mask of a row's tokens, or None; `column` is `corpus.mask`.

    Raises:
        UserError: the configured column is null; or none is configured, but the row has the usual one, and that
            masks something.
    """
    if column is not None:
        if record[column] is None:
            raise UserError(f"the mask of {where} is null (column {column!r}); give every row a list of 0 and 1")
        return record[column]
    usual = record.get(MASK_NAME)
    if isinstance(usual, list) and 0 in usual:
        raise UserError(
            f"{where} is padded, as its column {MASK_NAME} says; set corpus.mask to {MASK_NAME}, so that the "
            f"padding is cut off"
        )
    return usual if isinstance(usual, list) and usual else None


def refuse_padding(
    ids: np.ndarray, targets: np.ndarray, tokenizer: "PreTrainedTokenizerBase | None", where: str
) -> None:
    """Raise UserError for tokens that begin with padding, or that end with padding that is scored.

    Padding shifts the positions of what follows, and later tokens attend to it. At the end it does no harm unless
    it is scored. Two or more of the tokenizer's padding tokens are padding; a single one may separate documents.
    """
    padding = None if tokenizer is None else _padding_id(tokenizer)
    if padding is None:
        return
    if len(ids) >= 2 and (ids[:2] == padding).all():
        raise _padded(where, "begins", padding)
    if len(ids) >= 2 and (ids[-2:] == padding).all() and (targets[-2:] != MASKED).all():
        raise _padded(where, "ends", padding)


def _padding_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The id of the padding token; without one, most scripts pad with the end of sequence."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _padded(where: str, verb: str, padding: int) -> UserError:
    return UserError(
        f"{where} {verb} with several tokens {padding}, which is padding; give it without padding, or with a mask "
        f"that is 1 for each token and 0 for padding (corpus.mask; of a query: attention_mask)"
    )
