"""Checks the contents of a stored generation, some of whose columns are JSON."""

from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import TypeAdapter

from lorif_core.errors import LorifError
from lorif_core.tables.generation import Generation, Part, parts_from_json

_PAIRS: TypeAdapter[Any] = TypeAdapter(list[tuple[str, str]])
_OBJECT: TypeAdapter[Any] = TypeAdapter(dict[str, Any])
_COLUMNS: dict[str, TypeAdapter[Any]] = {
    "parts_json": TypeAdapter(Annotated[list[Part], MinLen(1)]),
    "coverage_json": _OBJECT,
    "skipped_json": _PAIRS,
    "timings_json": TypeAdapter(dict[str, float]),
    "quarantined_json": _PAIRS,
    "changes_json": _OBJECT,
}


def checked_generation(row: dict[str, Any], uri: str) -> Generation:
    """The generation of a row of the table `generations` of an index.

    Raises:
        LorifError: a column has unexpected contents.
    """
    for column, contents in _COLUMNS.items():
        try:
            contents.validate_json(row[column], strict=True)
            if column == "parts_json":
                for part in parts_from_json(row[column]):
                    _ = part.index_spec, part.curvature_spec
        except (ValueError, TypeError, KeyError, AttributeError):
            raise LorifError(
                f"generation {row['generation']} of {uri} has unexpected contents in {column}; restore the folder "
                f"generations.lance from a copy, or build a new index elsewhere"
            ) from None
    return Generation(**row)
