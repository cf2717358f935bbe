"""The `lorif` command line: parse, run, print; imports what a command needs only when it runs."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from lorif_core.errors import LorifError
from tasks.environment import quiet_libraries

if TYPE_CHECKING:
    from flows.commands import Result

_CONFIG_HELP = "YAML file; any key can be overridden with key.sub=value"

Handler = Callable[[argparse.Namespace], "Result"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence instead of the usage text."""
        self.exit(2, f"lorif: error: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exits 0 when all is well, 2 for the user's mistakes, 1 for failures, 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    _configure_process()
    sys.exit(run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Run a parsed command and print its result; the exit code."""
    try:
        result = arguments.handler(arguments)
    except LorifError as error:
        return _fail(arguments, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(arguments, "interrupted; run the same command again, it resumes", 130)
    except Exception as error:
        if os.environ.get("LORIF_DEBUG"):
            raise
        reason = " ".join(str(error).split())[:500] or "no message"
        return _fail(arguments, f"{type(error).__name__}: {reason} (LORIF_DEBUG=1 shows the traceback)", 1)
    sys.stdout.write((json.dumps(result.data) if arguments.json else result.text) + "\n")
    return 0


def _fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    sys.stderr.write(f"lorif: error: {message}\n")
    if arguments.json:
        sys.stdout.write(json.dumps({"error": message, "exit_code": code}) + "\n")
    return code


def _configure_process() -> None:
    """Logs to stderr; no telemetry; quiet libraries. Before Prefect or transformers are imported."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name in ("lorif_core", "tasks", "flows"):
        logging.getLogger(name).setLevel(logging.INFO)
    quiet_libraries()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lorif",
        description="Which training examples made the model say this? Training data attribution with LoRIF.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, handler: Handler, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("--json", action="store_true", help="print one line of JSON last on stdout")
        command.set_defaults(handler=handler)
        return command

    demo = add("demo", _demo, "the whole story on this machine: train, index, ask, report")
    demo.add_argument(
        "--out", default="demo-out", help="folder for report.html and summary.json (default: demo-out)"
    )

    check = add("check", _check, "validate everything before spending anything, and print the plan")
    build = add("build", _build, "build an index over a corpus and publish a generation")
    attribute = add("attribute", _attribute, "attribute a file of queries; writes scores, report and summary")
    for command in (check, build, attribute):
        command.add_argument("-c", "--config", required=True, help=_CONFIG_HELP)
        command.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override a key of the config")
    attribute.add_argument("--queries", required=True, help="jsonl or parquet file of queries")
    attribute.add_argument("--out", required=True, help="an empty or new folder")
    attribute.add_argument(
        "--top-k", type=_positive, default=10, help="proponents and opponents a query (default: 10)"
    )

    query = add("query", _query, "ask one question of an index, on this machine alone")
    query.add_argument("index", help="folder or URI of the index")
    query.add_argument("--text", required=True, help="the text, or the prompt of --completion")
    query.add_argument("--completion", help="what the model said; only its tokens are scored")
    query.add_argument("--top-k", type=_positive, default=10, help="proponents and opponents shown (default: 10)")
    query.add_argument("--model", help="the checkpoint, if it is no longer where the index was built from")

    status = add("status", _status, "generations of an index: counts, bytes, checkpoint")
    status.add_argument("index", help="folder or URI of the index")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _demo(arguments: argparse.Namespace) -> "Result":
    from flows.commands import run_demo

    return run_demo(arguments.out)


def _check(arguments: argparse.Namespace) -> "Result":
    from flows.commands import run_check

    return run_check(arguments.config, arguments.overrides)


def _build(arguments: argparse.Namespace) -> "Result":
    from flows.commands import run_build

    return run_build(arguments.config, arguments.overrides)


def _attribute(arguments: argparse.Namespace) -> "Result":
    from flows.commands import run_attribute

    return run_attribute(arguments.config, arguments.overrides, arguments.queries, arguments.out, arguments.top_k)


def _query(arguments: argparse.Namespace) -> "Result":
    from flows.commands import run_query

    return run_query(arguments.index, arguments.text, arguments.completion, arguments.top_k, arguments.model)


def _status(arguments: argparse.Namespace) -> "Result":
    from flows.commands import run_status

    return run_status(arguments.index)
