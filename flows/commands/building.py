"""The commands `lorif check`, `build`, `update` and `demo`: check without Prefect and Ray, then run the flow."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flows.commands.result import Result, listed
from flows.commands.shared import generation_summary, log_failures_once, read_config, with_notes
from flows.tables import change_lines
from lorif_core.config import StorageConfig
from lorif_core.formatting import format_bytes, format_seconds
from tasks.environment import prepare_run


def run_build(config: str, overrides: Sequence[str], publish_incomplete: bool) -> Result:
    """`lorif build`."""
    from lorif_core.lifecycle.plan import preflight

    settings = read_config(config, overrides)
    preflight(settings)  # takes a second or two; Prefect and Ray take longer to start
    from flows.build import build

    log_failures_once()
    return with_notes(generation_summary(settings.index, build(settings, publish_incomplete)))


def run_update(config: str, overrides: Sequence[str], remove_vanished: bool, publish_incomplete: bool) -> Result:
    """`lorif update`."""
    from lorif_core.lifecycle.update import preflight_update

    settings = read_config(config, overrides)
    base = preflight_update(settings)
    from flows.update import update

    log_failures_once()
    generation = update(settings, remove_vanished, publish_incomplete)
    published = generation.generation != base.generation
    changes = generation.changes if published else None
    summary = generation_summary(settings.index, generation)
    return with_notes({**summary, "published": published, "changes": changes})


def run_check(config: str, overrides: Sequence[str]) -> Result:
    """`lorif check`."""
    settings = read_config(config, overrides)
    from tasks.check import check

    data = check(settings)
    passed = "\n".join(f"ok  {name}: {finding}" for name, finding in data["checks"].items())
    costs = {key: value for key, value in data.items() if key not in ("checks", "corpus", "memory", "seconds")}
    return Result(data, "\n".join([passed, listed(costs).text, *_memory_lines(data), *_time_lines(data)]))


def _memory_lines(data: dict[str, Any]) -> Iterator[str]:
    for name, peak in data["memory"].items():
        sizes = [f"{kind} {format_bytes(size)}" for kind, size in peak.items() if size is not None]
        yield f"memory of {name}: {', '.join(sizes) or 'nothing to do, or unknown'}"


def _time_lines(data: dict[str, Any]) -> Iterator[str]:
    for name, seconds in data["seconds"].items():
        yield f"time of {name}: {format_seconds(seconds)}"


def run_demo(out: str, store: str) -> Result:
    """`lorif demo`."""
    from lorif_core.report.batch_outputs import check_out_folder

    check_out_folder(out, StorageConfig())
    prepare_run("local")
    from flows.demo import demo

    log_failures_once()
    summary = demo(Path(out).resolve(), store)
    checks = [
        f"{row['question']} ours {row['ours']:.1%}, BM25 {row['bm25']:.1%}, chance {row['chance']:.1%}"
        for row in summary["self_check"]
    ]
    return Result(summary, "\n".join([*change_lines(summary["change"]), *checks, f"report: {summary['report']}"]))
