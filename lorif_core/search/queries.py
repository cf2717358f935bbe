"""Queries: read from a file or from Python values, and turned into examples for the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorif_core.config import StorageConfig
from lorif_core.corpus.chat_template import ChatTemplate, template_of
from lorif_core.corpus.messages import Conversation, Message, display_text, parse_conversation, turns_of
from lorif_core.corpus.padding import MASK_NAME
from lorif_core.corpus.records import is_unicode
from lorif_core.corpus.tokenise import (
    Example,
    TokenSequence,
    encode_chat,
    encode_pair,
    encode_text,
    encode_tokens,
    integers,
    make_example,
)
from lorif_core.errors import UserError
from lorif_core.search.query_files import query_records
from lorif_core.search.query_spans import only_span, parse_span

_FIELDS = ("id", "text", "messages", "tools", "prompt", "completion", "span", "tokens", "labels", MASK_NAME)
_COMPOUND = ("group", "contrast")
MINUS = " minus "
"""What stands between the two texts of a contrast where they are shown as one."""
_NEEDED = "text, or prompt and completion, or tokens, or messages"


@dataclass(frozen=True, slots=True)
class Query:
    """What to attribute: tokens, messages, a prompt and its completion, a text, or several of these.

    Unused fields are None. The loss of a `group` is the mean of its members' losses; the loss of a `contrast`
    (A, B) is A's loss minus B's. The same holds for gradients and scores. Members cannot be groups or contrasts.
    Prompt and completion are tokenised as one text. `mask` is 0 for tokens that are padding, which is cut off.
    Messages are rendered by the chat template of the index, and what the assistant says is scored.
    `span` is (start, end) in characters of the completion, or of the text: only tokens that overlap it are scored.
    """

    query_id: str
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    tokens: tuple[int, ...] | None = None
    labels: tuple[int, ...] | None = None
    mask: tuple[int, ...] | None = None
    span: tuple[int, int] | None = None
    group: "tuple[Query, ...] | None" = None
    contrast: "tuple[Query, Query] | None" = None
    messages: tuple[Message, ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None

    @property
    def members(self) -> "list[tuple[float, Query]]":
        """Its single queries, each with its weight in the loss."""
        if self.group is not None:
            return [(1 / len(self.group), member) for member in self.group]
        if self.contrast is not None:
            return list(zip((1.0, -1.0), self.contrast, strict=True))
        return [(1.0, self)]

    @property
    def display_text(self) -> tuple[str, str | None]:
        """What a page shows of it: the text or prompt, and the completion or None."""
        if self.group is not None:
            return f"mean of {len(self.group)}: " + " | ".join(_joined_text(member) for member in self.group), None
        if self.contrast is not None:
            return MINUS.join(_joined_text(side) for side in self.contrast), None
        if self.messages is not None:
            return display_text(self.messages)
        prompt = self.prompt if self.prompt is not None else self.text
        return (prompt if prompt is not None else f"{len(self.tokens or ())} tokens"), self.completion

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """The role and the text of each of its messages; none for other queries."""
        return turns_of(self.messages or ())


QueryInput = str | Mapping[str, Any] | Query
"""A text, a dict with the fields of a queries file, or a `Query`."""


def read_queries(path: str, storage: StorageConfig) -> list[Query]:
    """Queries of a .jsonl(.gz, .zst) or .parquet file: `text`, `prompt` and `completion`, `messages`, or `tokens`.

    `tokens` may come with `labels` and with an `attention_mask`, which marks padding with 0, and `messages` with
    `tools`. Every row may have an `id`; the default is its position in the file, from 0. A text or completion may
    come with a `span`, an object with `start` and `end` in characters, whose tokens alone are scored.
    Instead of these a row may have `group`, a list of queries, or `contrast`, a list of two queries.

    Raises:
        UserError: the file is missing, damaged, empty or of another format, a row has none of these columns (the
            message lists its columns), a value has the wrong type, or an id occurs twice.
    """
    records = query_records(path, storage, "queries", (*_FIELDS, *_COMPOUND), _NEEDED)
    queries = [_parse(record, position, f"query {position} of {path}") for position, record in enumerate(records)]
    _check_unique(queries, path)
    return queries


def read_pairs(path: str, storage: StorageConfig) -> list[tuple[Query, Query]]:
    """Queries, each with a source that states the same fact: rows of a queries file with a `source`.

    `source` is a text or an object with the fields of a query.

    Raises:
        UserError: as in `read_queries`, or a row has no source.
    """
    pairs = []
    for position, record in enumerate(query_records(path, storage, "pairs", (*_FIELDS, "source"), _NEEDED)):
        subject = f"pair {position} of {path}"
        query, source = _parse(record, position, subject), record.get("source")
        if isinstance(source, str):
            pairs.append((query, Query(query.query_id, text=source)))
        elif isinstance(source, Mapping):
            pairs.append((query, _parse(source, position, f"the source of {subject}")))
        else:
            raise UserError(f"{subject} has no source; give a text, or an object that has {_NEEDED}")
    _check_unique([query for query, _ in pairs], path)
    return pairs


def as_query(value: str | Mapping[str, Any], position: int) -> Query:
    """Parse a query of the Python API: a string is its text, a dict has the fields of a queries file.

    Raises:
        UserError: the value is neither, lacks the fields of a query, or a field has the wrong type.
    """
    return _as_query(value, position, f"query {position}")


def parse_queries(queries: QueryInput | Sequence[QueryInput]) -> list[Query]:
    """Parse queries of the Python API; one that is in no list is the only one.

    Raises:
        UserError: there are no queries, or as in `as_query`.
    """
    if isinstance(queries, str | Mapping | Query):
        queries = [queries]
    parsed = [
        query if isinstance(query, Query) else as_query(query, position) for position, query in enumerate(queries)
    ]
    if not parsed:
        raise UserError("there are no queries; give at least one")
    return parsed


def _as_query(value: Any, position: int, subject: str, *, single: bool = False) -> Query:
    if isinstance(value, str):
        return Query(str(position), text=value)
    if not isinstance(value, Mapping):
        raise UserError(f"{subject} is a {type(value).__name__}; give a string or a dict with {_NEEDED}")
    return _parse(value, position, subject, single=single)


def query_example(
    query: Query,
    tokenizer: PreTrainedTokenizerBase | None,
    vocab_size: int,
    max_length: int,
    template: ChatTemplate | None = None,
) -> Example:
    """The query's tokens and labels, truncated as training examples are.

    Messages are rendered by the chat template of the corpus, or by that of the tokenizer if it has none.

    Raises:
        UserError: the query is a group or a contrast, has no scored token, or a token is out of range. The message
            names the query.
    """
    subject = f"query {query.query_id!r}"
    if query.group is not None or query.contrast is not None:
        raise UserError(f"{subject} consists of several queries; here it must be a single query, with {_NEEDED}")
    sequence = _encode(query, tokenizer, vocab_size, template)
    if query.span is not None:
        before, text = query.prompt or "", query.text if query.completion is None else query.completion
        sequence = only_span(sequence, query.span, before, text, tokenizer, subject)
    short = sequence.truncated(max_length)
    example = make_example(query.query_id, 0, short.ids, short.labels, sequence.text, sequence.turns)
    if example.scored == 0:
        raise UserError(
            f"{subject} has no token to score ({len(example.input_ids)} tokens in all); at least one unmasked "
            f"token must follow another token"
        )
    return example


def _encode(
    query: Query, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int, template: ChatTemplate | None
) -> TokenSequence:
    subject = f"query {query.query_id!r}"
    if query.messages is not None:
        conversation = Conversation(query.messages, query.tools)
        return encode_chat(conversation, template or template_of(tokenizer), tokenizer, vocab_size, subject)
    if query.tokens is not None:
        return encode_tokens(query.tokens, query.labels, tokenizer, vocab_size, subject, query.mask)
    if query.prompt is not None and query.completion is not None:
        return encode_pair(query.prompt, query.completion, tokenizer, vocab_size, subject)
    return encode_text(query.text, tokenizer, vocab_size, subject)


def _check_unique(queries: Sequence[Query], path: str) -> None:
    seen: dict[str, int] = {}
    for position, query in enumerate(queries):
        if query.query_id in seen:
            raise UserError(
                f"query {seen[query.query_id]} and query {position} of {path} have the same id "
                f"{query.query_id!r}; make ids unique"
            )
        seen[query.query_id] = position


def _parse(record: Mapping[str, Any], position: int, subject: str, *, single: bool = False) -> Query:
    """Parse by precedence: a group or contrast, tokens, messages, prompt and completion, text; null is absent."""
    given = {field: record[field] for field in (*_FIELDS, *_COMPOUND) if record.get(field) is not None}
    query_id = given.get("id", position)
    if isinstance(query_id, bool) or not isinstance(query_id, str | int):
        raise UserError(f"the id of {subject} must be a string or an integer, it is {query_id!r}")
    if not is_unicode(str(query_id)):
        raise UserError(f"the id of {subject} is not valid Unicode: {query_id!r}")
    compound = next((field for field in _COMPOUND if field in given), None)
    if compound is not None:
        return _parse_compound(given, compound, str(query_id), subject, single)
    if "span" in given and "tokens" in given:
        raise UserError(f"{subject} has a span, but no text or completion; mark the scored tokens by labels")
    if "tokens" in given:
        tokens, labels, mask = (
            _integers(given[field], f"the {field} of {subject}") if field in given else None
            for field in ("tokens", "labels", MASK_NAME)
        )
        return Query(str(query_id), tokens=tokens, labels=labels, mask=mask)
    if "messages" in given:
        return _parse_chat(given, str(query_id), subject)
    fields = ["prompt", "completion"] if "prompt" in given and "completion" in given else ["text"]
    if not all(field in given for field in fields):
        listed = ", ".join(str(key) for key, value in record.items() if value is not None) or "nothing"
        raise UserError(f"{subject} has {listed}; it needs {_NEEDED}")
    for field in fields:
        if not isinstance(given[field], str):
            raise UserError(f"the {field} of {subject} must be a string, it is {given[field]!r}")
    span = parse_span(given["span"], subject) if "span" in given else None
    return Query(str(query_id), span=span, **{field: given[field] for field in fields})


def _parse_chat(given: Mapping[str, Any], query_id: str, subject: str) -> Query:
    if "span" in given:
        raise UserError(f"{subject} has messages and a span; leave out the span")
    chat = parse_conversation(given["messages"], given.get("tools"), f"the messages of {subject}")
    if not chat.scored:
        raise UserError(f"the messages of {subject} have no turn of the assistant, which is what is attributed")
    return Query(query_id, messages=chat.messages, tools=chat.tools)


def _parse_compound(given: Mapping[str, Any], field: str, query_id: str, subject: str, single: bool) -> Query:
    """Parse a group or a contrast; members are strings or objects with the fields of a single query."""
    others = [name for name in given if name not in ("id", field)]
    if others:
        raise UserError(f"{subject} has {field} and {', '.join(others)}; give one of them")
    if single:
        raise UserError(
            f"{subject} is a {field} within a query of several queries; its members must be single queries"
        )
    values = given[field]
    if not isinstance(values, list | tuple) or not values:
        raise UserError(f"the {field} of {subject} must be a list of queries, it is {values!r}")
    if field == "contrast" and len(values) != 2:
        raise UserError(
            f"the contrast of {subject} has {len(values)} queries; give two, the first minus the second"
        )
    members = [
        _as_query(value, number, f"member {number} of the {field} of {subject}", single=True)
        for number, value in enumerate(values)
    ]
    named = [replace(member, query_id=f"{query_id}/{number}") for number, member in enumerate(members)]
    if field == "contrast":
        return Query(query_id, contrast=(named[0], named[1]))
    return Query(query_id, group=tuple(named))


def _joined_text(query: Query) -> str:
    return "".join(part for part in query.display_text if part is not None)


def _integers(values: Any, subject: str) -> tuple[int, ...]:
    return tuple(integers(values, subject).tolist())
