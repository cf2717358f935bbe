"""The words of a command line as the options of its command: sorts the words that are no options by their form."""

import argparse
import json
import re
import sys
from collections.abc import Sequence

from flows.argument_parser import subcommands
from flows.parser import command_parser
from lorif_core.errors import UserError

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
_DOTTED_OVERRIDE = re.compile(r"[A-Za-z_]\w*\.[\w.]+=")


def parse_command(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options that `run_<command>` takes, with `command` and `json`; without any words print the help and end.

    argparse fills positional arguments from the first group of words; we accept them before, between and after
    options, and tell overrides (`key.sub=value`) from an index or a question by their form.

    Args:
        words: the words after `lorif`; None for those of this process.

    Raises:
        SystemExit: a word is wrong (2, after one sentence), or the help, the version or a script was printed (0).
    """
    parser = command_parser()
    words = sys.argv[1:] if words is None else words
    if not words:
        parser.print_help()
        parser.exit()
    options, rest = parser.parse_known_args(words)
    command = subcommands(parser)[options.command]
    unexpected = [word for word in rest if word.startswith("-") or "overrides" not in options]
    if unexpected:
        command.error(f"unexpected {', '.join(map(repr, unexpected))}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    try:
        if "corpus" in options and "overrides" in options:
            _name_config(options)
        elif "question" in options:
            _name_question(options)
    except UserError as error:
        command.error(str(error))
    return options


def _name_config(options: argparse.Namespace) -> None:
    """INDEX, --model and --corpus become overrides of an empty CONFIG."""
    places = {"model.path": options.model, "corpus.uri": options.corpus}
    indexes, overrides = _sorted(options.index, options.overrides, _OVERRIDE)
    del options.index, options.model, options.corpus
    given = {key: value for key, value in places.items() if value is not None}
    if options.config is not None:
        # a model or corpus beside a CONFIG replaces the one in it
        options.overrides = [*map(_override, given.items()), *indexes, *overrides]
        return
    if len(indexes) == 1 and indexes[0].endswith((".yaml", ".yml")):
        raise UserError(f"name the config with -c: lorif {options.command} -c {indexes[0]}")
    if len(indexes) > 1:
        raise UserError(f"{indexes[1]!r} is neither an option nor of the form key.sub=value")
    places = {"index": indexes[0] if indexes else None, **places}
    keys = {override.partition("=")[0] for override in overrides}
    names = {"index": "INDEX", "model.path": "--model", "corpus.uri": "--corpus"}
    missing = [names[key] for key, value in places.items() if value is None and key not in keys]
    if missing == list(names.values()):
        raise UserError("give a CONFIG (-c FILE), or INDEX with --model and --corpus")
    if missing:
        raise UserError(f"without a CONFIG (-c FILE), {' and '.join(missing)} must be given, too")
    given = {key: value for key, value in places.items() if value is not None}
    options.overrides = [*map(_override, given.items()), *overrides]


def _name_question(options: argparse.Namespace) -> None:
    """The question is the only word that is no override, or --text; `-` is stdin."""
    texts, options.overrides = _sorted(options.question, options.overrides, _DOTTED_OVERRIDE)
    if options.text is not None:
        texts.append(options.text)
    del options.question
    if not texts:
        raise UserError('give a text: lorif query INDEX "the text"; - reads it from stdin')
    if len(texts) > 1:
        raise UserError(f"there are {len(texts)} texts, {texts[0]!r} and {texts[1]!r}; put one text in quotes")
    options.text = sys.stdin.read().removesuffix("\n") if texts == ["-"] else texts[0]


def _sorted(first: str | None, others: Sequence[str], override: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Words that are no overrides, and overrides."""
    words = [*([] if first is None else [first]), *others]
    return [word for word in words if not override.match(word)], [word for word in words if override.match(word)]


def _override(item: tuple[str, str]) -> str:
    """An override whose value is this text, whatever YAML would read in it."""
    key, value = item
    return f"{key}={json.dumps(value)}"
