"""The `lorif` command line: parse, run, print; imports what a command needs only when it runs."""

import argparse
import importlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from flows.commands import COMMANDS
from flows.commands.result import Result
from lorif_core.errors import LorifError
from tasks.environment import fast_imports

_CONFIG_HELP = "YAML file; any key can be overridden with key.sub=value"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence instead of the usage text."""
        self.exit(2, f"lorif: error: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exits 0 when all is well, 2 for the user's mistakes, 1 for failures, 130 when interrupted."""
    parser = command_parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes overrides in one place only; they may stand before and after options
    misplaced = [word.partition("=")[0] for word in rest if word.startswith("-") or "overrides" not in arguments]
    if misplaced:
        parser.error(f"unrecognized arguments: {' '.join(misplaced)}")
    if rest:
        arguments.overrides += rest
    _configure_logging()
    sys.exit(run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Run a parsed command and print its result, or its results as they come; the exit code."""
    options = vars(arguments)
    as_json = options.pop("json")
    try:
        results = _command(options.pop("command"))(**options)
        for result in [results] if isinstance(results, Result) else results:
            sys.stdout.write((json.dumps(result.data) if as_json else result.text) + "\n")
            sys.stdout.flush()
    except LorifError as error:
        return _fail(as_json, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(as_json, "interrupted; run the same command again, it resumes", 130)
    except Exception as error:  # noqa: BLE001 - nothing is hidden: this is where a command ends
        from lorif_core.storage.faults import one_line, without_secrets

        if os.environ.get("LORIF_DEBUG"):
            sys.stderr.write(without_secrets(traceback.format_exc()))
        reason = one_line(error) or "no message"
        return _fail(as_json, f"{type(error).__name__}: {reason} (LORIF_DEBUG=1 shows the traceback)", 1)
    return 0


def _command(name: str) -> Callable[..., Result | Iterable[Result]]:
    """The function of a command, from the file of its group."""
    with fast_imports():
        group = importlib.import_module(f"flows.commands.{COMMANDS[name]}")
    return getattr(group, f"run_{name}")


def _fail(as_json: bool, message: str, code: int) -> int:
    sys.stderr.write(f"lorif: error: {message}\n")
    if as_json:
        sys.stdout.write(json.dumps({"error": message, "exit_code": code}) + "\n")
    return code


def _configure_logging() -> None:
    """Logs to stderr."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name in ("lorif_core", "tasks", "flows"):
        logging.getLogger(name).setLevel(logging.INFO)


def command_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the reference of commands in `docs/` is made from it."""
    parser = _Parser(
        prog="lorif",
        description="Which training examples made the model say this? Training data attribution with LoRIF.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("--json", action="store_true", help="print one line of JSON last on stdout")
        command.set_defaults(command=name)
        return command

    demo = add("demo", "the whole story on this machine: train, index, ask, report")
    demo.add_argument("--out", default="demo-out", help="an empty or new folder (default: demo-out)")
    demo.add_argument(
        "--store",
        choices=["local", "s3"],
        default="local",
        help="s3: corpus, checkpoint and index in an object store of the demo's own, on 127.0.0.1",
    )

    check = add("check", "validate everything before spending anything, and print the plan")
    build = add("build", "build an index over a corpus and publish a generation")
    update = add("update", "index what is new in the corpus of an index, and publish a generation")
    attribute = add("attribute", "attribute a file of queries; writes scores, report and summary")
    for command in (check, build, update, attribute):
        command.add_argument("-c", "--config", required=True, help=_CONFIG_HELP)
        command.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override a key of the config")
    for command in (build, update):
        command.add_argument(
            "--publish-incomplete",
            action="store_true",
            help="publish without the shards that failed every attempt, and record them",
        )
    update.add_argument(
        "--remove-vanished",
        action="store_true",
        help="drop the rows of files that are no longer in the corpus; without this they stay",
    )
    attribute.add_argument("--queries", required=True, help="jsonl or parquet file of queries")
    attribute.add_argument("--out", required=True, help="an empty or new folder, or an s3:// URI")

    evaluate = add(
        "evaluate", "measure attribution quality: LDS of methods, recall of planted sources, tail-patch"
    )
    evaluate.add_argument("measure", choices=["lds", "recall", "tail-patch"])
    evaluate.add_argument("-c", "--config", required=True, help="YAML file of the evaluation")
    evaluate.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override a key of the file")
    evaluate.add_argument("--out", required=True, help="a folder or s3:// URI; run again with it, it resumes")

    query = add("query", "ask one question of an index, on this machine alone")
    query.add_argument("--text", required=True, help="the text, or the prompt of --completion")
    query.add_argument("--completion", help="what the model said; only its tokens are scored")
    query.add_argument("--totals", metavar="COLUMN", help="also the sums of scores by a column, such as uri")
    query.add_argument("--explain", action="store_true", help="also what each token and layer adds to each score")
    for command in (attribute, query):
        command.add_argument("--top-k", type=_positive, default=10, help="proponents and opponents (default: 10)")

    select = add("select", "the part of the corpus that helps target queries most, or least, as a parquet file")
    by = select.add_mutually_exclusive_group(required=True)
    by.add_argument("--queries", help="jsonl or parquet file of target queries; the mean of their scores counts")
    by.add_argument("--self-influence", action="store_true", help="by the influence of examples on themselves")
    select.add_argument("--fraction", type=float, required=True, help="of the rows, above 0, at most 1")
    select.add_argument("--bottom", action="store_true", help="the lowest scores instead of the highest")
    select.add_argument("--out", required=True, help="a new parquet file, or an s3:// URI")
    serve = add("serve", "answer questions on HTTP: an explorer page and a JSON API")
    serve.add_argument("--host", default="127.0.0.1", help="another than loopback needs a token, see README")
    serve.add_argument("--port", type=_port, default=8765, help="0 takes a free one (default: 8765)")
    serve.add_argument(
        "--memory-gb", type=_gigabytes, help="GiB for codes in memory (default: a quarter of what is free)"
    )
    serve.add_argument(
        "--two-stage", action="store_true",
        help="keep a sixteenth of the codes in memory and look among few candidates: may miss rows, see README",
    )  # fmt: skip

    for command in (query, select, serve):
        command.add_argument("--model", help="the checkpoint, if it is no longer where the index was built from")
    for command in (attribute, query, select):
        command.add_argument(
            "--where", metavar="EXPR", help="only rows that meet an SQL condition on the columns of `factors`"
        )
        command.add_argument(
            "--normalise",
            "--normalize",
            choices=["none", "cosine", "self"],
            default="none",
            help="divide scores by the roots of self-influences (default: none)",
        )

    status = add("status", "generations of an index: counts, bytes, checkpoint, builds under way")
    rollback = add("rollback", "publish an earlier generation again")
    remove = add("remove", "takedown of examples: their rows are in no later generation")
    chosen = remove.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--ids", metavar="FILE", help="example ids, one a line")
    chosen.add_argument(
        "--where", metavar="EXPR", help="SQL condition on the columns of `factors` that are not codes"
    )
    gc = add("gc", "what an index no longer needs: orphaned files and receipts, expired generations")
    gc.add_argument("--apply", action="store_true", help="remove it; without this it is only listed")
    gc.add_argument("--keep", type=_positive, default=5, help="newest generations that are kept (default: 5)")
    takes = {
        query: "storage.* and model.*",
        select: "storage.* and model.*",
        serve: "storage.* and model.*",
        remove: "storage.*, compute.* and update.*",
    }
    for command in (query, select, serve, status, rollback, remove, gc):
        command.add_argument("index", help="folder or URI of the index")
        if command is rollback:
            command.add_argument(
                "generation", type=int, help="number of a generation, as `lorif status` lists them"
            )
        command.add_argument(
            "overrides",
            nargs="*",
            metavar="key.sub=value",
            help=f"keys of the config: {takes.get(command, 'storage.*')}",
        )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"{text} is not a port; give one from 0 to 65535")
    return value


def _gigabytes(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not an amount of memory; give GiB, 0 or more")
    return value
