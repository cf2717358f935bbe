"""Converts records to examples: token ids and labels, truncated or cut into blocks.

Labels are aligned with the ids, and the loss shifts them: position t is predicted from the tokens before it, so
position 0 is never scored. A pair is tokenised as the one text that it is.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lorif_core.config import CorpusConfig
from lorif_core.corpus.chat import tokenise_chat
from lorif_core.corpus.chat_template import ChatTemplate, template_of
from lorif_core.corpus.messages import Conversation, conversation_of, prompt_of
from lorif_core.corpus.padding import mask_of, refuse_padding, unpadded
from lorif_core.corpus.records import is_unicode
from lorif_core.corpus.token_boundary import require_offsets, tokenise_pair
from lorif_core.corpus.turns import Turn
from lorif_core.errors import UserError
from lorif_core.spec import MASKED

if TYPE_CHECKING:  # its import takes half a second, and most processes that read rows never tokenise
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One training sequence.

    Attributes:
        example_id: the user's id, else `<file>#<row>`; chunks have `/<k>` appended.
        row: row number in the file.
        input_ids: (T,) int32.
        labels: (T,) int32, -100 where not scored.
        text: the text for display; None if it is not stored.
        content_hash: 32 hex digits that identify ids and labels.
        fault: why the record cannot be indexed; its ids and labels are empty then.
        turns: of a conversation, where each turn stands in the text.
    """

    example_id: str
    row: int
    input_ids: np.ndarray
    labels: np.ndarray
    text: str | None
    content_hash: str
    fault: str | None = None
    turns: tuple[Turn, ...] = ()

    @property
    def scored(self) -> int:
        """Number of tokens that have a loss."""
        return int(np.count_nonzero(self.labels[1:] != MASKED))


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A tokenised record before it is cut.

    Attributes:
        ids: (T,) int32.
        labels: (T,) int32, -100 where not scored.
        prompt: number of leading tokens that are the prompt.
        text: the text for display, if known.
        lead: how many of the prompt's tokens are special tokens in front, such as BOS.
        turns: of a conversation, where each turn stands in the text.
    """

    ids: np.ndarray
    labels: np.ndarray
    prompt: int
    text: str | None
    lead: int = 0
    turns: tuple[Turn, ...] = ()

    def truncated(self, max_length: int) -> "TokenSequence":
        """Cut to `max_length`: first the start of the prompt, except its last token, then the completion's end.

        The special tokens in front stay if more of the prompt stays than these.
        """
        completion = len(self.ids) - self.prompt
        prompt = min(self.prompt, max(1, max_length - completion))
        lead = self.lead if self.lead < prompt else 0
        start = self.prompt - prompt + lead
        retained = np.r_[0:lead, start : min(start + max_length - lead, len(self.ids))]
        return TokenSequence(self.ids[retained], self.labels[retained], prompt, self.text, lead)


def make_examples(
    row: int,
    record: Mapping[str, Any],
    name: str,
    tokenizer: "PreTrainedTokenizerBase | None",
    corpus: CorpusConfig,
    vocab_size: int,
) -> list[Example]:
    """The examples of a record: one example, or with `corpus.chunk` one per block.

    Args:
        row: row number in the file.
        record: the columns of `needed_columns(corpus)`, and of `optional_columns(corpus)` those that there are.
        name: the file's name in the corpus.
        tokenizer: may be None if the corpus has a column of tokens.
        corpus: the columns that make an example, and its maximum length.
        vocab_size: token ids must be smaller.

    Raises:
        UserError: a value has the wrong type, or a token id is out of range; the message names file and row.
    """
    where = f"row {row} of {name}"
    example_id = _example_id(record, corpus, f"{name}#{row}", where)
    if corpus.tokens is not None:
        labels = None if corpus.labels is None else record[corpus.labels]
        mask = mask_of(record, corpus.mask, where)
        sequence = encode_tokens(record[corpus.tokens], labels, tokenizer, vocab_size, where, mask)
    elif corpus.has_chat:
        template = template_of(tokenizer, corpus.chat_template)
        sequence = encode_chat(conversation_of(record, corpus, where), template, tokenizer, vocab_size, where)
    elif corpus.completion is not None:
        sequence = encode_pair(prompt_of(record, corpus), record[corpus.completion], tokenizer, vocab_size, where)
    else:
        sequence = encode_text(record[corpus.text or "text"], tokenizer, vocab_size, where)
    if not corpus.chunk:
        cut = sequence.truncated(corpus.longest)
        text, turns = (sequence.text, sequence.turns) if corpus.store_text else (None, ())
        return [make_example(example_id, row, cut.ids, cut.labels, text, turns)]
    blocks = chunk_bounds(len(sequence.ids), corpus.longest)
    return [
        make_example(
            f"{example_id}/{k}",
            row,
            sequence.ids[start:stop],
            sequence.labels[start:stop],
            _block_text(sequence, start, stop, tokenizer) if corpus.store_text else None,
            sequence.turns if corpus.store_text and len(blocks) == 1 else (),
        )
        for k, (start, stop) in enumerate(blocks)
    ]


def make_example(
    example_id: str,
    row: int,
    ids: np.ndarray,
    labels: np.ndarray,
    text: str | None,
    turns: tuple[Turn, ...] = (),
) -> Example:
    """An example with its content hash; ids and labels (T,) int32."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(ids.astype("<i4").tobytes())
    digest.update(labels.astype("<i4").tobytes())
    return Example(example_id, row, ids, labels, text, digest.hexdigest(), turns=turns)


