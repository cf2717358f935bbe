"""A training example as the index has it, with its neighbours in the file that it comes from."""

from dataclasses import dataclass
from typing import Any

from lorif_core.corpus.turns import spoken_line, turns_from_json
from lorif_core.search.generation_reader import GenerationReader
from lorif_core.tables.checksums import TURNS
from lorif_core.tables.sql import quoted

_ROWS = 2  # before and after
_BEGINNING = 200  # characters


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An example nearby in the same file: its id, its row, and the beginning of its text, if texts are stored.

    Of a conversation it is the beginning of what is said.
    """

    example_id: str
    row: int
    beginning: str | None


@dataclass(frozen=True, slots=True)
class ExampleRecord:
    """An example.

    Attributes:
        columns: all its descriptive columns.
        neighbours: the examples of the two rows before and after it, and others of its own row, in their order.
    """

    columns: dict[str, Any]
    neighbours: tuple[Neighbour, ...]


def example_record(index: GenerationReader, example_id: str) -> ExampleRecord | None:
    """The record of an example; None if the generation does not have it."""
    rows, version = index.store.rows, index.generation.factors_version
    columns = rows.details(version, [example_id]).get(example_id)
    if columns is None:
        return None
    near = f"uri = {quoted(columns['uri'])} AND row BETWEEN {columns['row'] - _ROWS} AND {columns['row'] + _ROWS}"
    batches = rows.metadata(version, ["example_id"], condition=near)
    ids = [name for batch in batches for name in batch.column("example_id").to_pylist() if name != example_id]
    others = sorted(rows.details(version, ids).values(), key=lambda other: (other["row"], other["example_id"]))
    return ExampleRecord(columns, tuple(_neighbour(other) for other in others))


def _neighbour(columns: dict[str, Any]) -> Neighbour:
    text, turns = columns.get("text"), turns_from_json(columns.get(TURNS))
    shown = spoken_line(text, turns) if text is not None and turns else text
    return Neighbour(columns["example_id"], columns["row"], None if shown is None else shown[:_BEGINNING])
