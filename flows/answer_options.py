"""The options of `lorif query` that say what is attributed, and how the answer is explained."""

import argparse

from flows.option_types import positive, span

NEW_TOKENS = 64


def add_answer_options(query: argparse.ArgumentParser) -> None:
    """Add them to the command."""
    query.add_argument(
        "--completion", help="the text that the model wrote after the prompt; only its tokens are scored"
    )
    query.add_argument(
        "--span",
        type=span,
        metavar="START:END",
        help="characters of the completion, or of the text, counted from 0; only tokens that overlap them are "
        "scored",
    )
    query.add_argument(
        "--generate",
        action="store_true",
        help="let the model continue the text by its most likely tokens, and attribute what it adds",
    )
    query.add_argument(
        "--max-new-tokens",
        type=positive,
        default=NEW_TOKENS,
        help=f"the most tokens that --generate adds (default: {NEW_TOKENS})",
    )
    query.add_argument(
        "--explain",
        action="store_true",
        help="also print what each token, each layer and each token of the training text adds to each score",
    )
