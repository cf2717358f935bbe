"""Conversations: lists of messages with a role and a text, from a corpus or from a query, in one form."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorif_core.config import CorpusConfig
from lorif_core.errors import UserError

TOOLS_NAME = "tools"
"""The usual name of a column of tools: the functions that the assistant may call, as JSON schemas."""

ASSISTANT = "assistant"
_USER = "user"

Message = dict[str, Any]
"""A message with `role`, mostly `content` (a string), and what else its template may read, such as tool calls."""

_WRITTEN_BY_SHAREGPT = ("from", "value")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, of which the first `context` have no loss, and the tools that the assistant may call."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] | None = None
    context: int = 0

    @property
    def scored(self) -> list[int]:
        """Numbers of the messages that have a loss: those of the assistant after the context."""
        roles = [message["role"] for message in self.messages]
        return [number for number, role in enumerate(roles) if number >= self.context and role == ASSISTANT]


def conversation_of(record: Mapping[str, Any], corpus: CorpusConfig, where: str) -> Conversation:
    """The conversation of a record with the columns of a corpus of chat.

    Raises:
        UserError: its messages or tools are not valid.
    """
    if corpus.messages is not None:
        return parse_conversation(record[corpus.messages], record.get(TOOLS_NAME), where)
    assert corpus.completion is not None
    prompt = _parse_turns(prompt_of(record, corpus), _USER, f"the prompt of {where}")
    completion = _parse_turns(record[corpus.completion], ASSISTANT, f"the completion of {where}")
    return Conversation(prompt + completion, _parse_tools(record.get(TOOLS_NAME), where), len(prompt))


def parse_conversation(messages: Any, tools: Any, where: str) -> Conversation:
    """A conversation from a list of messages and one of tools. Raises UserError if one of them is not valid."""
    return Conversation(_parse_messages(messages, where), _parse_tools(tools, where))


def prompt_of(record: Mapping[str, Any], corpus: CorpusConfig) -> Any:
    """The prompt of a record: the value of its column, or the texts of several that are not empty, joined."""
    values = [record[column] for column in corpus.prompt_columns]
    if len(values) == 1 or not all(value is None or isinstance(value, str) for value in values):
        return values[0] if len(values) == 1 else values
    return "\n\n".join(value for value in values if value)


def _parse_messages(value: Any, where: str) -> tuple[Message, ...]:
    """Messages whose contents are strings; keys with null, which Arrow adds, are left out.

    Args:
        value: a list of messages. The content of one is a string, or a list of parts, whose texts are joined.
        where: the row or query, for messages of errors.

    Raises:
        UserError: the value is no list of objects, a role is missing, or a content is no text.
    """
    items = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(items, list | tuple):
        kind = "null" if items is None else type(items).__name__
        raise UserError(f"{where} must be a list of messages with a role and a content, but is {kind}")
    return tuple(
        _parse_message(item, f"message {number} of {where}") for number, item in enumerate(items, start=1)
    )


def _parse_tools(value: Any, where: str) -> tuple[dict[str, Any], ...] | None:
    """Tools as JSON schemas, from a list or from its JSON text; None if there are none.

    Raises:
        UserError: the value is no list of objects.
    """
    items = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(items, str):
        try:
            items = json.loads(items) if items.strip() else None
        except ValueError:
            items = items or "text"
    if items is None:
        return None
    if not isinstance(items, list | tuple) or not all(isinstance(item, Mapping) for item in items):
        raise UserError(f"the tools of {where} must be a list of JSON schemas, or the JSON text of one")
    return tuple(_without_nulls(item) for item in items) or None


def turns_of(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    """(role, what is said) of each message."""
    return tuple((message["role"], message_text(message)) for message in messages)


def display_text(messages: Sequence[Message]) -> tuple[str, str | None]:
    """Messages as one text, and apart from it the last one if it is the assistant's."""
    turns = turns_of(messages)
    lines = [f"{role}: {said}\n" for role, said in turns]
    if turns and turns[-1][0] == ASSISTANT:
        return "".join(lines[:-1]), turns[-1][1]
    return "".join(lines), None


def message_text(message: Message) -> str:
    """What a page shows of a message: its content, and its tool calls as JSON."""
    calls = message.get("tool_calls") or []
    parts = [message.get("content", ""), *(json.dumps(call, ensure_ascii=False, default=str) for call in calls)]
    return "\n".join(part for part in parts if part)


def _parse_turns(value: Any, role: str, where: str) -> tuple[Message, ...]:
    """Messages of a prompt or completion: a string is one message of that role."""
    return ({"role": role, "content": value},) if isinstance(value, str) else _parse_messages(value, where)


def _parse_message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise UserError(f"{where} must be an object with a role and a content, but is {type(item).__name__}")
    message: Message = _without_nulls(item)
    if not isinstance(message.get("role"), str) or not message["role"]:
        advice = ""
        if all(key in message for key in _WRITTEN_BY_SHAREGPT):
            advice = "; rename from to role (human is user, gpt is assistant), and value to content"
        raise UserError(f"{where} has no role; it has {', '.join(map(str, message)) or 'nothing'}{advice}")
    if not isinstance(message.get("tool_calls", []), list):
        raise UserError(f"the tool_calls of {where} must be a list")
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = "".join(_part_text(part, where) for part in content)
    elif content is None and not message.get("tool_calls"):
        raise UserError(f"{where} has no content; give a text, or tool_calls")
    elif content is not None and not isinstance(content, str):
        raise UserError(f"the content of {where} must be a text, but is {type(content).__name__}")
    return message


def _part_text(part: Any, where: str) -> str:
    """The text of a part of a content, such as {"type": "text", "text": "..."}."""
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text":
        raise UserError(f"{where} has a part of type {kind!r}, but only texts can be indexed; remove that part")
    text = part.get("text")
    if not isinstance(text, str):
        raise UserError(f"{where} has a part of type text without a text")
    return text


def _without_nulls(value: Any) -> Any:
    """Plain dicts and lists without keys of null: in Arrow every object has the keys of all others."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value
