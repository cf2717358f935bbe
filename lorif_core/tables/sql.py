"""SQL that Lance's filters take."""

from collections.abc import Iterator, Sequence

IDS_PER_FILTER = 500


def escape_sql(text: str) -> str:
    """Escape a text for an SQL string literal in single quotes."""
    return text.replace("'", "''")


def quoted(text: str) -> str:
    """The SQL string literal of a text."""
    return f"'{escape_sql(text)}'"


def id_conditions(example_ids: Sequence[str]) -> Iterator[str]:
    """SQL conditions of bounded length that together select the rows of some examples."""
    for start in range(0, len(example_ids), IDS_PER_FILTER):
        ids = ", ".join(map(quoted, example_ids[start : start + IDS_PER_FILTER]))
        yield f"example_id IN ({ids})"
