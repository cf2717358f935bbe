"""Random SQL conditions as text, each with a Python function that says which rows meet it (None: null)."""

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

TEXTS = ["", "a", "A", "b'", "a%b", "a_b", "a\\b", "é\n", "☃ aB", "--", "b;/* a */", '"a"', "AND"]
ROWS = [
    {"row": row, "tokens": tokens, "loss": float(np.float32(loss)), "uri": uri, "text": text}
    for row, (tokens, loss, uri, text) in enumerate(
        zip(
            [0, 1, 2, 3, 7, 10, 2**31 - 1, 5, 20, 21, 0, 4, 6, 9],
            [0.0, 0.1, 2.3, 2.5, -1.0, 1e30, 3.0, 0.5, 7.25, 20.5, 1e-3, 0.7, 2.0, 9.0],
            [*TEXTS, "a"],
            [*TEXTS[::-1], None],
            strict=True,
        )
    )
]
TABLE = pa.Table.from_pylist(
    ROWS,
    schema=pa.schema(
        [("row", pa.int64()), ("tokens", pa.int32()), ("loss", pa.float32()), ("uri", pa.string()),
         ("text", pa.string())]
    ),
)  # fmt: skip
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "<>": operator.ne, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge,
}  # fmt: skip
_OR, _AND, _NOT, _COMPARED, _SUM, _PRODUCT, _SIGN, _WHOLE = range(8)  # how tightly operators bind


@dataclass(frozen=True)
class Part:
    """A part of a condition: its SQL, how tightly it binds, its value in a row, and its name if it is a leaf."""

    sql: str
    binding: int
    value: Callable[[dict[str, Any]], Any]
    leaf: str = ""

    def within(self, binding: int) -> str:
        """Its SQL as an operand of an operator."""
        return self.sql if self.binding >= binding else f"({self.sql})"


def _nullable(function: Callable[..., Any], *parts: Part) -> Callable[[dict[str, Any]], Any]:
    def value(row: dict[str, Any]) -> Any:
        values = [part.value(row) for part in parts]
        return None if None in values else function(*values)

    return value


def _quoted(text: str) -> Part:
    return Part("'" + text.replace("'", "''") + "'", _WHOLE, lambda row: text, "literal")


def _column(name: str) -> Part:
    return Part(name, _WHOLE, lambda row: row[name], name)


def _call(name: str, function: Callable[..., Any], *parts: Part) -> Part:
    return Part(f"{name}({', '.join(part.sql for part in parts)})", _WHOLE, _nullable(function, *parts))


_literals = st.one_of(
    st.integers(0, 25), st.sampled_from([2**31, 2**40, 0.5, 2.3, 0.1, 20.5, 1e10]), st.floats(0, 30, width=32)
).map(lambda value: Part(repr(value), _WHOLE, lambda row: value, "literal"))
_quoted_texts = st.sampled_from([*TEXTS, "B", "É\n"]).map(_quoted)
_texts = st.recursive(
    st.sampled_from(["uri", "text"]).map(_column) | _quoted_texts,
    lambda inner: (
        st.builds(lambda part: _call("lower", str.lower, part), inner)
        | st.builds(lambda part: _call("UPPER", str.upper, part), inner)
    ),
    max_leaves=3,
)


def _arithmetic(sign: str, left: Part, right: Part) -> Part:
    binding = _SUM if sign in "+-" else _PRODUCT
    functions: dict[str, Callable[[float, float], float | None]] = {
        "+": operator.add, "-": operator.sub, "*": operator.mul,
        "/": lambda a, b: None if b == 0 else a / b, "%": lambda a, b: None if b == 0 else math.fmod(a, b),
    }  # fmt: skip
    if sign in "/%" and right.value(ROWS[0]) == 0:  # a literal zero is refused
        sign = "*"
    function = functions[sign]
    value = _nullable(lambda a, b: function(float(a), float(b)), left, right)
    return Part(f"{left.within(binding)} {sign} {right.within(binding + 1)}", binding, value)


def _negated(part: Part) -> Part:
    return Part(f"- {part.within(_SIGN)}", _SIGN, _nullable(lambda x: -float(x), part))


_columns = st.sampled_from(["row", "tokens", "loss"]).map(_column)
_numbers = st.recursive(
    _columns | _literals | st.builds(lambda part: _call("length", lambda x: float(len(x)), part), _texts),
    lambda inner: st.one_of(
        st.builds(_arithmetic, st.sampled_from("+-*/%"), inner, inner),
        st.builds(_negated, inner),
        st.builds(lambda part: _call("abs", lambda x: abs(float(x)), part), inner),
    ),
    max_leaves=4,
)


