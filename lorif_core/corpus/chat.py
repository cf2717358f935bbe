"""Turns conversations into tokens: rendered by a chat template, with a loss on what the assistant says.

What the assistant says is what the template marks with `{% generation %}`. Without such marks a turn is the
difference of two renderings: of the messages up to the turn, and of those before it with the opening of the turn.
Both must be prefixes of the rendering of all messages.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lorif_core.corpus.chat_template import ChatTemplate, Spans
from lorif_core.corpus.messages import ASSISTANT, Conversation
from lorif_core.corpus.records import is_unicode
from lorif_core.corpus.token_boundary import require_offsets, tokenise_spans
from lorif_core.corpus.turns import Turn, find_turns
from lorif_core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """The tokens of a conversation.

    Attributes:
        ids: (T,) int64.
        is_scored: (T,) bool.
        text: the rendered text.
        turns: where each turn stands in the text.
        begins_with_bos: whether the first token is the one that begins sequences.
    """

    ids: np.ndarray
    is_scored: np.ndarray
    text: str
    turns: tuple[Turn, ...]
    begins_with_bos: bool

    @property
    def prompt(self) -> int:
        """Number of tokens before the first scored one."""
        return int(np.argmax(self.is_scored)) if self.is_scored.any() else len(self.ids)


def tokenise_chat(
    conversation: Conversation, template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase", where: str
) -> ChatTokens:
    """Render a conversation and tokenise it as the one text that it is; without a scored turn there are no tokens.

    A token is scored if it holds a character of a scored turn. The template writes all special tokens.

    Args:
        conversation: the messages.
        template: the chat template.
        tokenizer: a fast one.
        where: the row or query, for messages of errors.

    Raises:
        UserError: the template refuses the messages, marks nothing, or renders a turn in another way when others
            follow it; or the tokenizer is slow.
    """
    require_offsets(tokenizer, where)
    scored = conversation.scored
    if not scored:
        return ChatTokens(np.zeros(0, np.int64), np.zeros(0, bool), "", (), begins_with_bos=False)
    if template.marks_assistant(conversation.tools):
        text, spans = _marked_spans(conversation, template, where)
    else:
        text, spans = _prefix_spans(conversation, template, where)
    if not is_unicode(text):
        raise UserError(f"{where} has half of a surrogate pair, which is not text; correct or remove it")
    ids, is_scored = tokenise_spans(text, spans, tokenizer)
    known = dict(zip(scored, spans, strict=True)) if len(scored) == len(spans) else {}
    turns = find_turns(text, conversation.messages, known, _special_tokens(tokenizer, len(tokenizer)))
    return ChatTokens(ids, is_scored, text, turns, len(ids) > 0 and ids[0] == tokenizer.bos_token_id)


@lru_cache(maxsize=4)
def _special_tokens(tokenizer: "PreTrainedTokenizerBase", _size: int) -> frozenset[str]:
    """The special tokens, also those that have no role such as BOS."""
    return frozenset(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


def _marked_spans(conversation: Conversation, template: ChatTemplate, where: str) -> tuple[str, Spans]:
    """The text, and what the template marks of it beyond the context."""
    messages, tools = conversation.messages, conversation.tools
    text, spans = template.render_marked(messages, tools, where)
    context = messages[: conversation.context]
    if any(message["role"] == ASSISTANT for message in context):
        spans = spans[len(template.render_marked(context, tools, f"the prompt of {where}")[1]) :]
    if not spans:
        raise UserError(
            f"the chat template has generation tags, but marks nothing of {where}, whose message "
            f"{conversation.scored[0] + 1} is the assistant's; correct the template"
        )
    return text, spans


def _prefix_spans(conversation: Conversation, template: ChatTemplate, where: str) -> tuple[str, Spans]:
    """The text, and for each scored turn where it begins after its opening, and where it ends."""
    messages, tools = conversation.messages, conversation.tools
    text = template.render(messages, tools, where)
    spans: Spans = []
    for turn in conversation.scored:
        opened = template.render(messages[:turn], tools, _first(turn, where), generation_prompt=True)
        closed = text if turn + 1 == len(messages) else template.render(messages[: turn + 1], tools, where)
        if not text.startswith(closed) or not closed.startswith(opened):
            raise _not_prefixes(text, conversation, turn, template, where)
        spans.append((len(opened), len(closed)))
    return text, spans


def _not_prefixes(
    text: str, conversation: Conversation, turn: int, template: ChatTemplate, where: str
) -> UserError:
    """The error for a template whose rendering of the first messages is not how it renders all of them."""
    advice = (
        "so the assistant's part is not certain; set corpus.chat_template to a template with generation tags "
        "around what the assistant says, or to one that writes each turn in one way"
    )
    for count in range(1, turn + 2):
        first = template.render(conversation.messages[:count], conversation.tools, _first(count, where))
        if not text.startswith(first):
            return UserError(
                f"the chat template renders message {count} of {where} in another way when messages follow it, "
                f"{advice}"
            )
    return UserError(
        f"the chat template opens the assistant's turn in another way than it renders message {turn + 1} of "
        f"{where}, {advice}"
    )


def _first(count: int, where: str) -> str:
    return f"the first {count} messages of {where}" if count else f"the opening of {where}, which has no message"
