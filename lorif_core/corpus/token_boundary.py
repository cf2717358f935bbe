"""Finds where the completion begins among the tokens of prompt + completion, and the assistant's parts of a chat.

A token that holds characters of both belongs to the completion. So does a character that the tokenizer composes of
both, such as an accent that the completion begins with.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lorif_core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WINDOW = 32  # characters on each side that decide whether Unicode joins two characters
_TRAILING_SPACES = re.compile(r"[\sĠ]*\Z")  # byte-level tokenizers write a space as Ġ


def require_offsets(tokenizer: "PreTrainedTokenizerBase", subject: str) -> None:
    """Raise UserError unless the tokenizer tells which characters each token stands for; only fast ones do."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{subject} cannot be split into prompt and completion: the tokenizer {type(tokenizer).__name__} does "
            f"not tell which characters its tokens stand for; save its fast version (tokenizer.json) beside the "
            f"model, or give tokens and labels"
        )


def tokenise_pair(
    prompt: str, completion: str, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[np.ndarray, int, int]:
    """Tokenise prompt + completion as one text, with the special tokens that the tokenizer gives this text.

    Special tokens in front belong to the prompt, those at the end to the completion. A completion without a token
    of its own has none at all: then also the special tokens at the end belong to the prompt.

    Args:
        prompt: the part that is not scored.
        completion: the part that is scored.
        tokenizer: a fast one, see `require_offsets`.

    Returns:
        (T,) int64 ids, the number of leading tokens that belong to the prompt, and how many of these are special
        tokens in front of the text.
    """
    text = prompt + completion
    encoding = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    ids = np.asarray(encoding["input_ids"], dtype=np.int64)
    ends = np.array([end for _, end in encoding["offset_mapping"]], dtype=np.int64)
    is_text = np.asarray(encoding["special_tokens_mask"], dtype=np.int64) == 0
    lead = int(np.argmax(is_text)) if is_text.any() else len(ids)
    if _trims_offsets(tokenizer):
        ends = _whole_ends(ends, encoding.tokens(), lead)
    boundary = _start_of_completion(text, len(prompt), tokenizer)
    completed = np.flatnonzero(is_text & (ends > boundary))
    return ids, int(completed[0]) if len(completed) else len(ids), lead


def tokenise_spans(
    text: str, spans: Sequence[tuple[int, int]], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[np.ndarray, np.ndarray]:
    """Tokenise a text that has its special tokens already, and tell which tokens belong to some of its parts.

    The edge of a part is between two tokens if the text before it is tokenised as in the whole text. Otherwise a
    token holds characters of both sides; it belongs to the part.

    Args:
        text: the whole text.
        spans: (start, end) of the parts, in characters.
        tokenizer: a fast one, see `require_offsets`.

    Returns:
        (T,) int64 ids, and (T,) bool whether each belongs to a part.
    """
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(encoding["input_ids"], dtype=np.int64)
    starts, ends = np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
    if _trims_offsets(tokenizer):
        ends = _whole_ends(ends, encoding.tokens(), 0)
        starts = np.minimum(starts, np.r_[0, ends[:-1]][: len(starts)])
    added = np.flatnonzero(np.isin(ids, _added_ids(tokenizer, len(tokenizer))))

    def first_behind(edge: int, holding: np.ndarray) -> int:
        """The first token behind an edge; `holding` are the tokens with characters behind it."""
        behind = int(holding[0]) if len(holding) else len(ids)
        # tokens before an added token do not depend on what follows it
        begin = int(added[added < behind].max(initial=0))
        before = tokenizer(text[starts[begin] : edge], add_special_tokens=False, verbose=False)["input_ids"]
        exact = begin + len(before)
        return exact if ids[begin:exact].tolist() == before else behind

    belongs = np.zeros(len(ids), bool)
    for start, end in spans if len(ids) else ():
        boundary = _start_of_completion(text, start, tokenizer)
        first = first_behind(start, np.flatnonzero(ends > boundary))
        belongs[first : first_behind(end, np.flatnonzero(starts >= end))] = True
    return ids, belongs


@lru_cache(maxsize=4)
def _added_ids(tokenizer: "PreTrainedTokenizerBase", _size: int) -> np.ndarray:
    """The ids of added tokens; some tokenizers have thousands, and take milliseconds to list them."""
    return np.array(list(tokenizer.added_tokens_decoder), dtype=np.int64)


def tokens_in_span(text: str, start: int, end: int, tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
    """(T,) whether each token of a text has a character of the span [start, end).

    Args:
        text: the text, tokenised with its special tokens.
        start: first character.
        end: the character after the last.
        tokenizer: a fast one, see `require_offsets`.
    """
    encoding = tokenizer(text, return_offsets_mapping=True, verbose=False)
    return np.array([start < stop and first < end for first, stop in encoding["offset_mapping"]], dtype=bool)


def _start_of_completion(text: str, boundary: int, tokenizer: Any) -> int:
    """`boundary`, or the start of the character around it that the tokenizer's normaliser changes.

    The offsets of a composed character are those of its first part, so they don't tell that it holds the others.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    start = boundary
    while normalizer is not None and 0 < start < len(text) and not _is_separable(text, start):
        start -= 1
    if start == boundary:
        return boundary
    character = text[start : boundary + 1]
    return boundary if character in normalizer.normalize_str(character) else start


def _is_separable(text: str, position: int) -> bool:
    """Whether no form of Unicode joins or reorders characters across the position."""
    before, after = text[max(position - _WINDOW, 0) : position], text[position : position + _WINDOW]
    apart = unicodedata.normalize("NFKC", before) + unicodedata.normalize("NFKC", after)
    return unicodedata.normalize("NFKC", before + after) == apart


def _trims_offsets(tokenizer: Any) -> bool:
    """Whether the offsets leave out the spaces at both ends of a token, as those of RoBERTa do."""
    processor = tokenizer.backend_tokenizer.post_processor
    return processor is not None and b'"trim_offsets":true' in processor.__getstate__()


def _whole_ends(ends: np.ndarray, tokens: list[str], first: int) -> np.ndarray:
    """Ends of the tokens with their trailing spaces, from offsets without them; `first` is the text's first token.

    A token of spaces only is trimmed at its left, to its end. The first one loses one space less at the left,
    since the tokenizer may have added it, and then the others at the right.
    """
    whole = ends.copy()
    for position in range(first, len(tokens)):
        spaces = len(_TRAILING_SPACES.search(tokens[position])[0])  # type: ignore[index]  # it matches everything
        if spaces < len(tokens[position]):
            whole[position] += spaces
        elif position == first:
            whole[position] = max(spaces, whole[position])
    return whole
