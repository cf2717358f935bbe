"""SQL conditions on the descriptive columns of an index, which Lance evaluates while it reads."""

from reprlib import Repr

from lorif_core.corpus.records import is_unicode
from lorif_core.errors import UserError
from lorif_core.tables.checksums import TEXT, TURNS
from lorif_core.tables.store import Store

MAX_CHARACTERS = 10_000
_short = Repr()
_short.maxstring = 200


def condition_sql(store: Store, version: int, condition: str) -> str:
    """The SQL that Lance evaluates for a condition of a user; it is never the user's own text.

    Raises:
        UserError: the condition is not valid for the columns of this version of `factors`, or it is too large.
    """
    from lorif_core.tables.condition_translator import translate  # it takes a while to import

    if len(condition) > MAX_CHARACTERS:
        raise UserError(f"where has {len(condition):,} characters; at most {MAX_CHARACTERS:,} are allowed")
    if not is_unicode(condition):
        raise UserError("where has a character that is half of a pair; write whole characters")
    try:
        return translate(condition, store.rows.descriptive_schema(version))
    except UserError as error:
        raise UserError(
            f"where {_short.repr(condition)} is not a valid condition on the columns of the index: {error}"
        ) from None


def reads_text(condition: str) -> bool:
    """Whether a condition may read the columns of texts and turns; a quoted word counts, too."""
    return any(name in condition.lower() for name in (TEXT, TURNS))


def check_where(store: Store, version: int, condition: str) -> str:
    """Check a condition before anything is scored; returns its SQL for Lance.

    Raises:
        UserError: the condition is not valid, or no row of this version of `factors` meets it.
        DamagedIndexError: a row differs from its checksum, so that the condition could select wrong rows.
    """
    sql = condition_sql(store, version, condition)
    batches = store.rows.metadata(version, ["example_id"], condition=sql)
    has_rows = any(batch.num_rows for batch in batches)
    store.rows.check_descriptions(version, text=reads_text(sql))
    if not has_rows:
        raise UserError(
            f"no example of {store.uri} is selected: where {_short.repr(condition)} matches none of its rows"
        )
    return sql
