"""Invariant: a condition selects the rows that its SQL says, or one sentence names what is wrong with it."""

import logging
import time
from typing import Any

import lance
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lorif_core.errors import UserError
from lorif_core.tables.condition_parser import MAX_DEPTH, MAX_OPERATORS
from lorif_core.tables.condition_translator import MAX_ITEMS, MAX_TEXT_STEPS, translate
from lorif_core.tables.filters import MAX_CHARACTERS
from tests.patience import patience
from tests.unit.tables.conditions import CONDITIONS, ROWS, TABLE, Part

_WORDS = [
    "row", "tokens", "loss", "uri", "text", "1", "0.5", "1e400", "'a'", "''", "'", '"a"', "`a`", "=", "<", "!=",
    "+", "-", "*", "/", "%", "(", ")", ",", "AND", "OR", "NOT", "IN", "LIKE", "BETWEEN", "IS", "NULL", "lower(",
    "cast(",
    "::int", "||", "$$a$$", "[", "]", "{{", "}}", ".", ";", "--", "/*", "*/", "SELECT", "CASE", "WHEN", "END", "?",
    ":a", "@a", "\\", "\x00", "DROP TABLE", "INTERVAL", "DATE", "x'ff'", "EXISTS", "#", "->", "FROM", "OVER", "~",
    "JSON_EXTRACT(", "'$[1e400]'",
]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lance.write_dataset(
        TABLE, str(tmp_path_factory.mktemp("table") / "t.lance"), data_storage_version="2.0"
    )


def rows_of(dataset: Any, condition: str) -> list[int]:
    """Rows that Lance selects for the translated condition."""
    table = dataset.to_table(columns=["row"], filter=translate(condition, TABLE.schema))
    return sorted(table.column("row").to_pylist())


@settings(max_examples=200, deadline=None, suppress_health_check=[*HealthCheck])
@given(condition=CONDITIONS)
def test_a_condition_selects_the_same_rows_as_python(dataset: Any, condition: Part) -> None:
    expected = [row["row"] for row in ROWS if condition.value(row) is True]
    assert rows_of(dataset, condition.sql) == expected, translate(condition.sql, TABLE.schema)


