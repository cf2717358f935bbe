"""SQL conditions on the descriptive columns of an index, which Lance evaluates while it reads."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lorif_core.errors import LorifError, StoreUnavailableError, UserError
from lorif_core.tables.store import Store

_QUOTED = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"")


@contextmanager
def where_errors(condition: str) -> Iterator[None]:
    """Convert the errors of an invalid condition; the block must contain the scan that evaluates the condition.

    Raises:
        UserError: the condition is not valid.
    """
    bare = _QUOTED.sub("", condition)
    if ";" in bare or "--" in bare or "/*" in bare:  # Lance silently ignores the text after these
        raise UserError(f"where {condition!r} must be one condition, without ; and comments")
    try:
        yield
    except StoreUnavailableError:
        raise
    except LorifError as error:  # Lance has no exception type for invalid conditions
        if "Invalid user input" not in str(error):
            raise
        reason = str(error).partition("Invalid user input: ")[2].partition(" Valid fields are")[0]
        raise UserError(
            f"where {condition!r} is not a valid condition on the columns of the index: "
            f"{reason.partition(', /')[0]}"
        ) from None


def check_where(store: Store, version: int, condition: str) -> None:
    """Check a condition before anything is scored.

    Raises:
        UserError: the condition is not valid, or no row of this version of `factors` meets it.
    """
    with where_errors(condition):
        batches = store.rows.metadata(version, ["example_id"], condition=condition)
        has_rows = any(batch.num_rows for batch in batches)
    if not has_rows:
        raise UserError(f"no example of {store.uri} is selected: where {condition!r} matches none of its rows")
