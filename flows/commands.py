"""What each command does: validate first, without Prefect or Ray; then the flow; then a plain result."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.tables import change_lines, figures_text, lds_text, totals_text
from lorif_core.config import (
    Config,
    StorageConfig,
    load_config,
    parse_compute,
    parse_options,
    parse_storage,
    parse_update,
)
from lorif_core.errors import LorifError, UserError
from lorif_core.garbage import find_garbage, remove_garbage
from lorif_core.generation import Generation
from lorif_core.lease import current_holder, hold
from lorif_core.objects import Objects
from lorif_core.publishing import find_generation, rollback
from lorif_core.store import Store
from tasks.environment import fast_imports, lock_local_ray

_EXCERPT = 160
_CONTRIBUTIONS = 5
_OF_SUMMARY = ("queries", "scores", "generation", "rows", "skipped", "timings")


@dataclass(frozen=True, slots=True)
class Result:
    """What a command found: plain values for `--json`, and the same for a person."""

    data: dict[str, Any]
    text: str


def _listed(data: dict[str, Any]) -> Result:
    return Result(data, "\n".join(f"{key}: {value}" for key, value in data.items()))


def run_build(config: str, overrides: Sequence[str], publish_incomplete: bool) -> Result:
    """`lorif build`."""
    from lorif_core.plan import preflight

    settings = _load(config, overrides)
    preflight(settings)  # in a second or two, before Prefect and Ray take theirs to start
    from flows.build import build

    _say_failures_once()
    return _listed(_told(settings.index, build(settings, publish_incomplete)))


def run_update(config: str, overrides: Sequence[str], remove_vanished: bool, publish_incomplete: bool) -> Result:
    """`lorif update`."""
    from lorif_core.update import preflight_update

    settings = _load(config, overrides)
    base = preflight_update(settings)
    from flows.update import update

    _say_failures_once()
    generation = update(settings, remove_vanished, publish_incomplete)
    published = generation.generation != base.generation
    changes = generation.changes if published else None
    return _listed({**_told(settings.index, generation), "published": published, "changes": changes})


def _told(index: str, generation: Generation) -> dict[str, Any]:
    """What a command says of the generation that stands when it has ended."""
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
        "timings": generation.timings,
    }


def run_attribute(
    config: str, overrides: Sequence[str], queries: str, out: str, top_k: int, where: str | None, normalise: str
) -> Result:
    """`lorif attribute`."""
    settings = _load(config, overrides)
    from tasks.attribute import check_attribution

    check_attribution(settings, queries, out, top_k, where, normalise)
    from flows.attribute import attribute

    _say_failures_once()
    summary = attribute(settings, queries, out, top_k, where, normalise)
    return _listed({"out": out, **{key: summary[key] for key in _OF_SUMMARY}})


def run_evaluate(measure: str, config: str, overrides: Sequence[str], out: str) -> Result:
    """`lorif evaluate`."""
    from lorif_core.evaluation import load_evaluation
    from lorif_core.frontier import require_plotting

    evaluation = load_evaluation(config, list(overrides))
    require_plotting()
    lock_local_ray(evaluation.base().compute.ray)
    from flows.evaluate import MEASURES

    _say_failures_once()
    summary = MEASURES[measure](evaluation, _absolute(out))
    return Result(summary, lds_text(summary) if measure == "lds" else figures_text(summary))


def _absolute(out: str) -> str:
    """Workers may have another working folder."""
    return out if "://" in out else str(Path(out).resolve())


def run_check(config: str, overrides: Sequence[str]) -> Result:
    """`lorif check`."""
    settings = _load(config, overrides)
    from tasks.check import check

    data = check(settings)
    passed = "\n".join(f"ok  {name}: {finding}" for name, finding in data["checks"].items())
    costs = {key: value for key, value in data.items() if key != "checks"}
    return Result(data, f"{passed}\n{_listed(costs).text}")


def run_demo(out: str, store: str) -> Result:
    """`lorif demo`."""
    from lorif_core.answers import check_out_folder

    check_out_folder(out, StorageConfig())
    lock_local_ray("local")
    from flows.demo import demo

    _say_failures_once()
    summary = demo(Path(out).resolve(), store)
    checks = [
        f"{row['question']} ours {row['ours']:.1%}, BM25 {row['bm25']:.1%}, chance {row['chance']:.1%}"
        for row in summary["self_check"]
    ]
    return Result(summary, "\n".join([*change_lines(summary["change"]), *checks, f"report: {summary['report']}"]))


def run_query(
    index: str,
    overrides: Sequence[str],
    text: str,
    completion: str | None,
    top_k: int,
    model: str | None,
    where: str | None,
    normalise: str,
    totals: str | None,
    explain: bool,
) -> Result:
    """`lorif query`: one machine, neither Ray nor Prefect."""
    with fast_imports():
        from flows.questions import answer, open_for_questions
    from lorif_core.queries import as_query

    if explain and normalise != "none":
        raise UserError("--explain shows what plain scores consist of; leave --normalise away")
    opened, checkpoint = open_for_questions(index, overrides, model)
    query = as_query({"text": text} if completion is None else {"prompt": text, "completion": completion}, 0)
    terms = opened.terms(where, normalise)
    found = answer(opened, checkpoint, query, top_k, terms, explain=explain)
    data: dict[str, Any] = {"generation": opened.generation.generation, **found}
    told = [_ranking(found)]
    if totals is not None:
        sums = opened.totals([query], totals, checkpoint, where=where, normalise=terms.normalise)
        data["totals"] = sums.drop_columns(["query_id"]).to_pylist()
        told.append(totals_text(data["totals"], totals))
    return Result(data, "\n".join(told))


def run_select(
    index: str,
    overrides: Sequence[str],
    queries: str | None,
    self_influence: bool,
    fraction: float,
    bottom: bool,
    out: str,
    model: str | None,
    where: str | None,
    normalise: str,
) -> Result:
    """`lorif select`: one machine, neither Ray nor Prefect."""
    with fast_imports():
        from flows.questions import open_for_questions
    from lorif_core.queries import read_queries
    from lorif_core.selection import check_new_file, write_selection

    if self_influence and normalise != "none":
        raise UserError("--self-influence is not normalised; leave --normalise away")
    opened, checkpoint = open_for_questions(index, overrides, model)
    storage = opened.store.storage
    check_new_file(out, storage)
    targets = None if queries is None else read_queries(queries, storage)
    terms = opened.terms(where, normalise)
    batches = opened.select(targets, fraction, checkpoint, bottom=bottom, where=where, normalise=terms.normalise)
    rows, lowest, highest = write_selection(batches, out, storage)
    data = {
        "out": out, "generation": opened.generation.generation, "rows": rows,
        "queries": None if targets is None else len(targets), "lowest": lowest, "highest": highest,
    }  # fmt: skip
    return _listed(data)


def run_serve(
    index: str,
    overrides: Sequence[str],
    host: str,
    port: int,
    model: str | None,
    memory_gb: float | None,
    two_stage: bool,
) -> Iterator[Result]:
    """`lorif serve`: says where once it can be asked, and at its end how many questions it has answered."""
    with fast_imports():
        from flows.serve.run import prepare
    serving = prepare(index, overrides, host, port, model, memory_gb, two_stage)
    serving.listen()
    data = {"address": serving.address, "generation": serving.newest.current.index.generation.generation}
    yield Result(data, serving.address)
    serving.run()
    data = {
        **data,
        "generation": serving.newest.current.index.generation.generation,
        "answered": serving.desk.answered,
    }
    yield Result(data, f"answered {serving.desk.answered} questions")


def run_status(index: str, overrides: Sequence[str]) -> Result:
    """`lorif status`."""
    store = _open_store(index, overrides)
    objects = Objects(index, store.storage)
    holder = current_holder(objects)
    if holder is None:
        store.latest()
    rows = [_status_row(store, generation) for generation in store.generations()]
    lines = [
        f"{row['generation']:>4}  {row['created_at'][:19]}  {row['rows']:>10,} rows  "
        f"{row['bytes_per_example']:>10,.0f} bytes/example  {row['checkpoint']}"
        for row in rows
    ]
    under_way = [] if holder is None else [str(holder)]
    lines += [f"under way: {name}" for name in under_way]
    return Result({"index": index, "generations": rows, "under_way": under_way}, "\n".join(lines))


def run_remove(index: str, overrides: Sequence[str], ids: str | None, where: str | None) -> Result:
    """`lorif remove`: holding the lease; without Prefect, which would keep the request in its database."""
    options = parse_options(list(overrides), ("storage", "compute", "update"))
    compute = parse_compute(options.get("compute", {}))
    # unless told otherwise nothing of the rows is left in a curvature
    wishes = parse_update({"curvature": "refit", **options.get("update", {})})
    lock_local_ray(compute.ray)
    from lorif_core.removal import read_ids, rows_where, rows_with_ids
    from tasks.removal import remove_rows

    wanted = read_ids(ids) if ids is not None else []
    store = Store(index, parse_storage(options.get("storage", {})))
    version = store.latest().factors_version
    rows = rows_with_ids(store, version, wanted) if where is None else rows_where(store, version, where)
    if not rows.num_rows:
        raise UserError(f"no example of {index} is meant: {ids or where} matches none of its rows")
    with hold(index, store.storage, "remove") as lease:
        generation = remove_rows(store, rows, compute, wishes, lease)
    found = set(rows.column("example_id").to_pylist())
    data = {
        "index": index,
        "generation": generation.generation,
        "rows": generation.rows,
        "removed": generation.changes["rows_removed"],
        "not_found": [example_id for example_id in wanted if example_id not in found],
        "changes": generation.changes,
    }
    advice = "earlier generations still hold the rows: lorif gc --apply --keep 1 takes them from storage"
    return Result(data, f"{_listed(data).text}\n{advice}")


def run_rollback(index: str, overrides: Sequence[str], generation: int) -> Result:
    """`lorif rollback`: tables are restored by name, so it takes a second however large they are."""
    store = _open_store(index, overrides)
    find_generation(store, generation)
    with hold(index, store.storage, "rollback") as lease:
        standing = rollback(store, lease, generation)
    return _listed({**_told(index, standing), "changes": standing.changes})


def run_gc(index: str, overrides: Sequence[str], apply: bool, keep: int) -> Result:
    """`lorif gc`: lists; with `apply` it also removes, holding the lease."""
    store = _open_store(index, overrides)
    garbage = find_garbage(store, keep)
    if apply:
        with hold(index, store.storage, "gc"):
            garbage = find_garbage(store, keep, held=True)
            remove_garbage(store, garbage)
    removable: dict[str, list[Any]] = {
        "generations": list(garbage.generations),
        "fits": list(garbage.curvatures),
        "covariances": list(garbage.covariances),
        "files": [f"{file.table}/{file.name}" for file in garbage.files],
        "receipts": list(garbage.receipts),
        "uploads": [upload.key for upload in garbage.uploads],
    }
    data = {"index": index, "removed": apply, "bytes": garbage.bytes, **removable}
    listed = [f"  {key}: {name}" for key, names in removable.items() for name in names]
    counts = [f"{key}: {len(names)}" for key, names in removable.items()]
    advice = [] if apply else ["nothing was removed; add --apply to remove it"]
    return Result(data, "\n".join([*listed, *counts, f"bytes: {garbage.bytes}", *advice]))


def _open_store(index: str, overrides: Sequence[str]) -> Store:
    options = parse_options(list(overrides), ("storage",))
    return Store(index, parse_storage(options.get("storage", {})))


def _status_row(store: Store, generation: Generation) -> dict[str, Any]:
    measured = store.code_bytes(generation.factors_version)
    return {
        "generation": generation.generation,
        "rows": generation.rows,
        "checkpoint": generation.checkpoint,
        "spec": generation.spec,
        "created_at": generation.created_at.isoformat(),
        "bytes": measured,
        "bytes_per_example": measured / max(generation.rows, 1),
        "parts": [
            {"checkpoint": part.checkpoint, "rows": part.rows, "asked_at_newest": part.follows is not None}
            for part in generation.parts
        ],
        "changes": generation.changes,
    }


def _ranking(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for side, hits in found.items():
        lines.append(side)
        for hit in hits:
            excerpt = " ".join((hit["text"] or "").split())[:_EXCERPT]
            lines.append(f"  {hit['rank']:>3}  {hit['score']:+.4g}  {hit['example_id']}  {excerpt}")
            if "tokens" in hit:
                lines.append(f"       tokens  {_strongest(hit['tokens'])}")
                lines.append(f"       layers  {_strongest(hit['layers'].items())}")
    return "\n".join(lines)


def _strongest(contributions: Iterable[tuple[str, float]]) -> str:
    ordered = sorted(contributions, key=lambda named: -abs(named[1]))[:_CONTRIBUTIONS]
    return ", ".join(f"{name!r} {value:+.3g}" for name, value in ordered)


def _load(config_path: str, overrides: Sequence[str]) -> Config:
    config = load_config(config_path, list(overrides))
    lock_local_ray(config.compute.ray)  # before anything imports Ray
    return config


class _WithoutExpectedFailures(logging.Filter):
    """Prefect logs a failure once per task and flow, with traceback; the command line says it in one sentence."""

    def filter(self, record: logging.LogRecord) -> bool:
        expected = record.exc_info is not None and isinstance(record.exc_info[1], LorifError)
        return not expected and not str(record.msg).startswith(("Finished in state Failed", "Task run failed"))


def _say_failures_once() -> None:
    for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
        logging.getLogger(name).addFilter(_WithoutExpectedFailures())
