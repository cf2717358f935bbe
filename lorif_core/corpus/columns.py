"""The columns of a corpus that are read, and what they must contain."""

import difflib

from lorif_core.config import CorpusConfig
from lorif_core.corpus.padding import MASK_NAME
from lorif_core.corpus.token_bytes import COLUMN
from lorif_core.errors import UserError
from lorif_core.storage.filesystem import SourceFile

_ALLOWED_KINDS = {"text": ("text",), "tokens": ("integers",), "id": ("text", "integer")}
_EXPECTED = {"text": "strings", "tokens": "lists of integers", "id": "strings or integers"}


def needed_columns(corpus: CorpusConfig) -> list[str]:
    """Columns to read: tokens and labels, else prompt and completion, else text; in each case also the id."""
    return list(dict.fromkeys(column for column, _ in columns_with_roles(corpus)))


def optional_columns(corpus: CorpusConfig) -> list[str]:
    """Columns to read where a file has them: masks that are not configured, since they must not mask anything."""
    return [MASK_NAME] if corpus.tokens is not None and corpus.mask is None else []


def columns_with_roles(corpus: CorpusConfig) -> list[tuple[str, str]]:
    """Each column to read, and its role: text, tokens or id."""
    if corpus.tokens is not None:
        roles = [(corpus.tokens, "tokens"), (corpus.labels, "tokens"), (corpus.mask, "tokens")]
    elif corpus.prompt is not None:
        roles = [(corpus.prompt, "text"), (corpus.completion, "text")]
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
                f"the column {column!r} of {file.uri} must contain {_EXPECTED[role]}, but contains {kinds[column]}"
            )
