"""What the model itself says after a prompt: its greedy continuation, token by token."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from lorif_core.errors import UserError
from lorif_core.model.limits import max_positions
from lorif_core.model.loading import LoadedModel

EndReason = Literal["end", "length", "time", "stopped"]
_PARTIAL = "\ufffd"  # what a part of a character is decoded to


@dataclass(frozen=True, slots=True)
class Generated:
    """A continuation.

    Attributes:
        text: the text after the prompt, without special tokens.
        tokens: the number of its tokens.
        reason: what ended it: the model (`end`), its `length`, its `time`, or the caller (`stopped`).
    """

    text: str
    tokens: int
    reason: EndReason


def generate(
    loaded: LoadedModel,
    prompt: str,
    max_new_tokens: int,
    seconds: float = float("inf"),
    goes_on: Callable[[str], bool] = lambda _: True,
) -> Generated:
    """The greedy continuation of a prompt: at each place the most likely token, without penalties or sampling.

    Args:
        loaded: the model.
        prompt: the text before, tokenised as training texts are; a special token at its end is left out.
        max_new_tokens: the most tokens to add.
        seconds: the time after which it ends.
        goes_on: called after each token with the text so far; False ends it.

    Raises:
        UserError: the model has no tokenizer, the prompt is empty, or it leaves no room for so many tokens.
    """
    return generate_after(loaded, _prompt_ids(loaded, prompt), max_new_tokens, seconds, goes_on)


def generate_after(
    loaded: LoadedModel,
    ids: list[int],
    max_new_tokens: int,
    seconds: float = float("inf"),
    goes_on: Callable[[str], bool] = lambda _: True,
) -> Generated:
    """As `generate`, after the tokens of a prompt, such as a conversation.

    Raises:
        UserError: the model has no tokenizer, or the prompt leaves no room for so many tokens.
    """
    tokenizer = _tokenizer_of(loaded)
    _check_room(loaded, len(ids), max_new_tokens)
    ends, started = _end_ids(loaded, tokenizer), time.monotonic()
    before, step, new, text = _decode(tokenizer, ids), _Step(loaded, ids), list[int](), ""
    while True:
        token = step.next()
        if token in ends:
            return Generated(text, len(new), "end")
        new.append(token)
        whole = _decode(tokenizer, [*ids, *new])  # a token decoded alone may lose its leading space
        text = whole.removeprefix(before) if whole.startswith(before) else _decode(tokenizer, new)
        text = text.rstrip(_PARTIAL)
        if not goes_on(text):
            return Generated(text, len(new), "stopped")
        if len(new) == max_new_tokens:
            return Generated(text, len(new), "length")
        if time.monotonic() - started > seconds:
            return Generated(text, len(new), "time")


class _Step:
    """Runs the model for one token after the other; with its cache, if it has one that its class shows.

    Args:
        loaded: the model.
        ids: the prompt.
    """

    def __init__(self, loaded: LoadedModel, ids: list[int]) -> None:
        self._loaded, self._ids, self._past = loaded, ids, None
        known = signature(loaded.model.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self._has_cache = "past_key_values" in known

    @torch.no_grad()
    def next(self) -> int:
        """The most likely next token, which is then part of the text."""
        unseen = self._ids if self._past is None else self._ids[-1:]
        ids = torch.tensor([unseen], device=self._loaded.device)
        cache = {"past_key_values": self._past, "use_cache": True} if self._has_cache else {"use_cache": False}
        output = self._loaded.model(input_ids=ids, **cache, **self._options)
        self._past = output.past_key_values if self._has_cache else None
        token = int(output.logits[0, -1, : self._loaded.vocab_size].argmax())
        self._ids = [*self._ids, token]
        return token


def _prompt_ids(loaded: LoadedModel, prompt: str) -> list[int]:
    """The prompt's tokens, without special tokens at its end."""
    encoding = _tokenizer_of(loaded)(prompt, return_special_tokens_mask=True, verbose=False)
    ids: list[int] = encoding["input_ids"]
    added = encoding["special_tokens_mask"]  # not those that the prompt has itself
    while ids and added[len(ids) - 1] and not all(added):
        ids = ids[:-1]
    if not ids:
        raise UserError("the prompt has no tokens; give at least one word")
    return ids


def _tokenizer_of(loaded: LoadedModel) -> PreTrainedTokenizerBase:
    if loaded.tokenizer is None:
        raise UserError("the model has no tokenizer, so it cannot continue a text")
    return loaded.tokenizer


def _check_room(loaded: LoadedModel, tokens: int, more: int) -> None:
    limit = max_positions(loaded.model)
    if limit is not None and tokens + more > limit:
        raise UserError(
            f"the prompt has {tokens:,} tokens, and {more:,} more exceed the {limit:,} that the model takes; "
            f"shorten the prompt or ask for fewer tokens"
        )


def _end_ids(loaded: LoadedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    settings = getattr(loaded.model, "generation_config", None)
    ends = getattr(settings, "eos_token_id", None)
    stated = ends if isinstance(ends, list) else [ends]
    return {end for end in (*stated, tokenizer.eos_token_id) if end is not None}


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
