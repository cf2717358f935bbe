"""Checks the tree of a condition, and generates the SQL that Lance evaluates from it.

Only the nodes of `_HANDLERS` pass. Types are checked against the columns, and the size is bounded, so no condition
can fail, allocate much, or overflow a stack while it is evaluated.

Numbers are computed in float64, which neither overflows nor fails. A quotient by zero is null, so its row does not
match.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from sqlglot import exp

from lorif_core.errors import UserError
from lorif_core.tables.condition_parser import MAX_DEPTH, parse, shown, too_deep
from lorif_core.tables.sql import escape_sql

MAX_ITEMS = 1000
MAX_TEXT_STEPS = 20
"""LIKE and functions of texts, each of which reads the texts of all rows once more."""
ALLOWED = (
    "comparisons, AND, OR, NOT, IN, LIKE, ILIKE, BETWEEN, IS NULL, + - * / %, and the functions abs, contains, "
    "ends_with, length, lower, starts_with and upper"
)
_COMPARISONS = {exp.EQ: "=", exp.NEQ: "<>", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">="}
_ARITHMETIC = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/", exp.Mod: "%"}
_TEXT_FUNCTIONS = {exp.Lower: "lower", exp.Upper: "upper"}
_TEXT_TESTS = {exp.StartsWith: "starts_with", exp.EndsWith: "ends_with", exp.Contains: "contains"}
_TEXT_STEPS = (exp.Like, exp.ILike, exp.Length, *_TEXT_FUNCTIONS, *_TEXT_TESTS)
_LARGEST = 1e38  # float32 holds it

Kind = Literal["number", "text", "condition"]


@dataclass(frozen=True, slots=True)
class _Term:
    """A checked part of a condition.

    Attributes:
        kind: what its value is.
        sql: SQL of the value; of a number, in float64.
        literal: the value of a number that is written out; None for anything else.
        is_float32: whether it is a column of float32.
    """

    kind: Kind
    sql: str
    literal: float | None = None
    is_float32: bool = False


def translate(condition: str, columns: pa.Schema) -> str:
    """The SQL of a condition for Lance.

    Raises:
        UserError: one sentence without a beginning, which says what part of the condition is wrong.
    """
    return _Translator(columns).term(parse(condition), "condition").sql


def _not_allowed(node: exp.Expr) -> UserError:
    return UserError(f"{shown(node)} is not allowed; a condition may have {ALLOWED}")


class _Translator:
    """Translates nodes; every method returns the checked term of its node.

    Args:
        columns: the columns that a condition may use.
    """

    def __init__(self, columns: pa.Schema) -> None:
        self._columns = {name.lower(): columns.field(name) for name in columns.names}
        self._depth = self._text_steps = 0

    def term(self, node: exp.Expr, kind: Kind | None = None) -> _Term:
        """The checked term of a node. Raises UserError if it is not allowed, or not of the kind."""
        node = node.unnest()  # every method sets its own parentheses
        handler, arguments = _HANDLERS.get(type(node), (None, frozenset()))
        if handler is None or not {name for name, value in node.args.items() if value} <= arguments:
            raise _not_allowed(node)
        self._text_steps += type(node) in _TEXT_STEPS
        if self._text_steps > MAX_TEXT_STEPS:
            raise UserError(f"it has more than {MAX_TEXT_STEPS} functions of texts and LIKEs")
        if self._depth == MAX_DEPTH:
            raise too_deep()
        self._depth += 1
        term = handler(self, node)
        self._depth -= 1
        if kind is not None and term.kind != kind:
            raise UserError(f"{shown(node)} is a {term.kind}, and a {kind} is needed there")
        return term

    def _column(self, node: exp.Column) -> _Term:
        identifier = node.this
        if not isinstance(identifier, exp.Identifier) or identifier.args.get("quoted"):
            raise UserError(f"{shown(node)} is not allowed; a text stands in single quotes, a column in none")
        field = self._columns.get(identifier.name.lower())
        if field is None:
            raise UserError(f"it has no column {shown(node)}; the columns are {', '.join(self._columns)}")
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            return _Term("text", field.name)
        if pa.types.is_signed_integer(field.type) or pa.types.is_floating(field.type):
            term = _number(f"CAST({field.name} AS DOUBLE)")
            return replace(term, is_float32=pa.types.is_float32(field.type))
        raise UserError(f"the column {field.name} cannot be used, because it is neither a text nor a number")

    def _literal(self, node: exp.Literal) -> _Term:
        if node.is_string:
            return _Term("text", f"'{escape_sql(node.this)}'")
        try:
            return _literal_number(node, float(node.this))
        except ValueError:  # such as `0.0.`, which the tokenizer lets pass
            raise _not_allowed(node) from None

    def _boolean(self, node: exp.Boolean) -> _Term:
        return _Term("condition", "TRUE" if node.this else "FALSE")

    def _negation(self, node: exp.Neg) -> _Term:
        term = self.term(node.this, "number")
        if term.literal is not None:
            return _literal_number(node, -term.literal)
        return _number(f"(-{term.sql})")

    def _not(self, node: exp.Not) -> _Term:
        return _Term("condition", f"(NOT {self.term(node.this, 'condition').sql})")

    def _connected(self, node: exp.And | exp.Or) -> _Term:
        word = " AND " if isinstance(node, exp.And) else " OR "
        # a chain is one level, however long: Lance's parser accepts few nested parentheses
        terms = [self.term(part, "condition") for part in node.flatten(unnest=False)]
        return _Term("condition", f"({word.join(term.sql for term in terms)})")

    def _comparison(self, node: exp.Binary) -> _Term:
        return self._compared(_COMPARISONS[type(node)], node.this, node.expression)

    def _compared(self, operator: str, left: exp.Expr, right: exp.Expr) -> _Term:
        terms = self.term(left), self.term(right)
        for term, node in zip(terms, (left, right), strict=True):
            if term.kind == "condition":
                raise UserError(f"{shown(node)} is a condition, which cannot be compared")
        if terms[0].kind != terms[1].kind:
            raise UserError(
                f"it compares {shown(left)}, a {terms[0].kind}, with {shown(right)}, a {terms[1].kind}"
            )
        first, second = _comparable(terms)
        return _Term("condition", f"({first} {operator} {second})")

    def _arithmetic(self, node: exp.Binary) -> _Term:
        left, right = self.term(node.this, "number"), self.term(node.expression, "number")
        divisor = right.sql
        if isinstance(node, exp.Div | exp.Mod):
            if right.literal == 0:
                raise UserError(f"{shown(node)} divides by zero")
            divisor = divisor if right.literal else f"NULLIF({divisor}, 0.0)"
        return _number(f"({left.sql} {_ARITHMETIC[type(node)]} {divisor})")

    def _in(self, node: exp.In) -> _Term:
        items = node.expressions
        if not 0 < len(items) <= MAX_ITEMS:
            raise UserError(f"IN needs 1 to {MAX_ITEMS:,} values, and it has {len(items):,}")
        term = self.term(node.this)
        values = [self.term(item, term.kind) for item in items]
        for item, value in zip(items, values, strict=True):
            if value.literal is None and not isinstance(item, exp.Literal):
                raise UserError(f"{shown(item)} is not allowed in IN, which takes numbers or texts")
        first, *others = _comparable([term, *values])
        return _Term("condition", f"({first} IN ({', '.join(others)}))")

    def _between(self, node: exp.Between) -> _Term:
        low = self._compared(">=", node.this, node.args["low"])
        high = self._compared("<=", node.this, node.args["high"])
        return _Term("condition", f"({low.sql} AND {high.sql})")

    def _like(self, node: exp.Like | exp.ILike) -> _Term:
        pattern = node.expression.unnest()
        if not isinstance(pattern, exp.Literal) or not pattern.is_string:
            raise UserError(f"LIKE needs a pattern in single quotes, and {shown(pattern)} is none")
        word = "LIKE" if isinstance(node, exp.Like) else "ILIKE"
        negated = "NOT " if node.args.get("negate") else ""
        terms = self.term(node.this, "text"), self.term(pattern)
        return _Term("condition", f"({terms[0].sql} {negated}{word} {terms[1].sql})")

    def _is_null(self, node: exp.Is) -> _Term:
        if not isinstance(node.expression, exp.Null):
            raise _not_allowed(node)
        return _Term("condition", f"({self.term(node.this).sql} IS NULL)")

    def _abs(self, node: exp.Abs) -> _Term:
        return _number(f"abs({self.term(node.this, 'number').sql})")

    def _length(self, node: exp.Length) -> _Term:
        return _number(f"CAST(length({self.term(node.this, 'text').sql}) AS DOUBLE)")

    def _text_function(self, node: exp.Func) -> _Term:
        return _Term("text", f"{_TEXT_FUNCTIONS[type(node)]}({self.term(node.this, 'text').sql})")

    def _text_test(self, node: exp.Func) -> _Term:
        inside, part = self.term(node.this, "text").sql, self.term(node.expression, "text").sql
        return _Term("condition", f"{_TEXT_TESTS[type(node)]}({inside}, {part})")


def _number(double: str) -> _Term:
    return _Term(
        "number", f"({double} + 0.0)"
    )  # Lance takes -0.0, which this excludes, for another number than 0.0


def _literal_number(node: exp.Expr, value: float) -> _Term:
    if abs(value) > _LARGEST:
        raise UserError(f"the number {shown(node)} is too large")
    return _Term("number", repr(value), literal=value + 0.0)


def _comparable(terms: Sequence[_Term]) -> list[str]:
    """SQL of values of one kind for a comparison.

    Literals that a float32 column is compared with are rounded to float32, so that `loss = 2.3` finds 2.3.
    """
    rounds = sum(term.literal is None for term in terms) == 1 and any(term.is_float32 for term in terms)
    return [
        term.sql if term.literal is None else repr(float(np.float32(term.literal)) if rounds else term.literal)
        for term in terms
    ]


_Handler = Callable[[_Translator, Any], _Term]
_UNARY, _BINARY = frozenset(("this",)), frozenset(("this", "expression"))
# the arguments are listed too, because some change the meaning: NOT LIKE, for one, is an argument of LIKE
_HANDLERS: dict[type[exp.Expr], tuple[_Handler, frozenset[str]]] = {
    exp.Column: (_Translator._column, _UNARY),
    exp.Literal: (_Translator._literal, _UNARY | {"is_string"}),
    exp.Boolean: (_Translator._boolean, _UNARY),
    exp.Neg: (_Translator._negation, _UNARY),
    exp.Not: (_Translator._not, _UNARY),
    exp.And: (_Translator._connected, _BINARY),
    exp.Or: (_Translator._connected, _BINARY),
    exp.In: (_Translator._in, _UNARY | {"expressions"}),
    exp.Between: (_Translator._between, _UNARY | {"low", "high"}),
    exp.Like: (_Translator._like, _BINARY | {"negate"}),
    exp.ILike: (_Translator._like, _BINARY | {"negate"}),
    exp.Is: (_Translator._is_null, _BINARY),
    exp.Abs: (_Translator._abs, _UNARY),
    exp.Length: (_Translator._length, _UNARY),
    **dict.fromkeys(_COMPARISONS, (_Translator._comparison, _BINARY)),
    **dict.fromkeys(_ARITHMETIC, (_Translator._arithmetic, _BINARY | {"typed", "safe"})),
    **dict.fromkeys(_TEXT_FUNCTIONS, (_Translator._text_function, _UNARY)),
    **dict.fromkeys(_TEXT_TESTS, (_Translator._text_test, _BINARY)),
}