@settings(max_examples=200, deadline=None, suppress_health_check=[*HealthCheck])
@given(
    condition=st.text(max_size=60)
    | st.lists(st.sampled_from(_WORDS), max_size=14).map(" ".join)
    | st.lists(st.sampled_from(_WORDS), max_size=8).map("".join)
)
@example(condition="$$a$$ = uri").via("a panic in Lance's parser")
def test_any_text_is_a_condition_or_is_refused_with_a_sentence(
    dataset: Any, condition: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        try:
            rows_of(dataset, condition)
        except UserError as error:
            assert str(error)
    assert not caplog.records, "a parser may not log what a client sends"


@pytest.mark.parametrize(
    ("condition", "named"),
    [
        ("colour = 'red'", "no column 'colour'; the columns are row, tokens"),
        ("_rowid < 5", "no column '_rowid'"),
        ("uri.x = 1", "'uri.x' is not allowed"),
        ("tokens / 0 = 1", "'tokens / 0' divides by zero"),
        ("tokens % 0.0 = 1", "divides by zero"),
        ("cast(text as int) > 0", "'CAST(text AS INT)' is not allowed"),
        ("text::int > 0", "is not allowed"),
        ("length(uri" + " || uri" * 40 + ") > 1", "'uri || uri || uri"),
        ("repeat(text, 1000000) = 'a'", "'REPEAT(text, 1000000)' is not allowed"),
        ("regexp_like(text, '(a+)+')", "is not allowed; a condition may have comparisons, AND"),
        ("tokens > 1; DROP TABLE factors", "one condition, without ; and comments"),
        ("tokens > 1 -- or not", "one condition, without ; and comments"),
        ("tokens /* of it */ > 1", "one condition, without ; and comments"),
        ("tokens > (SELECT 1)", "'SELECT 1' is not allowed"),
        ("uri IN (SELECT uri)", "is not allowed"),
        ("EXISTS (SELECT 1)", "is not allowed"),
        ("CASE WHEN tokens > 1 THEN TRUE END", "is not allowed"),
        ("uri LIKE '%a' ESCAPE 'a'", "is not allowed"),
        ("uri LIKE text", "a pattern in single quotes"),
        ("tokens BETWEEN SYMMETRIC 3 AND 1", "is not allowed"),
        ("text = NULL", "'NULL' is not allowed"),
        ("uri = 'a' 'b'", "is not allowed"),
        ("tokens = '20'", "compares 'tokens', a number, with \"'20'\", a text"),
        ("uri < 20", "compares 'uri', a text, with '20', a number"),
        ("uri IN ('a', 1)", "'1' is a number, and a text is needed there"),
        ("lower(tokens) = 'a'", "'tokens' is a number, and a text is needed there"),
        ("(tokens > 1) = (row > 1)", "is a condition, which cannot be compared"),
        ("tokens", "'tokens' is a number, and a condition is needed there"),
        ("tokens AND row > 1", "'tokens' is a number, and a condition is needed there"),
        ('uri = "a"', "a text stands in single quotes"),
        ("uri = 'a", "a quotation mark or a comment in it does not end"),
        ("row +", "not complete, or not SQL, at 'row +'"),
        ("", "it is empty"),
        ("tokens < 1e400", "the number '1e400' is too large"),
        ("tokens < " + "9" * 5000, "is too large"),
        ("tokens IN (" + ", ".join("1" * (MAX_ITEMS + 1)) + ")", "1 to 1,000 values, and it has 1,001"),
        (" OR ".join(["tokens > 1"] * MAX_OPERATORS), f"more than {MAX_OPERATORS} operators"),
        (" OR ".join(["uri LIKE 'a%'"] * (MAX_TEXT_STEPS + 1)), "more than 20 functions of texts and LIKEs"),
        ("(" * 3000 + "tokens > 1" + ")" * 3000, f"nested more than {MAX_DEPTH} levels deep"),
        ("NOT " * 2000 + "tokens > 1", f"nested more than {MAX_DEPTH} levels deep"),
        ("lower(" * (MAX_DEPTH + 1) + "uri" + ")" * (MAX_DEPTH + 1) + " = 'a'", f"more than {MAX_DEPTH} levels"),
        ("tokens > 1" + " + 1" * MAX_DEPTH, f"nested more than {MAX_DEPTH} levels deep"),
    ],
)
def test_a_refusal_names_the_part_that_is_wrong(condition: str, named: str) -> None:
    with pytest.raises(UserError) as refusal:
        translate(condition, TABLE.schema)
    assert named in str(refusal.value) and len(str(refusal.value)) < 400


def test_the_largest_conditions_are_translated_and_evaluated_soon(dataset: Any) -> None:
    half = MAX_OPERATORS // 2
    largest = [
        " OR ".join(["tokens>1"] * half),
        " AND ".join(f"uri <> '{number}'" for number in range(half)),
        " AND ".join(["loss/tokens>row*2"] * (half // 2)),
        " OR ".join(f"text ILIKE '%a_%{number}'" for number in range(MAX_TEXT_STEPS)),
        "NOT " * (MAX_DEPTH - 2) + "tokens > 1",
        "(" * MAX_DEPTH + "tokens > 1" + ")" * MAX_DEPTH,
        "tokens > 1" + "/tokens" * (MAX_DEPTH - 2),
        "lower(" * (MAX_DEPTH - 2) + "text" + ")" * (MAX_DEPTH - 2) + " = 'a'",
        f"tokens IN ({', '.join(['12345'] * MAX_ITEMS)})",
        f"uri IN ({', '.join([repr('a.jsonl')] * (MAX_ITEMS - 200))})",
    ]
    for condition in largest:
        assert len(condition) <= MAX_CHARACTERS
        started = time.perf_counter()
        rows_of(dataset, condition)
        assert time.perf_counter() - started < patience(2), condition[:40]
