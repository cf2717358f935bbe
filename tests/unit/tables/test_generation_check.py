"""Invariant: a generation with unexpected contents is told in a sentence that says where, never half read."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lorif_core.errors import LorifError
from lorif_core.tables.generation import Generation
from lorif_core.tables.generation_check import checked_generation
from lorif_core.tables.store import Store
from tests.unit.tables.small_store import SPEC, commit, generation

OBJECTS = ("coverage_json", "timings_json", "changes_json")
LISTS = ("parts_json", "skipped_json", "quarantined_json")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "index"))
    store.create(SPEC)
    commit(store, 0)
    return store


@pytest.fixture
def row(store: Store) -> dict[str, Any]:
    return asdict(generation(store, 1))


def test_a_generation_that_lorif_wrote_is_read(row: dict[str, Any]) -> None:
    assert checked_generation(row, "./index") == Generation(**row)


@pytest.mark.parametrize("column", [*OBJECTS, *LISTS])
@pytest.mark.parametrize("content", ["", "{", "null", "7", '"text"', "[7]", "[[7, 8]]", '[{"a": 1}]', "OTHER"])
def test_contents_of_another_form_are_told(column: str, content: str, row: dict[str, Any]) -> None:
    row[column] = ("{}" if column in LISTS else "[]") if content == "OTHER" else content
    with pytest.raises(LorifError, match=rf"generation 1 of \./index .* {column}; restore") as told:
        checked_generation(row, "./index")
    assert told.value.exit_code == 1 and "\n" not in str(told.value)


REQUIRED = [
    "spec_json", "checkpoint", "model_path", "curvature", "curvature_kind", "curvature_json", "rows", "tokens"
]  # fmt: skip
CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"no {key}": lambda part, key=key: part.pop(key) for key in REQUIRED},
    **{f"{key} is a list": lambda part, key=key: part.update({key: []}) for key in REQUIRED},
    "an unknown key": lambda part: part.update(colour="red"),
    "a spec of another form": lambda part: part.update(spec_json='{"format": 1}'),
    "a spec that is no JSON": lambda part: part.update(spec_json="spec"),
    "a curvature of another form": lambda part: part.update(curvature_json='{"kind": "woodbury", "size": 7}'),
    "half a range of fragments": lambda part: part.update(fragments=[[1]]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_part_of_another_form_is_told(change: str, row: dict[str, Any]) -> None:
    parts = json.loads(row["parts_json"])
    CHANGES[change](parts[0])
    with pytest.raises(LorifError, match="unexpected contents in parts_json"):
        checked_generation({**row, "parts_json": json.dumps(parts)}, "./index")


def test_an_index_with_such_a_generation_is_not_opened(store: Store) -> None:
    published = generation(store, 1)
    store.publish(Generation(**{**asdict(published), "skipped_json": "oops"}))
    for read in (store.latest, store.generations):
        with pytest.raises(LorifError, match="unexpected contents in skipped_json"):
            read()
