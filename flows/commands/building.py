"""The commands `lorif check`, `build`, `update` and `demo`: check without Prefect and Ray, then run the flow."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.commands.early_checks import require_file
from flows.commands.result import Result
from flows.commands.shared import command_line, generation_summary, log_failures_once, read_config, with_notes
from flows.tables import change_lines, plan_sentence, step_table
from tasks.environment import fast_imports, prepare_run

if TYPE_CHECKING:
    from lorif_core.config import Config


def run_build(config: str | None, overrides: Sequence[str], publish_incomplete: bool) -> Result:
    """`lorif build`."""
    settings = _read_local_config(config, overrides)
    with fast_imports():
        from lorif_core.lifecycle.plan import preflight

    preflight(settings)  # takes a second or two; Prefect and Ray take longer to start
    from flows.build import build

    log_failures_once()
    summary = generation_summary(settings.index, build(settings, publish_incomplete))
    return with_notes(summary, f"next: {_question(settings.index)}")


def run_update(
    config: str | None, overrides: Sequence[str], remove_vanished: bool, publish_incomplete: bool
) -> Result:
    """`lorif update`."""
    settings = _read_local_config(config, overrides)
    with fast_imports():
        from lorif_core.lifecycle.update import preflight_update

    base = preflight_update(settings)
    from flows.update import update

    log_failures_once()
    generation = update(settings, remove_vanished, publish_incomplete)
    published = generation.generation != base.generation
    changes = generation.changes if published else None
    summary = generation_summary(settings.index, generation)
    return with_notes({**summary, "published": published, "changes": changes})


def run_check(config: str | None, overrides: Sequence[str]) -> Result:
    """`lorif check`."""
    settings = read_config(config, overrides)
    with fast_imports():
        from tasks.check import check

    data = check(settings)
    return Result(data, _check_text(data, command_line("build", config, overrides)))


def _check_text(data: Mapping[str, Any], next_command: str) -> Any:
    from rich.console import Group

    passed = [f"ok  {name}: {finding}" for name, finding in data["checks"].items()]
    costs = {key: value for key, value in data.items() if key not in ("checks", "corpus", "memory", "seconds")}
    listed = [f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}" for key, value in costs.items()]
    text = "\n".join([*passed, "", *listed, ""])
    return Group(text, step_table(data), "", f"{plan_sentence(data)} Nothing was built.", f"next: {next_command}")


def run_demo(out: str, store: str, first_act: bool) -> Result:
    """`lorif demo`."""
    prepare_run("local")
    with fast_imports():
        from flows.demo import demo

    log_failures_once()
    summary = demo(Path(out).resolve(), store, first_act)
    lines = [*(change_lines(summary["change"]) if "change" in summary else ()), *_test_lines(summary)]
    places = [f"next: {_question(str(Path(out) / 'index'))}"] if store == "local" else []
    return Result(summary, "\n".join([*lines, *places, f"report: {summary['report']}"]))


def _read_local_config(config: str | None, overrides: Sequence[str]) -> "Config":
    """CONFIG, whose corpus exists if it is local."""
    settings = read_config(config, overrides)
    if not any(character in settings.corpus.uri for character in "*?["):
        require_file(settings.corpus.uri, "corpus")
    return settings


def _question(index: str) -> str:
    return f'lorif query {shlex.quote(index)} "a text that the model wrote"'


def _test_lines(summary: dict[str, Any]) -> Iterator[str]:
    """What trainings without some passages did to the model's own answers."""
    test = summary.get("counterfactual", {})
    for row in test.get("removals", ()):
        yield (
            f"trained again, leaving out {row['method']}: the loss of the model's own answers rises by "
            f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}] nats a token, and it still gives "
            f"{sum(row['given'])} of {len(row['given'])}"
        )
