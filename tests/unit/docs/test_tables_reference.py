"""The reference of the tables has every column of every schema, described."""

import pyarrow as pa

from docs_generators.tables_reference import COLUMN_DESCRIPTIONS, all_columns, tables_page
from lorif_core.tables import schema


def test_the_descriptions_are_those_of_the_columns_that_there_are() -> None:
    columns = {name: {column.name for column in found} for name, found in all_columns().items()}
    assert {name: set(described) for name, described in COLUMN_DESCRIPTIONS.items()} == columns
    assert all(text.endswith(".") for described in COLUMN_DESCRIPTIONS.values() for text in described.values())


def test_no_schema_of_the_index_is_left_out() -> None:
    stored = {
        name.removesuffix("_SCHEMA").lower()
        for name, value in vars(schema).items()
        if isinstance(value, pa.Schema)
    }
    assert stored | {"factors"} == set(COLUMN_DESCRIPTIONS) - {"scores.parquet", "selection"}


def test_the_page_shows_all_types_of_a_column() -> None:
    page = tables_page()
    (codes,) = (line for line in page.splitlines() if 'id="factors.codes"' in line)
    assert all(kind in codes for kind in ("float32", "float16", "int8", "uint8"))
    assert "halffloat" not in page
