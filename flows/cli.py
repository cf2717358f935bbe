"""The `lorif` command line: parses a command, runs it and prints its result; imports a command when it runs."""

import argparse
import importlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence

from flows.commands import COMMANDS
from flows.commands.result import Result
from flows.parser import command_parser
from lorif_core.errors import LorifError
from tasks.environment import fast_imports


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0 on success, 2 on a mistake of the user, 1 on a failure, 130 when interrupted."""
    parser = command_parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse accepts overrides in one place only; we also accept them before and after options
    misplaced = [word.partition("=")[0] for word in rest if word.startswith("-") or "overrides" not in arguments]
    if misplaced:
        parser.error(f"unrecognized arguments: {' '.join(misplaced)}")
    if rest:
        arguments.overrides += rest
    _configure_logging()
    sys.exit(run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Run a parsed command and print its result, or each result as soon as it arrives; returns the exit code."""
    options = vars(arguments)
    as_json = options.pop("json")
    try:
        results = _implementation(options.pop("command"))(**options)
        for result in [results] if isinstance(results, Result) else results:
            sys.stdout.write((json.dumps(result.data) if as_json else result.text) + "\n")
            sys.stdout.flush()
    except LorifError as error:
        return _fail(as_json, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(as_json, "interrupted; run the same command again to resume", 130)
    except Exception as error:  # noqa: BLE001 - every failure of a command ends here, with a message
        from lorif_core.storage.faults import one_line, without_secrets

        if os.environ.get("LORIF_DEBUG"):
            sys.stderr.write(without_secrets(traceback.format_exc()))
        reason = one_line(error) or "no message"
        return _fail(as_json, f"{type(error).__name__}: {reason} (LORIF_DEBUG=1 shows the traceback)", 1)
    return 0


def _implementation(name: str) -> Callable[..., Result | Iterable[Result]]:
    """The function of a command, from the module of its group."""
    with fast_imports():
        group = importlib.import_module(f"flows.commands.{COMMANDS[name]}")
    return getattr(group, f"run_{name}")


def _fail(as_json: bool, message: str, code: int) -> int:
    sys.stderr.write(f"lorif: error: {message}\n")
    if as_json:
        sys.stdout.write(json.dumps({"error": message, "exit_code": code}) + "\n")
    return code


def _configure_logging() -> None:
    """Log to stderr, our own modules from level INFO."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name in ("lorif_core", "tasks", "flows"):
        logging.getLogger(name).setLevel(logging.INFO)
