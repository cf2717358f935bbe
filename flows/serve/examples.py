"""The JSON form of a training example as the index has it."""

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from flows.serve.answer_schema import Turn
from flows.serve.answering import error_for_client
from flows.serve.errors import ApiError
from flows.serve.live_index import OpenGeneration
from lorif_core.corpus.turns import turns_from_json
from lorif_core.errors import LorifError
from lorif_core.search.example_record import example_record
from lorif_core.tables.checksums import TURNS

_FIELDS = ("example_id", "text", "uri", "row", "tokens", "loss", "checkpoint")
_HIDDEN = ("shard", "content_hash", "spec", TURNS)


class Neighbour(BaseModel):
    """An example nearby in the same file."""

    example_id: str = Field(description="Its id.")
    row: int = Field(description="The number of its record in the file, from 0.")
    beginning: str | None = Field(description="The beginning of its text; null if the index stores no texts.")


class ExampleRecord(BaseModel):
    """A training example with all its columns."""

    generation: int = Field(description="The number of the generation that answered.")
    example_id: str = Field(description="The id of the example.")
    text: str | None = Field(description="Its text; null if the index stores no texts.")
    turns: list[Turn] | None = Field(description="The turns in the text; null unless it is a conversation.")
    uri: str = Field(description="The corpus file that it comes from.")
    row: int = Field(description="The number of its record in that file, from 0.")
    tokens: int = Field(description="The number of its tokens in the index.")
    loss: float = Field(description="Its loss when it was indexed, summed over its scored tokens, in nats.")
    checkpoint: str = Field(description="The fingerprint of the checkpoint that its gradient was computed at.")
    columns: dict[str, Any] = Field(
        description="Columns that were added to the index, by name; values that JSON does not have are texts."
    )
    neighbours: list[Neighbour] = Field(
        description="The examples of the two rows before and after it in the file, and others of its own row."
    )


def read_example(opened: OpenGeneration, example_id: str) -> ExampleRecord:
    """The record of an example. Raises ApiError if the generation does not have it."""
    generation = opened.index.generation.generation
    try:
        record = example_record(opened.index, example_id)
    except LorifError as error:
        raise error_for_client(error, opened) from None
    if record is None:
        raise ApiError(404, "no_such_example", f"generation {generation} has no example with this id")
    columns = {name: value for name, value in record.columns.items() if name not in (*_FIELDS, *_HIDDEN)}
    fields: dict[str, Any] = {name: record.columns.get(name) for name in _FIELDS}
    return ExampleRecord(
        generation=generation,
        **fields,
        turns=[Turn(**asdict(turn)) for turn in turns_from_json(record.columns.get(TURNS))] or None,
        columns={name: _plain(value) for name, value in columns.items()},
        neighbours=[
            Neighbour(example_id=other.example_id, row=other.row, beginning=other.beginning)
            for other in record.neighbours
        ],
    )


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
