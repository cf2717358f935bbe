"""Helpers of several commands: reading CONFIG, describing a generation, and logging a failure once."""

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flows.commands.result import Result, listed
from lorif_core.config_file import load_config
from lorif_core.errors import LorifError
from tasks.environment import prepare_run

if TYPE_CHECKING:  # these take seconds to import, and a mistake is answered at once
    from tqdm import tqdm

    from lorif_core.config import Config
    from lorif_core.tables.generation import Generation


def generation_summary(index: str, generation: "Generation") -> dict[str, Any]:
    """What a command reports about the generation that is current at its end."""
    skipped, quarantined = json.loads(generation.skipped_json), json.loads(generation.quarantined_json)
    return {
        "index": index,
        "generation": generation.generation,
        "rows": generation.rows,
        "tokens": generation.tokens,
        "spec": generation.spec,
        "checkpoint": generation.checkpoint,
        "skipped": [{"example_id": example_id, "reason": reason} for example_id, reason in skipped],
        "quarantined": [{"shard": shard, "cause": cause} for shard, cause in quarantined],
        "corpus": generation.changes.get("corpus"),
        "timings": generation.timings,
    }


def with_notes(data: dict[str, Any], *lines: str) -> Result:
    """A result whose text has one line per key, then one per remark on the corpus (`corpus`), then more lines."""
    from lorif_core.corpus.notes import CorpusNotes

    notes = CorpusNotes.from_dict(data["corpus"]).sentences() if data["corpus"] else []
    text = listed({key: value for key, value in data.items() if key != "corpus"}, *notes, *lines).text
    return Result(data, text)


def command_line(command: str, config: str | None, overrides: Sequence[str], *more: str) -> str:
    """A command with the same CONFIG, as one types it."""
    words = [] if config is None else ["-c", config]
    return shlex.join(["lorif", command, *words, *overrides, *more])


def read_config(config_path: str | None, overrides: Sequence[str]) -> "Config":
    """Read CONFIG with overrides; prepare its run before anything imports Prefect or Ray."""
    config = load_config(config_path, list(overrides))
    prepare_run(config.compute.ray)
    return config


class Bars:
    """Progress bars on a terminal, one for each title; none elsewhere."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm] = {}

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *raised: object) -> None:
        for bar in self._bars.values():
            bar.close()

    def show(self, title: str, done: int, total: int) -> None:
        """Show how many items of a title are done."""
        if sys.stderr.isatty():
            from tqdm import tqdm

            bar = self._bars.setdefault(title, tqdm(total=total, desc=title, file=sys.stderr))
            bar.total = total
            bar.update(done - bar.n)


class _ExpectedFailures(logging.Filter):
    """Drops Prefect's logs of expected failures, one per task and flow; the command line prints one sentence."""

    def filter(self, record: logging.LogRecord) -> bool:
        expected = record.exc_info is not None and isinstance(record.exc_info[1], LorifError)
        return not expected and not str(record.msg).startswith(("Finished in state Failed", "Task run failed"))


def log_failures_once() -> None:
    """Let only the command line report an expected failure."""
    for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
        logging.getLogger(name).addFilter(_ExpectedFailures())