def encode_text(
    text: Any, tokenizer: "PreTrainedTokenizerBase | None", vocab_size: int, where: str
) -> TokenSequence:
    """All tokens are scored, with the tokenizer's special tokens; an empty text gives no tokens."""
    if text == "":
        return TokenSequence(np.zeros(0, np.int32), np.zeros(0, np.int32), 0, text)
    checked = _tokenizer_for(tokenizer, where)
    _check_text(text, where)
    long_ids = np.asarray(checked(text, verbose=False)["input_ids"], dtype=np.int64)
    _check_range(long_ids, vocab_size, f"the tokenizer's ids for {where}")
    ids = long_ids.astype(np.int32)
    return TokenSequence(ids, ids, 0, text)


def encode_pair(
    prompt: Any, completion: Any, tokenizer: "PreTrainedTokenizerBase | None", vocab_size: int, where: str
) -> TokenSequence:
    """Prompt and completion are tokenised as one text, with the special tokens of this text.

    The tokens of the completion are scored: the first one that ends after the prompt, and all after it. So a
    token that holds characters of both is scored, and so is a special token at the end. A completion without a
    token of its own, such as an empty one, has nothing to score.
    """
    checked = _tokenizer_for(tokenizer, where)
    _check_text(prompt, f"the prompt of {where}")
    _check_text(completion, f"the completion of {where}")
    require_offsets(checked, where)
    long_ids, prompt_tokens, lead = tokenise_pair(prompt, completion, checked)
    _check_range(long_ids, vocab_size, f"the tokenizer's ids for {where}")
    ids = long_ids.astype(np.int32)
    labels = ids.copy()
    labels[:prompt_tokens] = MASKED
    return TokenSequence(ids, labels, prompt_tokens, prompt + completion, min(lead, prompt_tokens))


def encode_chat(
    conversation: Conversation,
    template: ChatTemplate,
    tokenizer: "PreTrainedTokenizerBase | None",
    vocab_size: int,
    where: str,
) -> TokenSequence:
    """A conversation, rendered by its template. What the assistant says after the context is scored.

    The tokens before the first scored one are the prompt. Without a scored turn there are no tokens.
    """
    chat = tokenise_chat(conversation, template, _tokenizer_for(tokenizer, where), where)
    _check_range(chat.ids, vocab_size, f"the tokenizer's ids for {where}")
    ids, prompt = chat.ids.astype(np.int32), chat.prompt
    labels = np.where(chat.is_scored, ids, np.int32(MASKED))
    return TokenSequence(ids, labels, prompt, chat.text, int(prompt > 0 and chat.begins_with_bos), chat.turns)


