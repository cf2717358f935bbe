"""The columns of a corpus that are read, and what they must contain."""

import difflib

from lorif_core.config import CorpusConfig
from lorif_core.corpus.messages import TOOLS_NAME
from lorif_core.corpus.padding import MASK_NAME
from lorif_core.corpus.token_bytes import COLUMN
from lorif_core.errors import UserError
from lorif_core.storage.filesystem import SourceFile

_MESSAGES, _EMPTY = "messages", "empty lists"
_ALLOWED_KINDS = {
    "text": ("text",),
    "tokens": ("integers", _EMPTY),
    "id": ("text", "integer"),
    "messages": (_MESSAGES, _EMPTY),
    "turns": ("text", _MESSAGES, _EMPTY),
}
_EXPECTED = {
    "text": "strings",
    "tokens": "lists of integers",
    "id": "strings or integers",
    "messages": "lists of messages with role and content",
    "turns": "strings or lists of messages",
}


def needed_columns(corpus: CorpusConfig) -> list[str]:
    """Columns to read: tokens and labels, else messages, else prompt and completion, else text; and the id."""
    return list(dict.fromkeys(column for column, _ in columns_with_roles(corpus)))


def optional_columns(corpus: CorpusConfig) -> list[str]:
    """Columns to read where a file has them: the tools of conversations, and masks that are not configured.

    Those masks must not mask anything.
    """
    if corpus.has_chat:
        return [TOOLS_NAME]
    return [MASK_NAME] if corpus.tokens is not None and corpus.mask is None else []


def columns_with_roles(corpus: CorpusConfig) -> list[tuple[str, str]]:
    """Each column to read, and its role: text, tokens, messages, turns (of a prompt or completion) or id."""
    if corpus.tokens is not None:
        roles = [(corpus.tokens, "tokens"), (corpus.labels, "tokens"), (corpus.mask, "tokens")]
    elif corpus.messages is not None:
        roles = [(corpus.messages, "messages")]
    elif corpus.prompt is not None:
        role = "turns" if corpus.has_chat else "text"
        of_prompt = role if len(corpus.prompt_columns) == 1 else "text"
        roles = [*((column, of_prompt) for column in corpus.prompt_columns), (corpus.completion, role)]
    else:
        roles = [(corpus.text, "text")]
    return [(column, role) for column, role in [*roles, (corpus.id, "id")] if column is not None]


def check_columns(file: SourceFile, kinds: dict[str, str], corpus: CorpusConfig) -> None:
    """Raise UserError for a column that a file lacks, or that has the wrong kind of values."""
    for column, role in columns_with_roles(corpus):
        if column not in kinds:
            nearest = difflib.get_close_matches(column, kinds, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            if kinds == {COLUMN: "integers"}:
                hint = f"; set corpus.tokens to {COLUMN}, and no other column"
            raise UserError(f"{file.uri} has no column {column!r}; it has {', '.join(kinds) or 'none'}{hint}")
        if kinds[column] not in _ALLOWED_KINDS[role]:
            raise UserError(
                f"the column {column!r} of {file.uri} must contain {_EXPECTED[role]}, but contains "
                f"{kinds[column]}{_advice(column, role, kinds[column], corpus)}"
            )


def _advice(column: str, role: str, kind: str, corpus: CorpusConfig) -> str:
    """How to read messages in a column that is configured as one of texts."""
    if (role, kind) != ("text", _MESSAGES):
        return ""
    if corpus.prompt is None:
        return f"; set corpus.messages to {column}"
    return "; set corpus.chat_template to model, or to a template of your own"
