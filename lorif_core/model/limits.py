"""What a model accepts: the longest sequence, and the token ids. Both are read without weights."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lorif_core.errors import UserError
from lorif_core.model.weights import named

_LENGTH_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "max_target_positions",
    "max_context_length",
    "context_length",
    "model_max_length",
    "n_ctx",
    "seq_length",
)
"""Names that configs have for the longest sequence, the most exact one first."""

_UNLIMITED = 10**9
_POSITION_TABLE = re.compile(r"(^|\.)(wpe|position_embeddings|embed_positions|positions_embed)$")
_OTHER_INPUT = re.compile(r"vision|image|img|audio|video")


def max_positions(model: Any) -> int | None:
    """Longest sequence that a model takes, by its config and its tables of positions; None if it has no limit."""
    stated = _stated_limit(model.config)
    return min([*_table_limits(model), *([] if stated is None else [stated])], default=None)


def embedding_rows(model: Any) -> int:
    """Number of rows of the input embedding; token ids must be smaller.

    Raises:
        UserError: the model's class does not name its embedding.
    """
    try:
        return len(model.get_input_embeddings().weight)
    except (AttributeError, NotImplementedError):
        raise UserError(
            f"the class {type(model).__name__} of the model has no get_input_embeddings() with a weight, so its "
            f"token ids have no known limit; use another model"
        ) from None


def check_tokenizer(tokenizer: PreTrainedTokenizerBase | None, rows: int, path: str) -> None:
    """Reject a tokenizer that gives ordinary texts ids that the model cannot embed.

    A special token beyond the embedding, such as padding, is accepted: it does not occur in ordinary texts.

    Args:
        tokenizer: None is accepted.
        rows: rows of the embedding.
        path: `model.path`, for messages.

    Raises:
        UserError: the message names the tokens, their ids and the limit.
    """
    if tokenizer is None:
        return
    outside = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows}
    if not outside:
        return
    special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    special -= set(tokenizer("")["input_ids"])  # those of every text
    unusable = [i for i in outside if i not in special]
    if unusable:
        tokens = named([f"{outside[i]!r} is {i}" for i in unusable])
        raise UserError(
            f"the tokenizer of {path} does not belong to the model, which accepts ids from 0 to {rows - 1}: "
            f"{tokens}; save the tokenizer that the model was trained with beside it"
        )


def _stated_limit(config: Any) -> int | None:
    for part in (_text_config(config), config):
        for name in _LENGTH_NAMES:
            value = getattr(part, name, None)
            if isinstance(value, int | float) and value > 0:  # -1 and 0 mean none
                return int(value) if value < _UNLIMITED else None
    return None


def _text_config(config: Any) -> Any:
    try:
        return config.get_text_config(decoder=True)
    except ValueError:  # it has several
        return config


def _table_limits(model: torch.nn.Module) -> Iterator[int]:
    """Lengths that tables of learned or fixed positions allow; some begin with rows that no position uses."""
    for name, module in model.named_modules():
        if (
            not isinstance(module, torch.nn.Embedding)
            or not _POSITION_TABLE.search(name)
            or _OTHER_INPUT.search(name)
        ):
            continue
        unused = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
        yield module.num_embeddings - int(unused)
