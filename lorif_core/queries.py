"""Queries: from a file or from Python, and as an example whose gradient can be taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorif_core import columnar, jsonl
from lorif_core.config import StorageConfig
from lorif_core.errors import UserError
from lorif_core.filesystem import SourceFile, find_files
from lorif_core.records import being_checked, column_kinds, is_jsonl
from lorif_core.tokenise import (
    Example,
    TokenSequence,
    encode_pair,
    encode_text,
    encode_tokens,
    integers,
    make_example,
)

_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_FIELDS = ("id", "text", "prompt", "completion", "tokens", "labels")
_NEEDED = "text, or prompt and completion, or tokens"


@dataclass(frozen=True, slots=True)
class Query:
    """What to attribute: tokens, or a prompt and its completion, or a text; the other fields are None."""

    query_id: str
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    tokens: tuple[int, ...] | None = None
    labels: tuple[int, ...] | None = None


def read_queries(path: str, storage: StorageConfig) -> list[Query]:
    """Queries of a .jsonl(.gz, .zst) or .parquet file with `text`, or `prompt` and `completion`, or `tokens`.

    `tokens` may have `labels`, all may have an `id`; without one the id is the position in the file, from 0.

    Raises:
        UserError: the file is missing, damaged, empty or of another format, a row has none of these columns (the
            ones it has are listed), a value has the wrong type, or an id occurs twice.
    """
    records = _records(path, storage, "queries", _FIELDS)
    queries = [_parse(record, position, f"query {position} of {path}") for position, record in enumerate(records)]
    _check_unique(queries, path)
    return queries


def read_pairs(path: str, storage: StorageConfig) -> list[tuple[Query, Query]]:
    """Queries, each with a source that says the same: rows of a queries file that also have `source`.

    `source` is a text, or an object with the fields of a query.

    Raises:
        UserError: as `read_queries`, or a row has no source.
    """
    pairs = []
    for position, record in enumerate(_records(path, storage, "pairs", (*_FIELDS, "source"))):
        where = f"pair {position} of {path}"
        query, source = _parse(record, position, where), record.get("source")
        if isinstance(source, str):
            pairs.append((query, Query(query.query_id, text=source)))
        elif isinstance(source, Mapping):
            pairs.append((query, _parse(source, position, f"the source of {where}")))
        else:
            raise UserError(f"{where} has no source; give a text, or an object that has {_NEEDED}")
    _check_unique([query for query, _ in pairs], path)
    return pairs


def as_query(value: str | Mapping[str, Any], position: int) -> Query:
    """A query of the Python API: a string is its text, a dict has the fields of a queries file.

    Raises:
        UserError: it is neither, lacks what a query needs, or a value has the wrong type.
    """
    if isinstance(value, str):
        return Query(str(position), text=value)
    if not isinstance(value, Mapping):
        raise UserError(f"query {position} is a {type(value).__name__}; give a string or a dict with {_NEEDED}")
    return _parse(value, position, f"query {position}")


def query_example(
    query: Query, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int, max_length: int
) -> Example:
    """The query's tokens and labels, truncated as training examples are.

    Raises:
        UserError: nothing in it is scored, or a token is out of range; the query is named.
    """
    where = f"query {query.query_id!r}"
    sequence = _encode(query, tokenizer, vocab_size, where)
    short = sequence.truncated(max_length)
    example = make_example(query.query_id, 0, short.ids, short.labels, sequence.text)
    if example.scored == 0:
        raise UserError(
            f"{where} has no token to score ({len(example.input_ids)} tokens in all); at least one token must "
            f"follow another and not be masked"
        )
    return example


def _encode(query: Query, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int, where: str) -> TokenSequence:
    if query.tokens is not None:
        return encode_tokens(query.tokens, query.labels, tokenizer, vocab_size, where)
    if query.prompt is not None and query.completion is not None:
        return encode_pair(query.prompt, query.completion, tokenizer, vocab_size, where)
    return encode_text(query.text, tokenizer, vocab_size, where)


def _check_unique(queries: Sequence[Query], path: str) -> None:
    seen: dict[str, int] = {}
    for position, query in enumerate(queries):
        if query.query_id in seen:
            raise UserError(
                f"the id {query.query_id!r} is that of query {seen[query.query_id]} and of query {position} of "
                f"{path}; make ids unique"
            )
        seen[query.query_id] = position


def _records(path: str, storage: StorageConfig, what: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    """All rows; queries are few. Other columns than the fields are not read where the format allows it."""
    files = find_files(path, storage, _ENDINGS)
    if len(files) > 1:
        raise UserError(f"{path} has {len(files)} {what} files; name one of them")
    records = _rows(files[0], what, fields)
    if not records:
        raise UserError(f"the {what} file {path} is empty; give at least one query")
    return records


def _rows(file: SourceFile, what: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    kinds = column_kinds(file) or {}
    with being_checked(file):
        if is_jsonl(file):
            return [record for _, record in jsonl.read_records(file)]
        known = [field for field in fields if field in kinds]
        if not known:
            raise UserError(
                f"the {what} file {file.uri} has {', '.join(kinds) or 'no columns'}; it needs {_NEEDED}"
            )
        return [record for _, record in columnar.read_records(file, known)]


def _parse(record: Mapping[str, Any], position: int, where: str) -> Query:
    """By precedence tokens, prompt and completion, text; null is the same as absent."""
    given = {field: record[field] for field in _FIELDS if record.get(field) is not None}
    query_id = given.get("id", position)
    if isinstance(query_id, bool) or not isinstance(query_id, str | int):
        raise UserError(f"the id of {where} must be a string or an integer, it is {query_id!r}")
    if "tokens" in given:
        labels = _integers(given["labels"], f"the labels of {where}") if "labels" in given else None
        return Query(str(query_id), tokens=_integers(given["tokens"], f"the tokens of {where}"), labels=labels)
    fields = ["prompt", "completion"] if "prompt" in given and "completion" in given else ["text"]
    if not all(field in given for field in fields):
        listed = ", ".join(str(key) for key, value in record.items() if value is not None) or "nothing"
        raise UserError(f"{where} has {listed}; it needs {_NEEDED}")
    for field in fields:
        if not isinstance(given[field], str):
            raise UserError(f"the {field} of {where} must be a string, it is {given[field]!r}")
    return Query(str(query_id), **{field: given[field] for field in fields})


def _integers(values: Any, what: str) -> tuple[int, ...]:
    return tuple(integers(values, what).tolist())
