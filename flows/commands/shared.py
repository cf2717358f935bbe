"""Helpers of several commands: reading CONFIG, describing a generation, and logging a failure once."""

import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from flows.commands.result import Result, listed
from lorif_core.config import Config
from lorif_core.config_file import load_config
from lorif_core.corpus.notes import CorpusNotes
from lorif_core.errors import LorifError
from lorif_core.tables.generation import Generation
from tasks.environment import prepare_run


def generation_summary(index: str, generation: Generation) -> dict[str, Any]:
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


def with_notes(data: dict[str, Any]) -> Result:
    """A result whose text has one line per key, and then one per remark on the corpus (`corpus`)."""
    notes = CorpusNotes.from_dict(data["corpus"]).sentences() if data["corpus"] else []
    lines = listed({key: value for key, value in data.items() if key != "corpus"}).text
    return Result(data, "\n".join([lines, *notes]))


def read_config(config_path: str, overrides: Sequence[str]) -> Config:
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
