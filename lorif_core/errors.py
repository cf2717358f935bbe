"""The errors that users see. Each message is one sentence: what is wrong, where, and what to do."""


class LorifError(Exception):
    """A failure that is not the user's mistake. The command line exits with `exit_code`."""

    exit_code = 1


class UserError(LorifError):
    """A mistake in the configuration, the corpus, the queries or the command: exit code 2."""

    exit_code = 2


class StoreUnavailableError(LorifError):
    """The object store fails or does not answer even after the retries of the libraries."""


class StoreUnreachableError(StoreUnavailableError):
    """Nothing answers at the endpoint; at the start of a command the endpoint is most likely wrong."""

    exit_code = 2


class MemoryExhaustedError(LorifError):
    """Memory ran out on a worker or on this machine; the message names the settings to lower."""


class ShardInputError(LorifError):
    """One file of the corpus cannot be used: its shards are quarantined, and the others are indexed."""

    exit_code = 2


class CorpusChangedError(ShardInputError):
    """A corpus file changed after it was listed: its ETag or size differs."""


class DamagedFileError(ShardInputError):
    """A corpus file is cut off or its bytes cannot be decoded."""


class DamagedIndexError(LorifError):
    """Stored bytes of an index have changed; `lorif verify` names all of them."""


class IncompleteBuildError(LorifError):
    """Some shards could not be indexed, so nothing was published; the message lists them.

    Args:
        message: one sentence.
        exit_code: 2 if the input caused every failure, else 1.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type["IncompleteBuildError"], tuple[str, int]]:
        return type(self), (str(self), self.exit_code)
