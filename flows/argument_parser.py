"""The argparse class of the command line: a mistake gets one sentence, which names the nearest right word."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from flows.terminal import write_error

_NUMBER = re.compile(r"-\.?\d")


class ArgumentParser(argparse.ArgumentParser):
    """Refuses unknown options before it misses required ones, because a misspelt option is often both."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2 and one sentence instead of the usage text."""
        write_error(f"{message}; see {self.prog} --help")
        self.exit(2)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse does, but an unknown option is an error that names the nearest one."""
        if self._subparsers is None and args is not None:
            unknown = [
                word.partition("=")[0] for word in _options(args) if not self._knows(word.partition("=")[0])
            ]
            if unknown:
                hints = [f"unknown option {word}{nearest(word, self._option_string_actions)}" for word in unknown]
                self.error("; ".join(hints))
        return super().parse_known_args(args, namespace)

    def _knows(self, option: str) -> bool:
        if option.startswith("--"):
            return any(known.startswith(option) for known in self._option_string_actions)
        return option[:2] in self._option_string_actions

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the nearest choice; a command has too many choices to list them all."""
        if action.choices is None or value in action.choices:
            return
        is_command = isinstance(action, argparse._SubParsersAction)
        if is_command:
            raise argparse.ArgumentError(None, f"unknown command {value!r}{nearest(value, action.choices)}")
        hint = nearest(value, action.choices) or f"; the choices are {', '.join(map(str, action.choices))}"
        raise argparse.ArgumentError(action, f"{value!r} is not a choice{hint}")


class PrintVersion(argparse.Action):
    """The option `--version`."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        sys.stdout.write(f"lorif {version('lorif-pipeline')}\n")
        parser.exit()


class PrintCompletion(argparse.Action):
    """The option `--print-completion SHELL`."""

    def __call__(
        self, parser: argparse.ArgumentParser, _: Any, shell: str | Sequence[Any] | None, *__: Any
    ) -> NoReturn:
        import shtab  # takes a while

        for command in subcommands(parser).values():
            for action in command._actions:
                if action.choices is None and action.nargs != 0:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        sys.stdout.write(shtab.complete(parser, str(shell)) + "\n")
        parser.exit()


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands, by name."""
    (action,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return dict(action.choices)


def nearest(word: str, known: Iterable[str]) -> str:
    """The question whether the nearest of some known words was meant; empty if none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _options(words: Sequence[str]) -> list[str]:
    """The words that argparse takes for options, up to `--`."""
    before = words[: words.index("--")] if "--" in words else words
    return [
        word
        for word in before
        if word.startswith("-") and word != "-" and " " not in word and not _NUMBER.match(word)
    ]
