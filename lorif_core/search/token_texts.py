"""The text of each token of a sequence, and where it is in a text."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"  # what a part of a character is decoded to, and a character of its own
_MAX_CONTINUATION = 3  # bytes of a character after its first, and so tokens that can complete it


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """The text of each token, so that their concatenation is the whole text, with the special tokens.

    Tokens are decoded in context, since a token decoded alone may lose its leading space. If several tokens form a
    character, the last of them gets its text and the others are empty.
    """
    if tokenizer is None:
        return [f" {token}" for token in ids]
    texts: list[str] = []
    start = done = 0  # tokens from `start` are decoded together; tokens before `done` have their text
    for stop in range(1, len(ids) + 1):
        earlier, text = _decode(ids[start:done], tokenizer), _decode(ids[start:stop], tokenizer)
        is_certain = not text.endswith(_REPLACEMENT)
        further = range(stop + 1, min(stop + _MAX_CONTINUATION, len(ids)) + 1)
        if is_certain or all(_decode(ids[start:end], tokenizer).startswith(text) for end in further):
            texts.append(text[len(earlier) :])
            start, done = done if is_certain else start, stop
        else:
            texts.append("")
    return texts


def _decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def token_spans(
    ids: Sequence[int], text: str, tokenizer: PreTrainedTokenizerBase | None
) -> list[tuple[int, int]] | None:
    """(start, end) of each token in characters of a text that contains the text of all; None if it does not."""
    if tokenizer is None:
        return None
    texts = token_texts(ids, tokenizer)
    first = text.find("".join(texts))
    if first < 0:
        return None
    return list(pairwise(accumulate(map(len, texts), initial=first)))
