"""The reference of the command line, from its argparse parser."""

import argparse
import re
from collections.abc import Iterator

from docs_generators.markdown import code, fenced, page, sentence, table
from flows.argument_parser import subcommands
from flows.parser import command_parser

_USAGE_WIDTH = 78
_DEFAULT_IN_HELP = re.compile(r"\s*\(default: (.*)\)$")

_INTRODUCTION = """\
# Commands

`lorif COMMAND --help` prints the same. Every command takes `--json`, which prints one line of JSON last on
stdout; logs and progress go to stderr. Arguments of the form `key.sub=value` set a key of the
[configuration](config.md); they may stand before or after the options.

`lorif --version` prints the version. `lorif --print-completion SHELL` prints the script that completes commands
and options in bash, zsh, fish or tcsh, for example `source <(lorif --print-completion bash)`.
"""
EXIT_CODES = {
    0: "The command succeeded.",
    1: "A failure that is not a mistake in the input: a store that stays unavailable, a full disk, another build "
    "that holds the index.",
    2: "A mistake in the command, the configuration, the corpus or the credentials. The message is one sentence "
    "that says what is wrong, where, and what to do.",
    130: "Interrupted (Ctrl-C). The same command resumes. A second Ctrl-C ends it at once.",
    143: "Terminated (SIGTERM). The same command resumes.",
}
_AFTER_EXIT_CODES = """\
With `--json` a failure also prints `{"error": ..., "exit_code": ...}` on stdout. `LORIF_DEBUG=1` in the
environment shows the traceback of a failure.
"""


def commands_page() -> str:
    """The page `reference/commands.md`."""
    commands = subcommands(command_parser())
    return page(
        _INTRODUCTION,
        table(
            ["Command", "Purpose"],
            [[f"[`lorif {name}`](#{name})", sentence(parser.description)] for name, parser in commands.items()],
        ),
        *(block for name, parser in commands.items() for block in _command(name, parser)),
        "## Exit codes {#exit-codes}",
        table(["Code", "Meaning"], [[code(number), meaning] for number, meaning in EXIT_CODES.items()]),
        _AFTER_EXIT_CODES,
    )


def arguments_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What a command takes, without --help."""
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


def _command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## lorif {name} {{#{name}}}"
    yield sentence(parser.description)
    yield fenced("text", usage(parser))
    yield table(["Argument", "Default", "Meaning"], [_argument(parser, action) for action in arguments_of(parser)])


def usage(parser: argparse.ArgumentParser) -> str:
    """The synopsis, wrapped at the same width whatever the terminal."""
    formatter = argparse.HelpFormatter(parser.prog, width=_USAGE_WIDTH)
    formatter.add_usage(None, parser._actions, parser._mutually_exclusive_groups, prefix="")
    return formatter.format_help()


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    return [_spelling(action), _default(parser, action), _DEFAULT_IN_HELP.sub("", action.help or "")]


def _spelling(action: argparse.Action) -> str:
    """How the argument is written, with its value or choices."""
    value = _value(action)
    if not action.option_strings:
        return code(value)
    return ", ".join(code(f"{option} {value}".strip()) for option in action.option_strings)


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.metavar is not None:
        return action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    if action.choices is not None:
        return "{" + ",".join(str(choice) for choice in action.choices) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def _default(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    if action.nargs in (0, "*"):
        return "one of these is required" if _is_alternative(parser, action) else ""
    if action.required:
        return "required"
    if _is_alternative(parser, action):
        return "one of these is required"
    if action.default is not None:
        return code(action.default)
    in_help = _DEFAULT_IN_HELP.search(action.help or "")
    return in_help[1] if in_help else ""


def _is_alternative(parser: argparse.ArgumentParser, action: argparse.Action) -> bool:
    """Whether exactly one argument of a group that this one belongs to must be given."""
    groups = parser._mutually_exclusive_groups
    return any(group.required and action in group._group_actions for group in groups)
