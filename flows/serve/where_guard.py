"""Which SQL conditions a server accepts: a client must not be able to exhaust its memory or its stack.

Lance's SQL has functions that make large values from small ones (`repeat`). A chain of about a thousand operators
overflows its stack, which ends the process (`1+1+1+...`, measured: 500 operators pass, 900 do not).
"""

import re

from lorif_core.errors import UserError

MAX_WHERE_CHARACTERS = 600
"""Room for fewer than 300 operators."""
FUNCTIONS = frozenset(
    ("abs", "cast", "contains", "ends_with", "length", "lower", "starts_with", "substr", "upper")
)
_KEYWORDS = frozenset(("and", "between", "case", "else", "in", "is", "like", "not", "or", "then", "when"))
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"")
_CALL = re.compile(r"([^\s(),=<>!+*/%|-]+)\s*\(")


def check_where_cost(condition: str) -> None:
    """Raise UserError if a condition calls a function outside `FUNCTIONS`."""
    for name in _CALL.findall(_QUOTED.sub("''", condition)):
        if name.lower() not in FUNCTIONS | _KEYWORDS:
            raise UserError(f"where calls {name}; a server accepts only {', '.join(sorted(FUNCTIONS))}")
