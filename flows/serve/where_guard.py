"""Which SQL conditions a server takes: whoever may ask must not be able to exhaust its memory or its stack.

Lance's SQL has functions that make large values of small ones (`repeat`), and a chain of a thousand operators
overflows its stack, which ends the process (`1+1+1+...`, measured: 500 are fine, 900 are not).
"""

import re

from lorif_core.errors import UserError

LONGEST = 600
"""Characters; fewer than 300 operators."""
FUNCTIONS = frozenset(
    ("abs", "cast", "contains", "ends_with", "length", "lower", "starts_with", "substr", "upper")
)
_WORDS = frozenset(("and", "between", "case", "else", "in", "is", "like", "not", "or", "then", "when"))
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"")
_CALLED = re.compile(r"([^\s(),=<>!+*/%|-]+)\s*\(")


def check_modest(condition: str) -> None:
    """Raise UserError if a condition calls a function that is not one of `FUNCTIONS`."""
    for name in _CALLED.findall(_QUOTED.sub("''", condition)):
        if name.lower() not in FUNCTIONS | _WORDS:
            raise UserError(f"where calls {name}; a server takes only {', '.join(sorted(FUNCTIONS))}")
