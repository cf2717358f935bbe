"""The span of a query: a part of its text, in characters, whose tokens alone are scored."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lorif_core.corpus.token_boundary import require_offsets, tokens_in_span
from lorif_core.corpus.tokenise import TokenSequence
from lorif_core.errors import UserError
from lorif_core.spec import MASKED


def parse_span(value: Any, subject: str) -> tuple[int, int]:
    """(start, end) of an object with these two integers. Raises UserError, with the subject, if it is another."""
    start, end = (value.get(name) for name in ("start", "end")) if isinstance(value, Mapping) else (None, None)
    if type(start) is not int or type(end) is not int:
        raise UserError(
            f"the span of {subject} must be an object with the integers start and end, but it is {value!r}"
        )
    return start, end


def only_span(
    sequence: TokenSequence,
    span: tuple[int, int],
    before: str,
    text: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    subject: str,
) -> TokenSequence:
    """The sequence with labels only at tokens that overlap a span.

    Args:
        sequence: the tokens of `before` and `text`.
        span: (start, end) in characters of `text`.
        before: the prompt.
        text: the text or completion; None if the query has neither.
        tokenizer: of the model.
        subject: the query in messages.

    Raises:
        UserError: the query has no text, the span is not within it, or the tokenizer is not a fast one.
    """
    if text is None or tokenizer is None:
        raise UserError(f"{subject} has a span and no text; mark the scored tokens by labels")
    start, end = span
    if not 0 <= start < end <= len(text):
        raise UserError(
            f"the span of {subject} is {start} to {end}, but it must be a part of its {len(text)} characters"
        )
    require_offsets(tokenizer, subject)
    inside = tokens_in_span(before + text, len(before) + start, len(before) + end, tokenizer)
    return replace(sequence, labels=np.where(inside, sequence.labels, MASKED).astype(np.int32))
