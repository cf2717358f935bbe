"""Options that several commands have."""

import argparse

from flows.option_types import positive

INDEX_HELP = "folder or URI of the index"
_CONFIG_HELP = "YAML file of the config; key.sub=value overrides any of its keys"


def add_config(command: argparse.ArgumentParser) -> None:
    """A CONFIG, or its three keys that have no default."""
    command.add_argument("-c", "--config", help=_CONFIG_HELP)
    command.add_argument("--model", help="path, s3:// URI or hub id of the checkpoint (model.path)")
    command.add_argument("--corpus", help="file, folder or URI of the training data (corpus.uri)")
    command.add_argument(
        "index",
        nargs="?",
        metavar="INDEX",
        help="folder or URI of the index; with --model and --corpus, no CONFIG is needed",
    )
    add_overrides(command, "override a key of the config")


def add_index(command: argparse.ArgumentParser, keys: str) -> None:
    """An index, and overrides for the sections in `keys`."""
    command.add_argument("index", help=INDEX_HELP)
    add_overrides(command, f"override a key of the config: {keys}")


def add_overrides(command: argparse.ArgumentParser, help_text: str) -> None:
    """Any number of overrides."""
    command.add_argument("overrides", nargs="*", default=[], metavar="key.sub=value", help=help_text)


def add_publish_incomplete(command: argparse.ArgumentParser) -> None:
    """--publish-incomplete."""
    command.add_argument(
        "--publish-incomplete",
        action="store_true",
        help="publish without the shards that failed every attempt, and record them",
    )


def add_top_k(command: argparse.ArgumentParser) -> None:
    """--top-k."""
    command.add_argument(
        "--top-k",
        type=positive,
        default=10,
        help="the number of proponents, and of opponents, per query (default: 10)",
    )


def add_model(command: argparse.ArgumentParser) -> None:
    """--model, of a command that asks an index."""
    command.add_argument(
        "--model", help="path or hub id of the checkpoint, if it is no longer where the index was built from"
    )


def add_search_options(command: argparse.ArgumentParser) -> None:
    """--where and --normalise."""
    command.add_argument(
        "--where",
        metavar="EXPR",
        help="SQL condition on the columns of the table `factors`; only the matching rows are searched",
    )
    command.add_argument(
        "--normalise",
        "--normalize",
        choices=["none", "cosine", "self"],
        default="none",
        help="divide each score by the roots of the self-influences of query and example (cosine), or by that of "
        "the example only (self) (default: none)",
    )
