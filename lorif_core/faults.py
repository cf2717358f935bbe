"""Errors of stores and of the libraries that reach them, as one sentence each."""

from lorif_core.errors import LorifError, StoreUnavailableError, UserError


def explain(error: Exception, uri: str, doing: str = "read") -> LorifError:
    """PLACEHOLDER written by the main session: to be replaced by the helper's classification."""
    from lorif_core.filesystem import one_line

    if isinstance(error, LorifError):
        return error
    text = one_line(error)
    if isinstance(error, FileNotFoundError):
        return UserError(f"{uri} does not exist")
    if isinstance(error, PermissionError):
        return UserError(f"{uri} may not be {doing} ({text}); check permissions and credentials")
    return StoreUnavailableError(f"{uri} cannot be {doing}: {text}")
