"""The `lorif` command line: parses a command, runs it and prints its result; imports a command when it runs."""

import argparse
import importlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from flows.command_words import parse_command
from flows.commands import COMMANDS
from flows.commands.early_checks import check_early
from flows.commands.result import Result
from flows.interrupts import SIGINT_EXIT_CODE, SIGTERM_EXIT_CODE, Interrupts, Terminated
from flows.terminal import write_error, write_text
from lorif_core.errors import LorifError
from lorif_core.out_of_memory import MemorySetting, is_out_of_memory, memory_exhausted
from tasks.environment import fast_imports


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Exits with 0 on success, 2 on a mistake of the user, 1 on a failure, 130 after Ctrl-C and 143 after SIGTERM.

    Args:
        argv: the words of the command line; None for those of this process, whose signals are then handled too.
    """
    interrupts = Interrupts() if argv is None else None
    arguments = parse_command(argv)
    _configure_logging()
    code = run(arguments)
    if interrupts is not None:
        interrupts.command_has_ended()
    sys.exit(code)


def run(arguments: argparse.Namespace) -> int:
    """Run a parsed command and print its result, or each result as soon as it arrives; returns the exit code."""
    options = vars(arguments)
    as_json, command, code = options.pop("json"), options.pop("command"), 0
    try:
        check_early(command, options)
        results = _implementation(command)(**options)
        for result in [results] if isinstance(results, Result) else results:
            write_text(json.dumps(result.data) if as_json else result.text)
            code = max(code, result.exit_code)
    except LorifError as error:
        return _fail(as_json, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(as_json, "interrupted; run the same command again to resume", SIGINT_EXIT_CODE)
    except Terminated:
        return _fail(as_json, "terminated by SIGTERM; run the same command again to resume", SIGTERM_EXIT_CODE)
    except Exception as error:  # noqa: BLE001 - every failure of a command ends here, with a message
        from lorif_core.storage.faults import one_line, without_secrets

        if is_out_of_memory(error):
            return _fail(as_json, _memory_message(error, options), 1)
        if os.environ.get("LORIF_DEBUG"):
            sys.stderr.write(without_secrets(traceback.format_exc()))
        reason = one_line(error) or "no message"
        return _fail(as_json, f"{type(error).__name__}: {reason} (LORIF_DEBUG=1 shows the traceback)", 1)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a panic of Lance in a damaged file, not an Exception
            raise
        return _fail(
            as_json, f"a file of the index cannot be read ({error}); lorif verify names what is damaged", 1
        )
    return code


def _implementation(name: str) -> Callable[..., Result | Iterable[Result]]:
    """The function of a command, from the module of its group."""
    with fast_imports():
        group = importlib.import_module(f"flows.commands.{COMMANDS[name]}")
    return getattr(group, f"run_{name}")


def _memory_message(error: Exception, options: Mapping[str, Any]) -> str:
    """What to say if memory of this process ran out: the settings of the command that bound it."""
    from flows.serve.memory import default_memory_gb
    from lorif_core.config_file import load_config
    from lorif_core.storage.faults import one_line
    from tasks.memory import model_settings

    settings: Sequence[MemorySetting] = ()
    if "memory_gb" in options:
        settings = (MemorySetting("--memory-gb", options["memory_gb"] or default_memory_gb()),)
    elif "config" in options and "measure" not in options:
        with suppress(LorifError):  # it was read before; by now it may be gone, or was a pipe
            settings = model_settings(load_config(options["config"], list(options["overrides"])))
    return str(memory_exhausted("this process", one_line(error) or type(error).__name__, settings))


def _fail(as_json: bool, message: str, code: int) -> int:
    write_error(message)
    if as_json:
        sys.stdout.write(json.dumps({"error": message, "exit_code": code}) + "\n")
    return code


def _configure_logging() -> None:
    """Log to stderr, our own modules from level INFO."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name in ("lorif_core", "tasks", "flows"):
        logging.getLogger(name).setLevel(logging.INFO)
