"""Conditions on the descriptive columns of an index, in SQL, which Lance meets while it reads."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lorif_core.errors import LorifError, StoreUnavailableError, UserError
from lorif_core.tables.store import Store

_QUOTED = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"")


@contextmanager
def condition_told(condition: str) -> Iterator[None]:
    """Around a scan of rows that meet a condition, from its first row on.

    Raises:
        UserError: it is no condition.
    """
    bare = _QUOTED.sub("", condition)
    if ";" in bare or "--" in bare or "/*" in bare:  # what follows would be silently left out
        raise UserError(f"where {condition!r} must be one condition, without ; and comments")
    try:
        yield
    except StoreUnavailableError:
        raise
    except LorifError as error:  # Lance has no type of its own for it
        if "Invalid user input" not in str(error):
            raise
        reason = str(error).partition("Invalid user input: ")[2].partition(" Valid fields are")[0]
        raise UserError(
            f"where {condition!r} is no condition on the columns of the index: {reason.partition(', /')[0]}"
        ) from None


def check_condition(store: Store, version: int, condition: str) -> None:
    """Refuse what is no condition, or what no row of a version of the factors meets; before anything is scored."""
    with condition_told(condition):
        met = any(batch.num_rows for batch in store.rows.metadata(version, ["example_id"], condition=condition))
    if not met:
        raise UserError(f"no example of {store.uri} is meant: where {condition!r} matches none of its rows")
