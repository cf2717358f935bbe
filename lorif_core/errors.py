"""The errors that a user may see; each message is one sentence: what is wrong, where, what to do."""


class LorifError(Exception):
    """A failure that is not the user's mistake. The command line exits with `exit_code`."""

    exit_code = 1


class UserError(LorifError):
    """A mistake in the configuration, the corpus, the queries or the command: exit code 2."""

    exit_code = 2


class IncompleteBuildError(LorifError):
    """Some shards could not be indexed, so nothing was published; the message lists them."""


class CorpusChangedError(LorifError):
    """A corpus file is not the one that was listed (its ETag or size differs)."""