def _as_stored(left: Part, right: Part) -> Callable[[float, float], tuple[float, float]]:
    """Literals that a float32 column is compared with are rounded to float32."""
    if {left.leaf, right.leaf} == {"loss", "literal"}:
        return lambda a, b: (float(np.float32(a)), float(np.float32(b)))
    return lambda a, b: (a, b)


def _comparison(sign: str, left: Part, right: Part) -> Part:
    prepare = _as_stored(left, right)
    value = _nullable(lambda a, b: _COMPARISONS[sign](*prepare(a, b)), left, right)
    return Part(f"{left.within(_COMPARED + 1)} {sign} {right.within(_COMPARED + 1)}", _COMPARED, value)


def _in(part: Part, items: list[Part], negated: bool) -> Part:
    prepare = _as_stored(part, items[0])
    function = lambda a, *values: negated != any(operator.eq(*prepare(a, b)) for b in values)  # noqa: E731
    words = f"{'NOT ' if negated else ''}IN ({', '.join(item.sql for item in items)})"
    return Part(f"{part.within(_COMPARED + 1)} {words}", _COMPARED, _nullable(function, part, *items))


def _between(part: Part, low: Part, high: Part, negated: bool) -> Part:
    def value(row: dict[str, Any]) -> bool | None:
        inside = _and(_comparison(">=", part, low).value(row), _comparison("<=", part, high).value(row))
        return None if inside is None else inside != negated

    bounds = f"BETWEEN {low.within(_COMPARED + 1)} AND {high.within(_COMPARED + 1)}"
    return Part(f"{part.within(_COMPARED + 1)} {'NOT ' if negated else ''}{bounds}", _COMPARED, value)


def _like(part: Part, pattern: str, negated: bool) -> Part:
    regex = re.compile("".join({"%": ".*", "_": "."}.get(sign, re.escape(sign)) for sign in pattern), re.DOTALL)
    value = _nullable(lambda text: negated != bool(regex.fullmatch(text)), part)
    return Part(
        f"{part.within(_COMPARED + 1)} {'NOT ' if negated else ''}LIKE {_quoted(pattern).sql}", _COMPARED, value
    )


def _is_null(part: Part, negated: bool) -> Part:
    words = "IS NOT NULL" if negated else "IS NULL"
    return Part(
        f"{part.within(_COMPARED + 1)} {words}", _COMPARED, lambda row: negated != (part.value(row) is None)
    )


def _and(a: bool | None, b: bool | None) -> bool | None:
    return False if a is False or b is False else None if a is None or b is None else True


def _not(a: bool | None) -> bool | None:
    return None if a is None else not a


def _connected(word: str, left: Part, right: Part) -> Part:
    binding = _AND if word == "AND" else _OR

    def value(row: dict[str, Any]) -> bool | None:
        a, b = left.value(row), right.value(row)
        return _and(a, b) if word == "AND" else _not(_and(_not(a), _not(b)))

    return Part(f"{left.within(binding)} {word} {right.within(binding)}", binding, value)


_booleans = st.booleans()
_signs = st.sampled_from(sorted(_COMPARISONS))
_simple = st.one_of(
    st.builds(_comparison, _signs, _numbers, _numbers),
    st.builds(_comparison, _signs, _columns, _literals),
    st.builds(_comparison, _signs, _texts, _texts),
    st.builds(_in, _numbers, st.lists(_literals, min_size=1, max_size=4), _booleans),
    st.builds(_in, _texts, st.lists(_quoted_texts, min_size=1, max_size=4), _booleans),
    st.builds(_between, _numbers, _numbers, _numbers, _booleans),
    st.builds(_between, _texts, _quoted_texts, _quoted_texts, _booleans),
    st.builds(_like, _texts, st.text("aAb%_é", max_size=4), _booleans),
    st.builds(_is_null, _texts | _numbers, _booleans),
    st.builds(lambda a, b: _call("starts_with", str.startswith, a, b), _texts, _texts),
    st.builds(lambda a, b: _call("ends_with", str.endswith, a, b), _texts, _texts),
    st.builds(lambda a, b: _call("contains", lambda x, y: y in x, a, b), _texts, _texts),
)
CONDITIONS = st.recursive(
    _simple,
    lambda inner: (
        st.builds(_connected, st.sampled_from(["AND", "OR"]), inner, inner)
        | st.builds(lambda part: Part(f"NOT {part.within(_NOT)}", _NOT, lambda row: _not(part.value(row))), inner)
    ),
    max_leaves=6,
)
"""`Part`s that are conditions on the rows of `TABLE`, with as few parentheses as SQL needs."""