def encode_tokens(
    tokens: Any,
    labels: Any,
    tokenizer: "PreTrainedTokenizerBase | None",
    vocab_size: int,
    where: str,
    mask: Any = None,
) -> TokenSequence:
    """Given tokens; without labels all are scored. The text is decoded if there is a tokenizer.

    Tokens whose mask is 0 are padding and are cut off at both ends. Without a mask, padded tokens are refused.
    """
    ids = integers(tokens, f"the tokens of {where}")
    _check_range(ids, vocab_size, f"the tokens of {where}")
    targets = ids if labels is None else integers(labels, f"the labels of {where}")
    if len(targets) != len(ids):
        raise UserError(f"{where} has {len(ids)} tokens and {len(targets)} labels; give one label for each token")
    _check_range(targets[targets != MASKED], vocab_size, f"the labels of {where}", f" or {MASKED}")
    if mask is None:
        refuse_padding(ids, targets, tokenizer, where)
    else:
        ids, targets = unpadded(ids, targets, integers(mask, f"the mask of {where}"), where)
    text = None if tokenizer is None else tokenizer.decode(ids.tolist())
    return TokenSequence(ids.astype(np.int32), targets.astype(np.int32), 0, text)


def chunk_bounds(total: int, max_length: int) -> list[tuple[int, int]]:
    """Consecutive blocks [start, stop) that cover `total` tokens, each at most `max_length` long.

    A last block of one token has nothing to predict, so it gets a token of the block before it. With blocks of two
    this would only move the problem, so the single token stays.
    """
    starts = list(range(0, total, max_length)) or [0]
    if total % max_length == 1 and len(starts) > 1 and max_length > 2:
        starts[-1] -= 1
    return list(zip(starts, [*starts[1:], total], strict=True))


def _example_id(record: Mapping[str, Any], corpus: CorpusConfig, default: str, where: str) -> str:
    if corpus.id is None:
        return default
    if record[corpus.id] is None:
        raise UserError(f"{where} has a null id (column {corpus.id!r}); give every row an id")
    return str(record[corpus.id])


def _tokenizer_for(tokenizer: "PreTrainedTokenizerBase | None", where: str) -> "PreTrainedTokenizerBase":
    if tokenizer is None:
        raise UserError(f"the model has no tokenizer for {where}; save one in its folder or provide tokens")
    return tokenizer


def _check_text(text: Any, where: str) -> None:
    if not isinstance(text, str):
        raise UserError(f"{where} must be a string, but is {'null' if text is None else type(text).__name__}")
    if not is_unicode(text):
        raise UserError(f"{where} has half of a surrogate pair, which is not text; correct or remove it")


def integers(values: Any, name: str) -> np.ndarray:
    """(T,) int64 of a list of integers. Raises UserError for anything else, also for booleans."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, list | tuple) or not all(type(value) is int for value in values):
        raise UserError(f"{name} must be a list of integers")
    try:
        return np.asarray(values, dtype=np.int64)
    except OverflowError:
        raise UserError(f"{name} contain an integer of more than 64 bits") from None


def _check_range(ids: np.ndarray, vocab_size: int, name: str, also: str = "") -> None:
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        raise UserError(f"{name} contain {outside[0]}; the model accepts 0 to {vocab_size - 1}{also}")


def _block_text(
    sequence: TokenSequence, start: int, stop: int, tokenizer: "PreTrainedTokenizerBase | None"
) -> str | None:
    if (start, stop) == (0, len(sequence.ids)):
        return sequence.text
    return None if tokenizer is None else tokenizer.decode(sequence.ids[start:stop].tolist())
