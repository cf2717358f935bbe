"""The parser of the `lorif` command line: all commands, their options and their help texts."""

import argparse
from typing import TypeAlias

from flows.answer_options import add_answer_options
from flows.argument_parser import ArgumentParser, PrintCompletion, PrintVersion
from flows.common_options import (
    INDEX_HELP,
    add_config,
    add_index,
    add_model,
    add_overrides,
    add_publish_incomplete,
    add_search_options,
    add_top_k,
)
from flows.option_types import gigabytes, number, port, positive, share

_START = """\
start with one of these:
  lorif demo                                   the whole pipeline on a small model, in minutes
  lorif init FOLDER                            write a CONFIG for your model and data
  lorif build INDEX --model M --corpus C       build an index without a CONFIG
  lorif query INDEX "The prompt" --completion " and what the model said"
"""

_Commands: TypeAlias = "argparse._SubParsersAction[ArgumentParser]"


def command_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the reference of commands in `docs/` is generated from it."""
    parser = ArgumentParser(
        prog="lorif",
        description="Which training examples made the model say this? Training data attribution with LoRIF.",
        epilog=_START,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action=PrintVersion, nargs=0, dest=argparse.SUPPRESS, help="print the version"
    )
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        dest=argparse.SUPPRESS,
        choices=["bash", "zsh", "fish", "tcsh"],
        help="print the script that completes commands and options in a shell",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_init(commands)
    _add_check(commands)
    _add_build(commands)
    _add_update(commands)
    _add_attribute(commands)
    _add_evaluate(commands)
    _add_query(commands)
    _add_select(commands)
    _add_serve(commands)
    _add_status(commands)
    _add_rollback(commands)
    _add_remove(commands)
    _add_gc(commands)
    _add_compact(commands)
    _add_verify(commands)
    return parser


def _add_demo(commands: _Commands) -> None:
    demo = _add_command(
        commands, "demo", "train a small model, index its corpus, attribute questions and write a report"
    )
    demo.add_argument("--out", default="demo-out", help="a new or empty folder for the output (default: demo-out)")
    demo.add_argument(
        "--store",
        choices=["local", "s3"],
        default="local",
        help="where corpus, checkpoint and index are stored: in the output folder (local, the default), or in an "
        "S3 server on 127.0.0.1 that the demo starts (s3)",
    )
    demo.add_argument(
        "--first-act",
        action="store_true",
        help="stop after the first index and its answers, in less than a minute",
    )


def _add_init(commands: _Commands) -> None:
    init = _add_command(commands, "init", "look at a folder with a model and data, and write a CONFIG for them")
    init.add_argument("folder", nargs="?", default=".", help="the folder (default: .)")
    init.add_argument("--model", help="the checkpoint, if it is not in the folder")
    init.add_argument("--corpus", help="the training data, if they are not in the folder")
    init.add_argument("--out", default="config.yaml", help="a new file for the CONFIG (default: config.yaml)")


def _add_check(commands: _Commands) -> None:
    check = _add_command(commands, "check", "validate a CONFIG without building anything, and print the plan")
    add_config(check)


def _add_build(commands: _Commands) -> None:
    build = _add_command(commands, "build", "build an index over a corpus and publish a generation")
    add_config(build)
    add_publish_incomplete(build)


def _add_update(commands: _Commands) -> None:
    update = _add_command(
        commands, "update", "index what is new in the corpus of an existing index and publish a generation"
    )
    add_config(update)
    add_publish_incomplete(update)
    update.add_argument(
        "--remove-vanished",
        action="store_true",
        help="remove the rows of files that are no longer in the corpus; without this option they stay",
    )


def _add_attribute(commands: _Commands) -> None:
    attribute = _add_command(
        commands, "attribute", "attribute a file of queries; write the scores, a report and a summary"
    )
    add_config(attribute)
    attribute.add_argument("--queries", required=True, help="JSON Lines or Parquet file of queries")
    attribute.add_argument("--out", required=True, help="a new or empty folder for the output, or an s3:// URI")
    add_top_k(attribute)
    add_search_options(attribute)


def _add_evaluate(commands: _Commands) -> None:
    evaluate = _add_command(commands, "evaluate", "measure the quality of attribution methods")
    evaluate.add_argument(
        "measure",
        choices=["lds", "recall", "tail-patch"],
        help="the linear datamodeling score (lds), the recall of planted sources (recall), or the gain from one "
        "training step on the proponents (tail-patch)",
    )
    evaluate.add_argument("-c", "--config", required=True, help="YAML file of the evaluation")
    add_overrides(evaluate, "override a key of the file")
    evaluate.add_argument(
        "--out",
        required=True,
        help="a folder or an s3:// URI for the output; a second run with the same output resumes the first",
    )


def _add_query(commands: _Commands) -> None:
    query = _add_command(commands, "query", "ask an index one question, on this machine")
    query.add_argument("index", help=INDEX_HELP)
    query.add_argument(
        "question",
        nargs="?",
        metavar="TEXT",
        help="the text to attribute, or the prompt of --completion; - reads it from stdin",
    )
    query.add_argument("--text", help="the same, for a text that looks like an option or like key.sub=value")
    add_answer_options(query)
    query.add_argument(
        "--totals", metavar="COLUMN", help="also print sums of scores by the values of a column, such as uri"
    )
    add_top_k(query)
    add_model(query)
    add_search_options(query)
    add_overrides(query, "override a key of the config: storage.* and model.*")


def _add_select(commands: _Commands) -> None:
    select = _add_command(
        commands,
        "select",
        "write the part of a corpus that helps target queries most, or least, to a Parquet file",
    )
    criterion = select.add_mutually_exclusive_group(required=True)
    criterion.add_argument(
        "--queries", help="JSON Lines or Parquet file of target queries; rows are ranked by their mean score"
    )
    criterion.add_argument(
        "--self-influence", action="store_true", help="rank rows by the influence of each example on itself"
    )
    select.add_argument(
        "--fraction", type=share, required=True, help="the share of the rows to select, above 0 and at most 1"
    )
    select.add_argument(
        "--bottom", action="store_true", help="select the rows with the lowest scores instead of the highest"
    )
    select.add_argument("--out", required=True, help="a new Parquet file, or an s3:// URI")
    add_model(select)
    add_search_options(select)
    add_index(select, "storage.* and model.*")


def _add_serve(commands: _Commands) -> None:
    serve = _add_command(commands, "serve", "answer questions over HTTP, with an explorer page and a JSON API")
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on; any address but loopback needs a token, see docs/how-to/serve.md "
        "(default: 127.0.0.1)",
    )
    serve.add_argument(
        "--port", type=port, default=8765, help="the port to listen on; 0 chooses a free one (default: 8765)"
    )
    serve.add_argument(
        "--memory-gb",
        type=gigabytes,
        help="memory for the codes of the index, in GiB (default: a quarter of the free memory)",
    )
    serve.add_argument(
        "--two-stage",
        action="store_true",
        help="keep a sixteenth of the codes in memory and score few candidates exactly; some rows may be missed, "
        "see docs/how-to/serve.md",
    )
    add_model(serve)
    add_index(serve, "storage.* and model.*")


def _add_status(commands: _Commands) -> None:
    status = _add_command(
        commands,
        "status",
        "list the generations of an index with rows, bytes and checkpoint, and the command that changes it now",
    )
    add_index(status, "storage.*")


def _add_rollback(commands: _Commands) -> None:
    rollback = _add_command(commands, "rollback", "publish an earlier generation again")
    rollback.add_argument("index", help=INDEX_HELP)
    rollback.add_argument(
        "generation", type=number, help="the number of the generation, as `lorif status` prints it"
    )
    add_overrides(rollback, "override a key of the config: storage.*")


def _add_remove(commands: _Commands) -> None:
    remove = _add_command(commands, "remove", "take examples down: publish a generation without their rows")
    rows = remove.add_mutually_exclusive_group(required=True)
    rows.add_argument("--ids", metavar="FILE", help="text file with one example id per line")
    rows.add_argument(
        "--where",
        metavar="EXPR",
        help="SQL condition on the columns of the table `factors`, except its codes; matching rows are removed",
    )
    add_index(remove, "storage.*, compute.* and update.*")


def _add_gc(commands: _Commands) -> None:
    gc = _add_command(
        commands, "gc", "list or delete what an index no longer needs: orphaned files and expired generations"
    )
    gc.add_argument(
        "--apply",
        action="store_true",
        help="delete; without this option the command only lists what it would delete",
    )
    gc.add_argument(
        "--keep", type=positive, default=5, help="the number of newest generations to keep (default: 5)"
    )
    add_index(gc, "storage.*")


def _add_compact(commands: _Commands) -> None:
    compact = _add_command(
        commands, "compact", "join small fragments of an index, as updates leave them, and publish a generation"
    )
    add_index(compact, "storage.*")


def _add_verify(commands: _Commands) -> None:
    verify = _add_command(
        commands, "verify", "read a whole index, compare it with its checksums, and name what is damaged"
    )
    verify.add_argument(
        "--repair",
        action="store_true",
        help="publish a generation without the damaged shards, with curvatures that are fitted again",
    )
    add_index(verify, "storage.* and compute.*")


def _add_command(commands: _Commands, name: str, summary: str) -> ArgumentParser:
    command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    command.add_argument("--json", action="store_true", help="print the result as one line of JSON on stdout")
    command.set_defaults(command=name)
    return command
